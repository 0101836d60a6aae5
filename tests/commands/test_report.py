from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from affsup_cli.commands.report import report
from affsup_cli.reporting.select.spec import paper_names
from data_prep.errors import AffsupError, UsageError
from tests.reporting.fake_runs import BASE, SHORT, RunMaker


def invoke(*arguments: str, **environment: str) -> Result:
    app = typer.Typer()
    app.command()(report)
    return CliRunner(env={"COLUMNS": "160", **environment}).invoke(app, arguments)


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    return RunMaker(tmp_path / "runs")


def test_a_table_is_printed_with_marks_and_the_paths_written(make: RunMaker, tmp_path: Path) -> None:
    make.train({**BASE, **SHORT}, 0.5)
    result = invoke("table3", "--runs", str(make.root), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "91.34 ± 0.27" in result.output
    assert "50.00 (1) ᵃ" in result.output
    assert "ᵃ train.epochs = 2 instead of 200" in result.output
    for name in ("table3.md", "table3.csv", "table3.cells.csv"):
        assert (tmp_path / "out" / name).is_file()
        assert name in result.output


def test_brackets_are_printed_as_they_are(make: RunMaker, tmp_path: Path) -> None:
    for seed, accuracy in enumerate([0.90, 0.91]):
        make.train(BASE, accuracy, seed)
        make.train({**BASE, "affinity.loss": "focal"}, accuracy + 0.01, seed)
    result = invoke("table3", "--runs", str(make.root), "--out", str(tmp_path / "out"))
    assert "+1.00 [+1.00, +1.00] (2)" in result.output


@pytest.mark.parametrize("names", [["all"], []])
def test_all_is_what_the_paper_has_and_so_is_no_name(tmp_path: Path, names: list[str]) -> None:
    result = invoke(*names, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0
    pages = {path.stem for path in (tmp_path / "out").glob("*.md")}
    assert pages == set(paper_names())
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for name in paper_names():
        assert f"affsup sweep {name}" in result.output
        assert f'id="{name}"' in index


def test_the_page_holds_the_reports_of_the_call(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = invoke("table3", "figure5", "--runs", str(tmp_path / "runs"), "--out", out)
    assert result.output.splitlines()[-1].endswith("index.html")
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert ['id="table3"' in index, 'id="figure5"' in index, 'id="table1"' in index] == [True, True, False]


def test_tables_can_be_had_as_latex(tmp_path: Path) -> None:
    places = ("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert invoke("table3", "--format", "tex", *places).exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table3.tex", "index.html"}


def test_an_unknown_format_writes_nothing(tmp_path: Path) -> None:
    result = invoke("table3", "--format", "csv,doc", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, UsageError)
    assert "no format 'doc': known are csv, md, tex" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_off_a_terminal_no_column_is_folded(tmp_path: Path) -> None:
    result = invoke("table1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    lines = result.output.splitlines()
    (ours,) = [line for line in lines if line.split()[:2] == ["mAP@all", "(%)"] and "47.7 ± 0.1" in line]
    assert "48.6 ± 0.1" in ours


def test_of_several_reports_long_footnotes_and_notes_are_shortened(make: RunMaker, tmp_path: Path) -> None:
    long = {**SHORT, "train.batch_size": 64, "train.momentum": 0.8, "train.weight_decay": 0.001, "data.flip": False}
    make.train({**BASE, **long}, 0.9)
    for number in range(6):
        make.start({**BASE, **SHORT}, seed=number + 1)
    places = ("--runs", str(make.root), "--out", str(tmp_path / "out"))
    alone = invoke("table3", *places).output
    among = invoke("table3", "table1", *places).output
    assert alone.count("Not finished") == 6
    assert "data.flip = false instead of true" in alone
    assert among.count("Not finished") == 3
    assert "- 3 more notes on its page" in among
    assert "`affsup sweep table3` trains them" in among
    assert "data.flip" not in among
    assert "Machine" not in among


def test_an_empty_machine_is_no_failure(tmp_path: Path) -> None:
    result = invoke("figure5", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "affsup sweep figure5" in result.output


def test_places_come_from_the_environment_too(make: RunMaker, tmp_path: Path) -> None:
    make.train(BASE, 0.9)
    result = invoke("table3", AFFSUP_RUNS=str(make.root), AFFSUP_REPORTS=str(tmp_path / "there"))
    assert "90.00 (1)" in result.output
    assert (tmp_path / "there" / "table3.csv").is_file()


def test_a_damaged_run_is_a_warning(make: RunMaker, tmp_path: Path) -> None:
    run = make.train(BASE, 0.9, name="damaged")
    (run.path / "result.json").write_text("{")
    result = invoke("table3", "--runs", str(make.root), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "warning: run damaged is left out" in result.output


def test_a_wrong_name_among_right_ones_writes_nothing(tmp_path: Path) -> None:
    result = invoke("table3", "tabel4", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, UsageError)
    assert "did you mean 'table4'?" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_help_shows_examples_and_loads_nothing_heavy() -> None:
    assert "affsup report table3 figure5" in invoke("--help").output
    code = """
import sys
import affsup_cli.commands.report
heavy = {"torch", "pandas", "matplotlib", "numpy", "pydantic"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_folder_in_place_of_the_folder_above_is_said(make: RunMaker, tmp_path: Path) -> None:
    run = make.train(BASE, 0.9)
    result = invoke("table3", "--runs", str(run.path), "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, UsageError)
    assert f"{run.path} is a run folder: --runs is the folder above it" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_no_folder_is_said(make: RunMaker) -> None:
    result = invoke("table3", "--runs", str(make.root), "--out", "/dev/full")
    assert isinstance(result.exception, AffsupError)
    assert "cannot write /dev/full/table3.md: /dev/full is not a folder. " in str(result.exception)
