"""Sweeps as a person calls them, with the processes that they start."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import data_prep
from affsup_cli.app import main
from affsup_cli.commands.sweep import run_plan
from affsup_cli.recipe import load_recipe
from affsup_cli.reporting.select.experiments import Experiment
from affsup_cli.runs.checkpoint import load_checkpoint
from affsup_cli.runs.folder import RunFolder, run_folders
from affsup_cli.sweeps.plan import plan_sweep
from affsup_cli.sweeps.slots import find_slots
from affsup_cli.views.live_sweep import SweepView
from data_prep.errors import AffsupError

SHORT = {"train.epochs": 1, "train.milestones": [], "train.learning_rate": 0.01, "train.batch_size": 16}


def command(cwd: Path, data: Path, *more: str) -> list[str]:
    settings = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    places = ["--device", "cpu", "--data", str(data), "--runs", str(cwd / "runs")]
    return ["sweep", "digits-table3", "--only", "base", "--seeds", "2", *settings, *places, *more]


def sweep(cwd: Path, data: Path, *more: str) -> tuple[int, str, str]:
    """Sweep in this process; gives exit code, standard output and standard error."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", ["affsup", *command(cwd, data, *more)])
        patch.setenv("OMP_NUM_THREADS", "1")  # alone and side by side then compute the same bits
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0), out.getvalue(), error.getvalue()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a part of the digits."""
    folder = tmp_path_factory.mktemp("data")
    data_prep.prepare("digits", data_dir=folder, limit=500)
    return folder


@pytest.fixture(scope="module")
def undisturbed(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunFolder], str]:
    """Two runs of a sweep that was left alone, and what it printed."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    code, out, error = sweep(cwd, few, "--jobs", "2")
    assert code == 0, error
    return run_folders(cwd / "runs"), out


def test_two_jobs_run_side_by_side_in_a_process_each(undisturbed: tuple[list[RunFolder], str]) -> None:
    runs, printed = undisturbed
    events = re.findall(r"^digits/resnet20/base seed (\d) (begins|finished)", printed, flags=re.MULTILINE)
    assert [event for _, event in events] == ["begins", "begins", "finished", "finished"]
    processes = {match for run in runs for match in re.findall(r"process (\d+)", (run.path / "log.txt").read_text())}
    assert len(processes) == 2
    assert all(run.finished for run in runs)


def test_a_finished_run_is_told_with_its_numbers(undisturbed: tuple[list[RunFolder], str]) -> None:
    runs, printed = undisturbed
    for run in runs:
        accuracy = run.result()["metrics"]["test_accuracy"]
        assert re.search(rf"seed {run.recipe().seed} finished in [\d:]+: accuracy {100 * accuracy:.2f}%", printed)


@pytest.fixture
def killed(tmp_path: Path, few: Path) -> RunFolder:
    """The first run of a sweep that was killed in the middle of its epoch, a checkpoint behind every step."""
    arguments = command(tmp_path, few, "--set", "run.checkpoint_seconds=1e-6")
    process = subprocess.Popen(
        [sys.executable, "-m", "affsup_cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not any((tmp_path / "runs").glob("*/last.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (run,) = run_folders(tmp_path / "runs")
    return run


def test_a_sweep_that_was_killed_leaves_no_process_and_ends_as_one_left_alone(
    killed: RunFolder, undisturbed: tuple[list[RunFolder], str], tmp_path: Path, few: Path
) -> None:
    with FileLock(killed.path / ".lock"):  # its worker has let go
        assert not killed.finished
        assert load_checkpoint(killed.checkpoint, torch.device("cpu"))["step"] > 0
    code, out, error = sweep(tmp_path, few)
    assert code == 0, error
    assert "seed 0 goes on" in out
    for resumed, whole in zip(run_folders(tmp_path / "runs"), undisturbed[0], strict=True):
        assert resumed.name == whole.name
        assert resumed.result()["metrics"] == whole.result()["metrics"]
        weights, expected = (load_checkpoint(each.best, torch.device("cpu"))["model"] for each in (resumed, whole))
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_a_sweep_that_is_told_to_stop_lets_its_run_save_and_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few: Path
) -> None:
    def terminate(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(SweepView, "progressed", terminate)
    code, out, error = sweep(tmp_path, few)
    assert code == 1
    assert "seed 0 stopped, its checkpoint is saved" in out
    assert error == "affsup: interrupted: 2 of 2 runs are left to do; the same command continues\n"
    (run,) = run_folders(tmp_path / "runs")
    assert not run.finished
    assert load_checkpoint(run.checkpoint, torch.device("cpu"))["step"] > 0


def test_a_run_that_fails_is_named_with_reason_and_log_and_the_others_finish(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {**SHORT, "run.device": "cpu"}
    wanted = [
        Experiment(("diverges",), load_recipe("minibatch", {**fields, "affinity.lambda": 1e38})),
        Experiment(("good",), load_recipe("minibatch", {**fields, "seed": 1})),
    ]
    plan = plan_sweep(wanted, few, tmp_path, set())
    with pytest.raises(AffsupError) as failed:
        run_plan(plan, few, find_slots("cpu"))
    title, line = str(failed.value).splitlines()
    diverged, good = (run.folder for run in plan.runs)
    log = diverged.path / "log.txt"
    assert title == "1 run of this sweep failed:"
    assert line.startswith("  diverges seed 0: the loss is not finite in epoch 1")
    assert line.endswith(f"(log: {log})")
    assert "the loss is not finite" in log.read_text()
    assert good.finished
    assert "good seed 1 finished" in capsys.readouterr().out
