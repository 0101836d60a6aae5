from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from affsup_cli.metrics.detection import DetectionPrecision, Evaluator

CLASSES = ("sheep", "person", "dog", "boat")
OBJECT = [10.0, 10, 50, 50]
FAR = [200.0, 200, 240, 240]

Image = dict[str, Any]


def image(
    *detections: tuple[list[float], float, int],
    objects: list[tuple[list[float], int]],
    difficult: tuple[int, ...] = (),
    crowd: tuple[int, ...] = (),
) -> Image:
    """An image as `update` takes it; `difficult` and `crowd` are places in `objects`."""
    return {
        "boxes": np.array([box for box, _, _ in detections], dtype=np.float32).reshape(-1, 4),
        "scores": np.array([score for _, score, _ in detections], dtype=np.float32),
        "labels": np.array([label for _, _, label in detections], dtype=np.int64),
        "gt_boxes": np.array([box for box, _ in objects], dtype=np.float32).reshape(-1, 4),
        "gt_labels": np.array([label for _, label in objects], dtype=np.int64),
        "difficult": np.isin(np.arange(len(objects)), difficult),
        "crowd": np.isin(np.arange(len(objects)), crowd),
    }


def precision_of(*images: Image, evaluator: Evaluator = "arrays") -> dict[str, float]:
    metric = DetectionPrecision(CLASSES, evaluator)
    for number, given in enumerate(images, start=1):
        metric.update(number, **given)
    return metric.compute()


