"""Runs in Python: `affsup_cli.runs`, `curves` and `load`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import affsup_cli
from affsup_cli.runs.folder import RunFolder
from data_prep.errors import UsageError
from tests.reporting.fake_runs import RunMaker


def test_the_functions_are_those_whatever_was_imported_before(make: RunMaker) -> None:
    make.train({"affinity.gamma": 2.0}, 0.5, name="mine")
    for _ in range(2):
        found = affsup_cli.runs(make.root)
        assert found["run"].tolist() == ["mine"]
        assert found["test_accuracy"].tolist() == [0.5]
    assert RunFolder.__module__ == "affsup_cli.runs.folder"


@pytest.mark.parametrize("before", ["import affsup_cli.runs.folder", "affsup_cli.runs('none')", "pass"])
def test_a_new_process_has_the_functions_too(before: str, tmp_path: Path) -> None:
    twice = "print(len(runs('none')), len(affsup_cli.runs('none')))"
    code = f"import affsup_cli\n{before}\nfrom affsup_cli import runs\n{twice}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "0 0\n", done.stderr


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        affsup_cli.curves(tmp_path / "none")
    with pytest.raises(UsageError, match="is not a run folder"):
        affsup_cli.load(tmp_path / "none")
