"""What a full disk and a place that cannot be written to, or read, are told as."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.folder import RunFolder, run_folders, write_out
from data_prep.errors import AffsupError


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize(
    ("write", "resumes"),
    [
        (lambda place: write_out(place / "x.csv", b"1"), False),
        (lambda place: save_checkpoint(place / "last.pt", {}), True),
        (lambda place: RunFolder(place).write_result({"kind": "train"}), True),
        (lambda place: RunFolder(place).append_metrics({"epoch": 1}), True),
    ],
)
def test_on_a_full_disk_only_training_is_told_to_resume(
    tmp_path: Path, full: None, write: Callable[[Path], None], resumes: bool
) -> None:
    with pytest.raises(AffsupError, match=r"no space to write .* Make room and run the command again") as error:
        write(tmp_path)
    assert ("train --resume" in str(error.value)) == resumes


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    write_out(tmp_path / "a" / "b" / "x.csv", b"1")
    assert (tmp_path / "a" / "b" / "x.csv").read_bytes() == b"1"


def test_a_run_folder_that_may_not_be_entered_is_there_but_cannot_be_read(closed: Path) -> None:
    (run,) = run_folders(closed.parent)
    assert run.exists
    assert not run.finished
    with pytest.raises(AffsupError, match=r"closed/recipe\.toml cannot be read: Permission denied"):
        run.recipe()