def random_images(seed: int, count: int = 12) -> list[Image]:
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        objects = random.integers(0, 7)
        corner, size = random.uniform(0, 200, (objects, 2)), random.uniform(10, 120, (objects, 2))
        gt_boxes = np.hstack((corner, corner + size)).astype(np.float32)
        near = random.integers(0, max(objects, 1), 15)
        boxes = (gt_boxes[near] if objects else np.tile(np.float32(OBJECT), (15, 1))) + random.normal(0, 6, (15, 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        gt_labels = random.integers(0, 3, objects)
        images.append(
            {
                "boxes": boxes.astype(np.float32),
                # Few values: scores tie within and between images.
                "scores": (random.integers(1, 12, 15) / 16).astype(np.float32),
                "labels": np.where(
                    random.random(15) < 0.8, gt_labels[near] if objects else 0, random.integers(0, 4, 15)
                ),
                "gt_boxes": gt_boxes,
                "gt_labels": gt_labels,
                "difficult": np.zeros(objects, dtype=bool),
                "crowd": random.random(objects) < 0.15,
            }
        )
    return images


def by_hand(images: list[Image], classes: int) -> tuple[float, float]:
    """mAP of pycocotools as anyone runs it on COCO's two JSON files."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, given in enumerate(images, start=1):
        for box, label, crowd in zip(
            given["gt_boxes"].tolist(), given["gt_labels"].tolist(), given["crowd"], strict=True
        ):
            x1, y1, x2, y2 = box
            size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 10,
                    "iscrowd": int(crowd),
                    **size,
                }
            )
        for box, label, score in zip(*(given[name].tolist() for name in ("boxes", "labels", "scores")), strict=True):
            x1, y1, x2, y2 = box
            bbox = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": number, "category_id": label + 10, "bbox": bbox, "score": score})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": label + 10} for label in range(classes)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[1]


def voc07_oracle(images: list[Image], label: int) -> float:
    """AP of one class by the published text: Everingham et al. 2010, section 4.2, with 1 added as in the devkit."""
    claims = sorted(
        (
            (-score, number, box)
            for number, given in enumerate(images)
            for box, score, of in zip(*(given[name].tolist() for name in ("boxes", "scores", "labels")), strict=True)
            if of == label
        ),
        key=lambda claim: claim[0],
    )
    positives = sum(int(((g["gt_labels"] == label) & ~g["difficult"] & ~g["crowd"]).sum()) for g in images)
    taken: set[tuple[int, int]] = set()
    true, false, curve = 0, 0, []
    for _, number, box in claims:
        given = images[number]
        overlaps = [
            (pixel_overlap(box, given["gt_boxes"][place].tolist()), -place)
            for place in np.flatnonzero(given["gt_labels"] == label).tolist()
        ]
        overlap, place = max(overlaps, default=(0.0, 0))
        place = -place
        if overlap >= 0.5:
            if given["difficult"][place] or given["crowd"][place]:
                continue
            true, false = (true, false + 1) if (number, place) in taken else (true + 1, false)
            taken.add((number, place))
        else:
            false += 1
        curve.append((true, true / (true + false)))
    recalls = np.arange(0, 1.1, 0.1)  # as in the devkit: 0.30000000000000004
    return sum(max([p for t, p in curve if t / positives >= level], default=0.0) for level in recalls) / 11


def pixel_overlap(a: list[float], b: list[float]) -> float:
    """Overlap of inclusive pixel boxes that count from 1, as the devkit has them."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = ([x1 + 1, y1 + 1, x2, y2] for x1, y1, x2, y2 in (a, b))
    width, height = min(ax2, bx2) - max(ax1, bx1) + 1, min(ay2, by2) - max(ay1, by1) + 1
    if width <= 0 or height <= 0:
        return 0.0
    union = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1) - width * height
    return width * height / union


@pytest.mark.parametrize("evaluator", get_args(Evaluator))
@pytest.mark.parametrize("seed", range(6))
def test_mean_average_precision_is_that_of_pycocotools(seed: int, evaluator: Evaluator) -> None:
    images = random_images(seed)
    measured = precision_of(*images, evaluator=evaluator)
    assert (measured["map_all"], measured["map_50"]) == by_hand(images, len(CLASSES))
    assert 0 < measured["map_all"] < measured["map_50"] < 1


@pytest.mark.parametrize("seed", range(6))
def test_the_11_point_precision_is_that_of_the_published_text(seed: int) -> None:
    images = random_images(seed)
    for given in images:
        given["difficult"] = np.random.default_rng(seed).random(len(given["gt_labels"])) < 0.2
        given["crowd"][:] = False
    expected = [voc07_oracle(images, label) for label in range(3)]  # there is no boat
    assert precision_of(*images)["map_50_voc07"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_the_11_point_precision_of_a_curve_worked_out_on_paper() -> None:
    # True, false, true of three objects: recall 1/3 at precision 1, 2/3 at 2/3. Recalls 0 to 0.3 and 0.4 to 0.6.
    objects = [([x, 0.0, x + 10, 10], 0) for x in (0.0, 20, 40)]
    found = image((objects[0][0], 0.9, 0), (FAR, 0.8, 0), (objects[1][0], 0.7, 0), objects=objects)
    assert precision_of(found)["map_50_voc07"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert precision_of(found)["map_50_area"] == pytest.approx((1 + 2 / 3) / 3)


@pytest.mark.parametrize(("found", "levels"), [(2, 3), (3, 3), (4, 5), (6, 6), (7, 7), (8, 9), (10, 11)])
def test_three_six_and_seven_of_ten_objects_do_not_reach_the_devkits_recall(found: int, levels: int) -> None:
    objects = [([x, 0.0, x + 10, 10], 0) for x in range(0, 200, 20)]
    some = image(*((box, 0.9, 0) for box, _ in objects[:found]), objects=objects)
    assert precision_of(some)["map_50_voc07"] == pytest.approx(levels / 11)
    assert precision_of(some)["map_50_area"] == pytest.approx(found / 10)


def test_a_detection_found_twice_is_false_the_second_time() -> None:
    twice = image((OBJECT, 0.9, 0), (OBJECT, 0.8, 0), (FAR, 0.7, 0), objects=[(OBJECT, 0), (FAR, 0)])
    measured = precision_of(twice)
    assert measured["map_50_voc07"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert measured["map_50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_a_difficult_object_counts_neither_for_nor_against() -> None:
    objects = [(OBJECT, 0), (FAR, 0)]
    both = image((FAR, 0.9, 0), (OBJECT, 0.8, 0), objects=objects, difficult=(1,))
    missed = image((OBJECT, 0.8, 0), objects=objects, difficult=(1,))
    often = image((FAR, 0.9, 0), (FAR, 0.85, 0), (FAR, 0.84, 0), (OBJECT, 0.8, 0), objects=objects, difficult=(1,))
    perfect = {"map_all": 1, "map_50": 1, "map_50_voc07": 1, "map_50_area": 1}
    assert precision_of(both) == precision_of(missed) == precision_of(often) == pytest.approx(perfect)


def test_a_part_of_a_difficult_object_is_no_detection_of_it() -> None:
    part = [FAR[0], FAR[1], FAR[0] + 10, FAR[1] + 10]
    found = image((part, 0.9, 0), (OBJECT, 0.8, 0), objects=[(OBJECT, 0), (FAR, 0)], difficult=(1,))
    assert precision_of(found)["map_50"] == pytest.approx(0.5)


def test_a_crowd_takes_any_number_of_detections_by_the_share_that_lies_inside() -> None:
    wide = [100.0, 100, 300, 300]
    inside = [([100.0 + 20 * place, 100, 120 + 20 * place, 120], 0.9, 0) for place in range(5)]
    given = image(*inside, (OBJECT, 0.5, 0), objects=[(OBJECT, 0), (wide, 0)], crowd=(1,))
    measured = precision_of(given)
    assert (measured["map_all"], measured["map_50"]) == pytest.approx((1, 1))


def test_a_class_without_an_object_does_not_count() -> None:
    found = image((OBJECT, 0.9, 0), (FAR, 0.9, 1), (FAR, 0.8, 2), objects=[(OBJECT, 0), (FAR, 2)], difficult=(1,))
    assert precision_of(found) == pytest.approx({"map_all": 1, "map_50": 1, "map_50_voc07": 1, "map_50_area": 1})


def test_classes_count_alike() -> None:
    found = image((OBJECT, 0.9, 0), objects=[(OBJECT, 0), (FAR, 1)])
    assert precision_of(found) == pytest.approx(
        {"map_all": 0.5, "map_50": 0.5, "map_50_voc07": 0.5, "map_50_area": 0.5}
    )


def test_an_object_of_another_class_is_not_found() -> None:
    assert precision_of(image((OBJECT, 0.9, 1), objects=[(OBJECT, 0)]))["map_50_voc07"] == 0


def test_a_detection_in_another_image_finds_nothing() -> None:
    assert precision_of(image((OBJECT, 0.9, 0), objects=[]), image(objects=[(OBJECT, 0)]))["map_50"] == 0


def test_objects_without_detections_make_zero() -> None:
    assert precision_of(image(objects=[(OBJECT, 0)])) == {
        "map_all": 0,
        "map_50": 0,
        "map_50_voc07": 0,
        "map_50_area": 0,
    }


@pytest.mark.parametrize(
    "images", [[], [image((OBJECT, 0.9, 0), objects=[])], [image(objects=[(OBJECT, 0)], difficult=(0,))]]
)
def test_without_an_object_to_be_found_the_mean_is_nan(images: list[Image]) -> None:
    assert all(math.isnan(value) for value in precision_of(*images).values())


def test_the_order_of_images_does_not_matter() -> None:
    images = random_images(3)
    metric = DetectionPrecision(CLASSES)
    for number in reversed(range(len(images))):
        metric.update(number + 1, **images[number])
    assert metric.compute() == precision_of(*images)


def test_tensors_are_taken_like_arrays_and_nothing_is_printed(
    device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    images = random_images(4)
    tensors = [{name: torch.as_tensor(value).to(device) for name, value in given.items()} for given in images]
    assert precision_of(*tensors) == precision_of(*images)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("evaluator", get_args(Evaluator))
def test_pycocotools_evaluates_only_where_it_is_asked_to(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[COCOeval] = []
    evaluate = COCOeval.evaluate
    monkeypatch.setattr(COCOeval, "evaluate", lambda self: (asked.append(self), evaluate(self)))
    precision_of(*random_images(3), evaluator=evaluator)
    assert bool(asked) == (evaluator == "pycocotools")


def test_results_are_written_as_coco_has_them() -> None:
    metric = DetectionPrecision(CLASSES)
    metric.update(7, **image((FAR, 0.5, 2), (OBJECT, 0.25, 0), objects=[]))
    metric.update(9, **image((OBJECT, 0.75, 1), objects=[(OBJECT, 0)]))
    assert list(metric.coco_results([20, 1, 18, 9])) == [
        {"image_id": 7, "category_id": 18, "bbox": [200, 200, 40, 40], "score": 0.5},
        {"image_id": 7, "category_id": 20, "bbox": [10, 10, 40, 40], "score": 0.25},
        {"image_id": 9, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.75},
    ]
    with pytest.raises(ValueError, match="one a class, found 2"):
        list(metric.coco_results([1, 2]))


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("labels", np.array([4]), "labels must be in 0..3"),
        ("gt_labels", np.array([-1]), "gt_labels must be in 0..3"),
        ("scores", np.zeros(2), r"scores must have the shape \(1,\)"),
        ("gt_boxes", np.zeros((1, 5)), r"boxes must have the shape \(1, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(name: str, wrong: np.ndarray, said: str) -> None:
    given = image((OBJECT, 0.9, 0), objects=[(OBJECT, 0)]) | {name: wrong}
    with pytest.raises(ValueError, match=f"image 5: {said}"):
        DetectionPrecision(CLASSES).update(5, **given)


@pytest.mark.real_data
def test_perfect_detections_of_real_annotations_are_perfect_and_shifted_ones_are_not(real_data: Path) -> None:
    names: dict[str, int] = {}
    perfect, shifted = [], []
    for path in sorted((real_data / "voc_mini/VOCdevkit/VOC2007/Annotations").glob("*.xml"))[:200]:
        objects = [
            (
                [float(each.findtext(f"bndbox/{corner}", "")) for corner in ("xmin", "ymin", "xmax", "ymax")],
                names.setdefault(each.findtext("name", ""), len(names)),
            )
            for each in ElementTree.parse(path).iter("object")
        ]
        objects = [([x1 - 1, y1 - 1, x2, y2], label) for (x1, y1, x2, y2), label in objects]
        perfect.append(image(*((box, 0.9, label) for box, label in objects), objects=objects))
        moved = [([x1, y1 + (y2 - y1) / 4, x2, y2 + (y2 - y1) / 4], label) for (x1, y1, x2, y2), label in objects]
        shifted.append(image(*((box, 0.9, label) for box, label in moved), objects=objects))
    for images, expected in ((perfect, 1.0), (shifted, None)):
        metric = DetectionPrecision(tuple(names))
        for number, given in enumerate(images):
            metric.update(number, **given)
        measured = metric.compute()
        # Shifted by a quarter of its height a box overlaps its object by 0.6: found at two or three of 10 overlaps.
        assert measured["map_all"] == pytest.approx(expected or 0.25, abs=0 if expected else 0.06)
        assert measured["map_50_voc07"] > 0.85
    assert measured["map_50_voc07"] == pytest.approx(
        np.mean([voc07_oracle(shifted, label) for label in range(len(names))]), abs=1e-12
    )


@pytest.mark.real_data
def test_moved_boxes_of_real_annotations_are_evaluated_as_by_pycocotools(real_data: Path) -> None:
    content = json.loads((real_data / "coco_mini/annotations/instances_val2017.json").read_text(encoding="utf-8"))
    labels = {category["id"]: place for place, category in enumerate(content["categories"])}
    random = np.random.default_rng(0)
    images = []
    for number in (entry["id"] for entry in content["images"]):
        there = [entry for entry in content["annotations"] if entry["image_id"] == number]
        corners = [(x, y, x + width, y + height) for x, y, width, height in (entry["bbox"] for entry in there)]
        crowd = tuple(place for place, entry in enumerate(there) if entry["iscrowd"])
        objects = [(list(box), labels[entry["category_id"]]) for box, entry in zip(corners, there, strict=True)]
        found = []
        for box, label in objects * 4:
            left, top, right, bottom = box + random.normal(0, 0.1, 4) * np.tile(np.subtract(box[2:], box[:2]), 2)
            if left < right and top < bottom:
                found.append(([left, top, right, bottom], random.random(), label))
        images.append(image(*found, objects=objects, crowd=crowd))
    assert any(given["crowd"].any() for given in images)
    metric = DetectionPrecision([str(label) for label in labels])
    for number, given in enumerate(images, start=1):
        metric.update(number, **given)
    measured = metric.compute()
    assert (measured["map_all"], measured["map_50"]) == by_hand(images, len(labels))
    assert 0.05 < measured["map_all"] < measured["map_50"] < 0.9
