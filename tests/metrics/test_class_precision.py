from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from affsup_cli.metrics.class_precision import coco_precision, voc_precision
from affsup_cli.metrics.labelled_boxes import ClassRows
from affsup_cli.metrics.pycocotools_precision import pycocotools_precision

SQUARE = (0, 0, 20, 20)

# Few corners, sizes and scores: overlaps of exactly a threshold, of several objects alike, of none; scores that tie.
corners, sides = st.sampled_from((0, 1, 2, 5, 40)), st.sampled_from((0, 6, 10, 12, 19, 20))
boxes = st.tuples(corners, corners, sides, sides)
numbers = st.integers(0, 3)
found = st.lists(st.tuples(numbers, boxes, st.integers(0, 4)), max_size=40)
wanted = st.lists(st.tuples(numbers, boxes, st.sampled_from(("", "", "", "difficult", "crowd"))), max_size=20)


def rows(image: list[int], given: list[tuple[int, ...]], **values: list[Any]) -> ClassRows:
    order = np.argsort(image, kind="stable")
    columns = {
        name: np.array(column, dtype=np.bool_ if name != "scores" else np.float32)[order]
        for name, column in values.items()
    }
    return ClassRows(
        np.array(image, dtype=np.int64)[order], np.array(given, dtype=np.float64).reshape(-1, 4)[order], columns
    )


def detections(*given: tuple[int, tuple[int, ...], float]) -> ClassRows:
    """Rows of (image, box, score)."""
    return rows([image for image, _, _ in given], [box for _, box, _ in given], scores=[score for *_, score in given])


def objects(*given: tuple[int, tuple[int, ...], str]) -> ClassRows:
    """Rows of (image, box, what it is besides an object)."""
    kinds = {name: [kind == name for *_, kind in given] for name in ("difficult", "crowd")}
    return rows([image for image, _, _ in given], [box for _, box, _ in given], **kinds)


def agreed(found: ClassRows, there: ClassRows) -> np.ndarray:
    """The precision, which must be that of pycocotools to the last bit."""
    precision = coco_precision(found, there)
    np.testing.assert_array_equal(precision, pycocotools_precision(found, there))
    return precision


@settings(max_examples=250, deadline=None)
@given(found, wanted)
def test_it_is_that_of_pycocotools_to_the_last_bit(
    found: list[tuple[int, tuple[int, ...], int]], wanted: list[tuple[int, tuple[int, ...], str]]
) -> None:
    wanted = [*wanted, (0, SQUARE, "")]
    precision = agreed(detections(*found), objects(*wanted))
    event(f"something is found: {precision.max() > 0}")


@pytest.mark.parametrize("seed", range(4))
def test_it_is_that_of_pycocotools_in_crowded_images(seed: int) -> None:
    random = np.random.default_rng(seed)
    there = [
        (int(image), (*random.integers(0, 30, 2), *random.integers(20, 30, 2)), str(kind))
        for image, kind in zip(
            random.integers(0, 3, 60), random.choice(["", "", "difficult", "crowd"], 60), strict=True
        )
    ]
    found = [
        (image, tuple(np.add(box, random.integers(-3, 4, 4))), random.integers(0, 50) / 50)
        for image, box, _ in (there[place] for place in random.integers(0, 60, 500))
    ]
    assert 0.1 < agreed(detections(*found), objects(*there)).mean() < 0.9


@pytest.mark.parametrize("height", range(9, 21))
def test_an_overlap_of_exactly_a_threshold_reaches_it(height: int) -> None:
    precision = agreed(detections((0, (0, 0, 20, height), 0.9)), objects((0, SQUARE, "")))
    reached = [height / 20 >= iou for iou in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)]
    np.testing.assert_array_equal(precision[:, 0] > 0, reached)


def test_a_free_object_is_left_to_the_detection_that_has_no_better_one() -> None:
    # The first takes the upper object, though it overlaps the lower too; the second would rather have the upper.
    upper, lower = (0, 0, 20, 20), (0, 2, 20, 20)
    found = detections((0, upper, 0.9), (0, (0, 1, 20, 19), 0.8), (0, (0, 4, 20, 20), 0.7))
    precision = agreed(found, objects((0, upper, ""), (0, lower, "")))
    np.testing.assert_allclose(precision[0], 1)


def test_of_objects_overlapped_alike_the_last_is_taken() -> None:
    first, last = (0, 0, 20, 20), (0, 10, 20, 20)
    found = detections((0, (0, 5, 20, 20), 0.9), (0, first, 0.8))
    np.testing.assert_allclose(agreed(found, objects((0, first, ""), (0, last, "")))[0], 1)
    assert agreed(found, objects((0, last, ""), (0, first, "")))[0, -1] == 0


def test_detections_after_the_hundredth_of_an_image_do_not_count() -> None:
    far = (100, 100, 20, 20)
    early, late = ([(0, far, 0.9)] * count + [(0, SQUARE, 0.5), (1, SQUARE, 0.4)] for count in (99, 100))
    there = objects((0, SQUARE, ""), (1, SQUARE, ""))
    assert agreed(detections(*early), there)[0, -1] == pytest.approx(2 / 101)
    assert agreed(detections(*late), there)[0, 50] == pytest.approx(1 / 101)
    assert agreed(detections(*late), there)[0, 51] == 0


@pytest.mark.parametrize(("kinds", "expected"), [(("difficult", ""), 0), (("", "difficult"), 1)])
def test_of_objects_overlapped_alike_voc_compares_the_first(kinds: tuple[str, str], expected: float) -> None:
    there = objects(*((0, SQUARE, kind) for kind in kinds))
    assert voc_precision(detections((0, SQUARE, 0.9)), there)[0] == expected


@pytest.mark.parametrize(("height", "expected"), [(10, 1), (9, 0)])
def test_an_overlap_of_exactly_a_half_is_enough_for_voc(height: int, expected: float) -> None:
    assert voc_precision(detections((0, (0, 0, 20, height), 0.9)), objects((0, SQUARE, "")))[0] == expected


def test_voc_counts_every_detection() -> None:
    found = detections(*([(0, (100, 100, 20, 20), 0.9)] * 150), (0, SQUARE, 0.5))
    assert voc_precision(found, objects((0, SQUARE, "")))[0] == pytest.approx(1 / 151)
