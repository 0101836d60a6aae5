from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from affsup_cli.runs.examples import read_examples, write_examples
from data_prep.errors import AffsupError
from tests.reporting.fake_examples import CLASSES, DOG, PERSON, SHEEP, make_example

EXAMPLES = [make_example(42, [SHEEP, PERSON, DOG]), make_example(7, [SHEEP], partners=0), make_example(9, [])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_examples(tmp_path / "examples.h5", CLASSES, EXAMPLES)
    return tmp_path / "examples.h5"


def test_what_is_read_is_what_was_written(path: Path) -> None:
    classes, examples = read_examples(path)
    assert classes == CLASSES
    assert [(example.image_id, example.name) for example in examples] == [
        (42, "image42.jpg"),
        (7, "image7.jpg"),
        (9, "image9.jpg"),
    ]
    for found, written in zip(examples, EXAMPLES, strict=True):
        for field in dataclasses.fields(written)[2:]:
            value, expected = getattr(found, field.name), getattr(written, field.name)
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)


def test_many_examples_keep_their_order(tmp_path: Path) -> None:
    write_examples(tmp_path / "many.h5", CLASSES, [make_example(number, [SHEEP]) for number in range(12)])
    assert [example.image_id for example in read_examples(tmp_path / "many.h5")[1]] == list(range(12))


def test_partners_are_those_that_are_there() -> None:
    boxes, weights = EXAMPLES[0].partners(0)
    np.testing.assert_array_equal(boxes, EXAMPLES[0].gt_boxes[[1, 2]])
    assert weights.tolist() == [0.5, 0.25]


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    broken = dataclasses.replace(EXAMPLES[0], image="no picture")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid literal"):
        write_examples(tmp_path / "examples.h5", CLASSES, [broken])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AffsupError, match=r"examples\.h5 is missing"):
        read_examples(tmp_path / "examples.h5")


def test_a_file_cut_short_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(AffsupError, match=r"examples\.h5 is damaged"):
        read_examples(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("gt_boxes", np.zeros((3, 5), np.float32), r"gt_boxes' has shape \[3, 5\], expected \[n, 4\]"),
        ("gt_labels", np.zeros(2, np.int64), r"gt_labels: found int64 \(2,\), expected int64 \(3,\)"),
        ("image", np.zeros((5, 5, 3), np.float32), "image' is float32"),
        ("partner_weights", np.zeros((3, 9), np.float32), r"partner_weights: found float32 \(3, 9\)"),
        ("gt_labels", np.full(3, 3), "gt_labels: expected indices below 3"),
        ("gt_pairs", np.full((1, 2), -1), "gt_pairs: expected indices below 3"),
        ("reference_boxes", None, "reference_boxes"),
        ("gt_labels", h5py.SoftLink("/000000/gt_pairs"), "gt_labels' is a link to another path or file"),
        ("gt_labels", h5py.ExternalLink("other.h5", "x"), "gt_labels' is a link to another path or file"),
    ],
)
def test_what_does_not_fit_is_named(path: Path, name: str, value: object, said: str) -> None:
    with h5py.File(path, "r+") as file:
        del file["000000"][name]
        if value is not None:
            file["000000"][name] = value
    with pytest.raises(AffsupError, match=rf"examples\.h5 is damaged.*{said}"):
        read_examples(path)
