from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import affsup_cli
from affsup_cli.runtime.subprocess_command import subprocess_command


def test_files_of_the_folder_that_one_is_in_are_no_modules(tmp_path: Path) -> None:
    for name in ("queue.py", "affsup_cli.py", "typer.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file')")
    command, environment = subprocess_command("affsup_cli")
    done = subprocess.run([*command, "--version"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"affsup {affsup_cli.__version__}\n"), done.stderr


def test_a_path_of_ones_own_comes_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "mine")
    _, environment = subprocess_command("affsup_cli")
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(Path(affsup_cli.__file__).parent.parent), "mine"]
