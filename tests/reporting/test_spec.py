from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.errors import AffsupError, UsageError
from affsup_cli.reporting.spec import GridSpec, load_spec, paper_names, read_spec, report_names

GRID = """
kind = "grid"
title = "T"
caption = "C"
recipe = "minibatch"
metric = "test_accuracy"
scale = 100
baseline = "base"
treatment = "affinity"
[rows.base]
label = "base"
[rows.affinity]
label = "affinity"
[[blocks]]
key = "digits"
label = "digits"
seeds = 2
set = { "data.name" = "digits" }
[[blocks.columns]]
key = "resnet20"
label = "ResNet 20"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "table9.toml"
    path.write_text(text)
    return path


def test_names_are_in_the_papers_order_and_the_others_last() -> None:
    assert report_names() == ["table3", "table4", "figure5", "figure6", "demo", "demo-mass", "readings"]


def test_paper_names_leave_out_what_is_not_in_the_paper() -> None:
    assert paper_names() == ["table3", "table4", "figure5", "figure6"]


@pytest.mark.parametrize("name", report_names())
def test_every_shipped_file_is_valid(name: str) -> None:
    assert load_spec(name).title


def test_table3_holds_the_numbers_printed_in_the_paper() -> None:
    spec = load_spec("table3")
    assert isinstance(spec, GridSpec)
    printed = {
        (block.label, column.label): [column.paper[row] for row in ("base", "affinity")]
        for block in spec.blocks
        for column in block.columns
    }
    assert printed == {
        ("CIFAR-10", "ResNet 20"): [(91.34, 0.27), (92.03, 0.21)],
        ("CIFAR-10", "ResNet 56"): [(92.24, 0.48), (92.90, 0.35)],
        ("CIFAR-10", "ResNet 110"): [(92.64, 0.59), (93.42, 0.38)],
        ("CIFAR-100", "ResNet 20"): [(66.51, 0.46), (67.27, 0.31)],
        ("CIFAR-100", "ResNet 56"): [(68.36, 0.68), (69.79, 0.59)],
        ("CIFAR-100", "ResNet 110"): [(69.12, 0.63), (70.50, 0.60)],
        ("Tiny Imagenet", "ResNet 18"): [(48.35, 0.27), (49.30, 0.21)],
        ("Tiny Imagenet", "ResNet 50"): [(49.86, 0.80), (51.04, 0.68)],
        ("Tiny Imagenet", "ResNet 101"): [(50.72, 0.82), (51.82, 0.71)],
    }


def test_an_unknown_name_is_a_wrong_call_and_the_likely_one_is_offered() -> None:
    with pytest.raises(UsageError, match=r"no table or figure 'tabel3' \(did you mean 'table3'\?\)"):
        load_spec("tabel3")


def test_a_name_is_not_a_path() -> None:
    with pytest.raises(UsageError):
        load_spec("../minibatch")


def test_a_grid_as_in_the_files_is_read(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, GRID))
    assert isinstance(spec, GridSpec)
    assert spec.blocks[0].columns[0].paper == {}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('metric = "test_accuracy"', 'metrik = "test_accuracy"', "metri[ck]"),
        ("seeds = 2", 'seeds = "2"', r"seeds.*found '2'"),
        ("seeds = 2", "seeds = 0", "seeds"),
        ('kind = "grid"', 'kind = "pie"', "pie"),
        ('treatment = "affinity"', 'treatment = "afinity"', "no row afinity: the rows are base, affinity"),
        ('key = "resnet20"', 'key = "ResNet 20"', "key"),
        (
            'label = "ResNet 20"',
            'label = "ResNet 20"\n[[blocks.columns]]\nkey = "resnet20"\nlabel = "again"',
            "the key resnet20 stands twice",
        ),
        ('label = "ResNet 20"', 'label = "ResNet 20"\npaper = { base = [91.3] }', "paper"),
    ],
)
def test_a_fault_in_a_file_is_named_with_file_and_field(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in GRID
    with pytest.raises(AffsupError, match=message) as caught:
        read_spec(write(tmp_path, GRID.replace(before, after)))
    assert "table9.toml" in str(caught.value)
