"""The table in benchmarks/README.md shows the results beside it; what the scripts share works."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    return script("summary")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    shutil.copytree(FOLDER / "results", folder, ignore=lambda _, names: [n for n in names if not n.endswith(".csv")])
    return folder


def test_the_readme_shows_the_results_as_they_are(summary: ModuleType) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    same = summary.rewritten(readme, FOLDER / "results") == readme
    assert same, "run: python benchmarks/summary.py"


def test_every_script_of_a_result_is_there(summary: ModuleType) -> None:
    assert {benchmark.script for benchmark in summary.BENCHMARKS} <= {path.stem for path in FOLDER.glob("*.py")}


def test_a_new_number_changes_the_table_and_nothing_else(summary: ModuleType, results: Path) -> None:
    path = results / "affinity_cost-cpu.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[0]["ratio"] = "7.77"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n"
    made = summary.rewritten(text, results)
    assert "| 7.77 *missed* float32, 1.0" in made
    assert made.startswith(f"before\n{summary.BEGIN}\n| script |")
    assert made.endswith(f"|\n{summary.END}\nafter\n")
    assert "old" not in made


def test_a_result_that_no_line_shows_is_named(summary: ModuleType, results: Path) -> None:
    (results / "something-cpu.csv").write_text("a\n1\n")
    with pytest.raises(SystemExit, match=r"something-cpu\.csv"):
        summary.table(results)


def test_each_way_is_timed_first_in_every_second_round() -> None:
    called: list[str] = []
    ways = (lambda: called.append("reference"), lambda: called.append("ours"))
    script("turns").compare(*ways, torch.device("cpu"), rounds=4)
    firsts = called[2::2]  # after the round that is not timed
    assert firsts == ["reference", "ours", "reference", "ours"]
    assert called[3::2] == ["ours", "reference", "ours", "reference"]
