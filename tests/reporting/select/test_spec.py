from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.reporting.select.spec import GridSpec, load_spec, paper_names, read_spec, report_names
from data_prep.errors import AffsupError, UsageError

GRID = """
kind = "grid"
title = "T"
caption = "C"
recipe = "minibatch"
metric = "test_accuracy"
scale = 100
compare = "rows"
baseline = "base"
treatments = ["affinity"]
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


def test_the_papers_tables_and_figures_come_first_in_its_order() -> None:
    tables, figures = (1, 2, 3, 4, 5, 6, 7, 8), (1, 4, 5, 6, 7, 9)
    paper = [*(f"table{number}" for number in tables), *(f"figure{number}" for number in figures)]
    assert paper_names() == paper
    assert report_names()[: len(paper)] == paper
    others = report_names()[len(paper) :]
    assert "demo" in others
    assert others == sorted(others)


def test_a_table_of_ones_own_is_listed_after_those_of_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tables").mkdir()
    for name in ("mine", "table10", "table2"):
        (tmp_path / "tables" / f"{name}.toml").write_text(GRID)
    monkeypatch.setattr("affsup_cli.reporting.select.spec.recipes_folder", lambda: tmp_path)
    assert report_names() == ["table2", "table10", "mine"]


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


def printed(name: str) -> dict[str, dict[str, dict[str, object]]]:
    """The paper's numbers: {block: {column: {row: number}}}."""
    spec = load_spec(name)
    assert isinstance(spec, GridSpec)
    return {block.label: {column.label: dict(column.paper) for column in block.columns} for block in spec.blocks}


def test_table1_holds_the_numbers_printed_in_the_paper() -> None:
    assert printed("table1") == {
        "VOC07": {
            "F-RCNN": {"map": 47.0, "map-50": 78.2},
            "RelNet": {"map": (47.7, 0.1), "map-50": (79.3, 0.2), "recall-5k": 43.5},
            "smooth L1": {"map": (48.0, 0.1), "map-50": (79.6, 0.2), "recall-5k": (60.3, 0.3)},
            "L2": {"map": (47.7, 0.2), "map-50": (79.7, 0.2), "recall-5k": (64.6, 0.5)},
            "γ = 0": {"map": (47.9, 0.2), "map-50": (79.4, 0.1), "recall-5k": (62.1, 0.3)},
            "γ = 2": {"map": (48.2, 0.1), "map-50": (79.9, 0.2), "recall-5k": (69.9, 0.3)},
            "γ = 5": {"map": (48.6, 0.1), "map-50": (80.0, 0.2), "recall-5k": (66.8, 0.2)},
        }
    }


def test_table5_holds_the_numbers_printed_in_the_paper() -> None:
    assert printed("table5") == {
        "VOC07": {
            "base F-RCNN": {"map": 47.0, "map-50": 78.2},
            "RelNet": {"map": (47.7, 0.1), "map-50": (79.3, 0.2)},
            "RelNet + L_G": {"map": (48.2, 0.1), "map-50": (79.9, 0.2)},
        },
        "mini COCO": {
            "base F-RCNN": {"map": 26.8, "map-50": 46.6},
            "RelNet": {"map": 27.5, "map-50": 47.4},
            "RelNet + L_G": {"map": 27.9, "map-50": 47.8},
        },
    }


def test_tables_6_and_7_hold_the_numbers_printed_in_the_paper() -> None:
    assert printed("table6") == {
        "COCO M": {
            "Training": {"relnet": 0.020, "affinity": 0.747},
            "Testing": {"relnet": 0.013, "affinity": 0.459},
        }
    }
    assert printed("table7") == {
        "VOC07 varying T": {
            "Diff-Instance": {"map": (47.6, 0.1), "map-50": (79.5, 0.2)},
            "Diff-Category": {"map": (48.2, 0.2), "map-50": (79.9, 0.2)},
        }
    }


def test_of_what_is_said_at_table_block_column_and_row_the_last_counts(tmp_path: Path) -> None:
    levels = {
        'metric = "test_accuracy"': "digits = 0",
        'label = "digits"': "digits = 1\nscale = 1",
        'label = "ResNet 20"': "digits = 3\nscale = 2",
        'label = "affinity"': 'digits = 4\nrecipe = "other"\nmetric = "test_mass"',
    }
    text = GRID
    for before, more in levels.items():
        text = text.replace(before, f"{before}\n{more}")
    spec = read_spec(write(tmp_path, text))
    assert isinstance(spec, GridSpec)
    base, affinity = spec.entries(spec.blocks[0])
    assert (base.recipe, base.metric, base.scale, base.digits) == ("minibatch", "test_accuracy", 2, 3)
    assert (affinity.recipe, affinity.metric, affinity.scale, affinity.digits) == ("other", "test_mass", 2, 4)


def test_settings_of_table_block_column_and_row_add_up_and_the_last_counts(tmp_path: Path) -> None:
    text = GRID.replace('recipe = "minibatch"', 'recipe = "minibatch"\nset = { a = 1, b = 1, c = 1, d = 1 }')
    text = text.replace('"data.name" = "digits"', "b = 2, c = 2, d = 2")
    text = text.replace('label = "ResNet 20"', 'label = "ResNet 20"\nset = { c = 3, d = 3 }')
    text = text.replace('label = "base"', 'label = "base"\nset = { d = 4 }')
    spec = read_spec(write(tmp_path, text))
    assert isinstance(spec, GridSpec)
    assert spec.entries(spec.blocks[0])[0].overrides == {"a": 1, "b": 2, "c": 3, "d": 4}


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
        ('["affinity"]', '["afinity"]', "no row afinity: the rows are base, affinity"),
        ('compare = "rows"', 'compare = "columns"', "no column affinity, base: the columns are resnet20"),
        ('recipe = "minibatch"', "", "digits/resnet20/base has no recipe"),
        ('metric = "test_accuracy"', "", "digits/resnet20/base has no metric"),
        (
            'label = "ResNet 20"',
            'label = "ResNet 20"\npaper = { bass = 91.3 }',
            "no row bass: the rows are base, affinity",
        ),
        ('key = "resnet20"', 'key = "ResNet 20"', "key"),
        (
            'label = "ResNet 20"',
            'label = "ResNet 20"\n[[blocks.columns]]\nkey = "resnet20"\nlabel = "again"',
            "the key resnet20 is used twice",
        ),
        ('label = "ResNet 20"', 'label = "ResNet 20"\npaper = { base = [91.3] }', "paper"),
        ('label = "ResNet 20"', 'label = "ResNet 20"\nelsewhere = { base = 91.7 }', "elsewhere needs the source"),
    ],
)
def test_a_fault_in_a_file_is_named_with_file_and_field(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in GRID
    with pytest.raises(AffsupError, match=message) as caught:
        read_spec(write(tmp_path, GRID.replace(before, after)))
    assert "table9.toml" in str(caught.value)
