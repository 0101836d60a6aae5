from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from affsup_cli.distributed import launch
from affsup_cli.distributed.launch import run_processes
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks.launch import train_run
from data_prep.errors import UsageError

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


def read_until(said: str, process: subprocess.Popen[str]) -> str:
    """Return what a process has printed up to the line that holds `said`."""
    assert process.stdout
    read = ""
    while said not in read:
        line = process.stdout.readline()
        assert line, read + (process.stderr.read() if process.stderr else "")
        read += line
    return read


@pytest.fixture(scope="module")
def killed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, int, str, str]:
    """A run of two processes whose second is killed after the first epoch: its folder, exit code, and what it said."""
    runs = tmp_path_factory.mktemp("runs")
    with start(digits, runs, "affsup_cli", *CALL, "--gpus", "2") as process:
        said = read_until("epoch 1:", process)
        os.kill(of_rank(1, process.pid), signal.SIGKILL)
        rest, errors = process.communicate()
    return RunFolder(runs / "run"), process.returncode, said + rest, errors


@linux
def test_a_process_that_is_killed_ends_the_run_with_a_message(killed: tuple[RunFolder, int, str, str]) -> None:
    run, code, said, errors = killed
    assert code == 1
    assert "2 processes, each with 215 or 216 of the 431 images of a step" in said
    assert "affsup: process 2 of 2 was killed (SIGKILL), and the others have exited" in errors
    assert "another process of this run has ended, or cannot be reached (" in errors
    assert "): the last checkpoint is in the run folder" in errors
    assert "Traceback" not in errors
    assert run.exists
    assert not run.finished
    assert run.environment()["processes"] == {"count": 2, "images_each": [216, 215]}
    assert "processes_when_resumed" not in run.environment()


@linux
def test_a_run_of_two_processes_goes_on_with_one(
    killed: tuple[RunFolder, int, str, str], digits: Path, tmp_path: Path
) -> None:
    copy = RunFolder(Path(shutil.copytree(killed[0].path, tmp_path / "run")))
    train_run(load_recipe("minibatch", FIELDS), digits, copy, resume=True)
    assert copy.finished
    assert [record["epoch"] for record in copy.metrics()] == [1, 2, 3, 4]
    assert copy.metrics()[0] == killed[0].metrics()[0]
    assert copy.environment() == {**killed[0].environment(), "processes_when_resumed": [1]}


def test_processes_whose_parent_is_killed_save_and_leave(digits: Path, tmp_path: Path) -> None:
    with start(digits, tmp_path, "affsup_cli", *CALL, "--epochs", "1000", "--gpus", "2") as process:
        read_until("epoch 1:", process)
        process.kill()
        try:
            _, errors = process.communicate(timeout=120)  # the two hold its end open
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    run = RunFolder(tmp_path / "run")
    state = torch.load(run.checkpoint, weights_only=True)
    assert f"stopped in epoch {state['epoch'] + 1} after step {state['step']} of" in errors
    assert "Traceback" not in errors
    assert not run.finished


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
    assert copy.environment() == killed[0].environment()


Scripts = tuple[list[str], list[subprocess.Popen[bytes]]]
WAITS = "import signal; signal.pause()"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """What each process of `run_processes` runs instead of affsup; and those that were started."""
    given: list[str] = []
    started: list[subprocess.Popen[bytes]] = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__([sys.executable, "-c", given[len(started)]], **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.2)
    return given, started


def test_the_exit_code_is_that_of_the_process_that_failed_not_of_one_that_is_made_to_leave(scripts: Scripts) -> None:
    scripts[0][:] = [WAITS, "raise SystemExit(3)"]
    assert run_processes(2, "cpu", []) == 3
    assert [process.returncode for process in scripts[1]] == [-signal.SIGTERM, 3]


def test_a_signal_while_processes_are_made_to_leave_does_not_leave_one(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess.Popen, "terminate", lambda _: signal.raise_signal(signal.SIGINT))
    scripts[0][:] = [WAITS, "raise SystemExit(3)"]
    assert run_processes(2, "cpu", []) == 3
    assert all(process.returncode for process in scripts[1])


def test_a_signal_while_processes_are_started_ends_those_that_were(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signalled(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__(command, **options)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Signalled)
    scripts[0][:] = [WAITS, WAITS]
    with pytest.raises(KeyboardInterrupt):
        run_processes(2, "cpu", [])
    assert [process.returncode for process in scripts[1]] == [-signal.SIGTERM]


def test_processes_that_a_signal_ends_before_they_can_save_are_no_failure(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_wait", lambda _: signal.raise_signal(signal.SIGTERM))
    scripts[0][:] = [WAITS, WAITS]
    with pytest.raises(KeyboardInterrupt):
        run_processes(2, "cpu", [])


def test_far_more_processes_than_cores_are_refused_before_any_is_started(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.os, "cpu_count", lambda: 2)
    with pytest.raises(UsageError, match=r"--gpus 5 --device cpu: each process wants a core, and this machine has 2"):
        run_processes(5, "cpu", [])


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"--gpus 2: this machine has 1 CUDA device; --device cpu runs as many"):
        run_processes(2, "auto", [])
