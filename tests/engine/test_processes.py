from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from affsup_cli.engine.processes import run_processes
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.errors import UsageError
from affsup_cli.recipe import load_recipe
from affsup_cli.tasks.launch import train_run

FIELDS = {"train.epochs": 4, "train.batch_size": 431, "affinity.measure": False, "run.device": "cpu"}
CALL = [
    *("train", "minibatch", "--device", "cpu", "--epochs", "4", "--name", "run"),
    *("--set", "train.batch_size=431", "--set", "affinity.measure=false"),
]

linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks up processes in /proc")


def start(data: Path, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "AFFSUP_DATA": str(data), "AFFSUP_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def of_rank(rank: int, parent: int) -> int:
    """The process id of a child by the RANK in its environment."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = (
        int(child) for child in children if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0")
    )
    return found


@pytest.fixture(scope="module")
def killed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, int, str, str]:
    """A run of two processes whose second is killed after the first epoch: its folder, exit code, and what it said."""
    runs = tmp_path_factory.mktemp("runs")
    with start(digits, runs, "affsup_cli", *CALL, "--gpus", "2") as process:
        assert process.stdout
        said = ""
        while "epoch 1:" not in said:
            line = process.stdout.readline()
            assert line, said + (process.stderr.read() if process.stderr else "")
            said += line
        os.kill(of_rank(1, process.pid), signal.SIGKILL)
        rest, errors = process.communicate()
    return RunFolder(runs / "run"), process.returncode, said + rest, errors


@linux
def test_a_process_that_is_killed_ends_the_run_with_a_message(killed: tuple[RunFolder, int, str, str]) -> None:
    run, code, said, errors = killed
    assert code == 1
    assert "2 processes, each with 215 or 216 of the 431 images of a step" in said
    assert "affsup: process 2 of 2 was killed (SIGKILL), and the others have left" in errors
    assert "another process of this run has ended, and this one with it: what was saved last" in errors
    assert "Traceback" not in errors
    assert run.exists
    assert not run.finished
    assert run.environment()["processes"] == {"count": 2, "images_each": [216, 215]}


@linux
def test_a_run_of_two_processes_goes_on_with_one(
    killed: tuple[RunFolder, int, str, str], digits: Path, tmp_path: Path
) -> None:
    copy = RunFolder(Path(shutil.copytree(killed[0].path, tmp_path / "run")))
    train_run(load_recipe("minibatch", FIELDS), digits, copy, resume=True)
    assert copy.finished
    assert [record["epoch"] for record in copy.metrics()] == [1, 2, 3, 4]
    first = json.loads((killed[0].path / "metrics.jsonl").read_text().splitlines()[0])
    assert copy.metrics()[0] == first


@linux
def test_torchrun_resumes_a_run(killed: tuple[RunFolder, int, str, str], digits: Path, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(killed[0].path, tmp_path / "run")))
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "affsup_cli")
    with start(digits, tmp_path, *torchrun, *CALL, "--resume") as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert copy.finished
    assert said.count("test_accuracy") == 1
    assert [record["epoch"] for record in copy.metrics()] == [1, 2, 3, 4]


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"--gpus 2: this machine has 1 CUDA device; --device cpu runs as many"):
        run_processes(2, "auto", [])
