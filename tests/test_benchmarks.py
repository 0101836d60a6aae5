"""The table in benchmarks/README.md says what the results beside it say."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    spec = importlib.util.spec_from_file_location("summary", FOLDER / "summary.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


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
