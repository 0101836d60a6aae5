"""Sweeps on a real Slurm: submitted, cancelled, requeued, pre-empted, failed."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

import data_prep
from affsup_cli.app import main
from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.runs.checkpoint import load_checkpoint
from affsup_cli.runs.folder import RunFolder, run_folders
from affsup_cli.sweeps.plan import Plan, PlannedRun
from affsup_cli.sweeps.slurm import cancel, slurm_parameters, statuses, submit
from affsup_cli.sweeps.slurm_queue import queued_jobs, read_job
from affsup_cli.sweeps.speeds import Speeds
from data_prep.errors import AffsupError

pytest.importorskip("submitit", reason="submitit is not installed (affsup[slurm])")
pytestmark = pytest.mark.usefixtures("slurm")

SHORT = {"train.epochs": 1, "train.milestones": [], "train.learning_rate": 0.01, "train.batch_size": 16}
LONG = ("--set", "train.epochs=50")
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a part of the digits."""
    folder = tmp_path_factory.mktemp("data")
    data_prep.prepare("digits", data_dir=folder, limit=500)
    return folder


class Sweep:
    """`affsup sweep` of two runs, called in this process; their checkpoints stand behind every step."""

    def __init__(self, data: Path, runs: Path) -> None:
        settings = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
        settings += ["--set", "run.checkpoint_seconds=1e-6"]
        self.runs = runs
        self.call = ["digits-table3", "--only", "base", "--seeds", "2", *settings, "--device", "cpu"]
        self.call += ["--data", str(data), "--runs", str(runs)]

    def __call__(self, *more: str) -> str:
        out, error = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
            patch.setattr(sys, "argv", ["affsup", "sweep", *self.call, *more])
            patch.setenv("OMP_NUM_THREADS", "1")
            with contextlib.suppress(SystemExit):
                main()
        assert not error.getvalue()
        return out.getvalue()

    def submit(self, *more: str) -> list[RunFolder]:
        """Submit; the runs' folders, of which the first begins first."""
        self("--launcher", "slurm", *more)
        folders = sorted(path.parent for path in self.runs.glob("*/job.json"))
        return [RunFolder(folder) for folder in folders]

    def status(self) -> dict[str, str]:
        """What `--status` says of each seed: its line."""
        return dict(re.findall(r"^digits/resnet20/base seed (\d) +(.*?) *$", self("--status"), flags=re.MULTILINE))


@pytest.fixture
def sweep(few: Path, tmp_path: Path) -> Sweep:
    return Sweep(few, tmp_path / "runs")


@pytest.fixture(scope="module")
def undisturbed(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep on the cluster that was left alone and is finished."""
    sweep = Sweep(few, tmp_path_factory.mktemp("undisturbed") / "runs")
    runs = sweep.submit()
    until(lambda: all(run.finished for run in runs))
    return sweep


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, queued_jobs()
        time.sleep(0.1)


def state(run: RunFolder) -> str:
    return queued_jobs()[job(run)].state


def job(run: RunFolder) -> str:
    found = read_job(run.path)
    assert found is not None
    return found.job


def same(run: RunFolder, whole: RunFolder) -> bool:
    """Whether two runs are the same run with the same result."""
    weights, others = (load_checkpoint(each.best, torch.device("cpu"))["model"] for each in (run, whole))
    return (
        run.name == whole.name
        and run.result()["metrics"] == whole.result()["metrics"]
        and all(torch.equal(weights[key], others[key]) for key in others)
    )


def begin_again(run: RunFolder) -> None:
    """Let a run that was put back into the queue begin at once: Slurm waits for two minutes."""
    until(lambda: state(run) == "PENDING")
    subprocess.run(["scontrol", "update", f"JobId={job(run)}", "StartTime=now"], check=True)


def test_runs_that_ask_for_the_same_are_one_array_and_finish(undisturbed: Sweep) -> None:
    runs = run_folders(undisturbed.runs)
    array = job(runs[0]).partition("_")[0]
    assert sorted(map(job, runs)) == [f"{array}_0", f"{array}_1"]
    assert {seed: line.split()[0] for seed, line in undisturbed.status().items()} == {"0": "finished", "1": "finished"}
    assert "2 runs, 0 to do" in undisturbed("--launcher", "slurm")


def test_what_is_in_the_queue_is_not_submitted_again_but_what_is_cancelled_is_and_status_tells_of_both(
    sweep: Sweep,
) -> None:
    sweep.call += LONG
    first, second = sorted(sweep.submit("--slurm", "array_parallelism=1"), key=job)
    until(first.checkpoint.exists)
    assert "2 runs in the queue already" in sweep("--launcher", "slurm")
    status = sweep.status()
    assert re.fullmatch(rf"running +{job(first)} +1/50", status["0"])
    assert re.fullmatch(rf"pending +{job(second)} +JobArrayTaskLimit", status["1"])
    assert "cancelled 2 runs" in sweep("--cancel")
    assert "submitted 2 runs" in sweep("--launcher", "slurm", "--slurm", "array_parallelism=1")
    until(lambda: state(first) == "RUNNING")
    sweep("--cancel")
    until(lambda: state(first) == state(second) == "CANCELLED")
    assert {seed: line.split()[0] for seed, line in sweep.status().items()} == {"0": "cancelled", "1": "cancelled"}
    assert not first.finished
    assert load_checkpoint(first.checkpoint, torch.device("cpu"))["step"] > 0


def test_runs_that_must_leave_go_on_from_their_checkpoints_to_the_same_results(
    sweep: Sweep, undisturbed: Sweep
) -> None:
    requeued, timed_out = runs = sweep.submit()
    # The other is what Slurm does when a job's time is nearly over.
    commands = {requeued: ["scontrol", "requeue"], timed_out: ["scancel", "--signal=USR2"]}

    def all_disturbed() -> bool:
        for run in [run for run in commands if run.checkpoint.exists()]:
            subprocess.run([*commands.pop(run), job(run)], check=True)
        return not commands

    until(all_disturbed)
    for run in runs:
        begin_again(run)
    until(lambda: requeued.finished and timed_out.finished)
    for run, whole in zip(runs, run_folders(undisturbed.runs), strict=True):
        assert "stopped in epoch 1 after step" in (run.path / "log.txt").read_text()
        assert same(run, whole)


def test_a_run_that_is_pre_empted_saves_and_waits_for_its_next_turn(sweep: Sweep) -> None:
    sweep.call += [*LONG, "--seeds", "1"]
    (run,) = sweep.submit()
    until(run.checkpoint.exists)
    subprocess.run(["srun", "--partition=urgent", "--exclusive", "true"], check=True, capture_output=True)
    until(lambda: state(run) == "PENDING")
    assert "stopped in epoch" in (run.path / "log.txt").read_text()
    assert sweep.status()["0"].split()[0] == "pending"
    sweep("--cancel")


def test_a_run_that_fails_is_named_with_its_reason_and_log(sweep: Sweep) -> None:
    sweep.call += ["--set", "train.learning_rate=1e30", "--seeds", "1"]
    (run,) = sweep.submit()
    until(lambda: state(run) == "FAILED")
    log = run.path / "log.txt"
    ((reason, named),) = re.findall(r"seed 0 failed: (.*) \(log: (.*)\)$", sweep("--status"), re.MULTILINE)
    assert reason.startswith("the loss is not finite in epoch 1")
    assert named == str(log)
    assert reason in log.read_text()


def test_what_needs_a_run_begins_after_it_and_is_dropped_if_it_fails(few: Path, tmp_path: Path) -> None:
    fields = {**SHORT, "run.device": "cpu"}
    good = a_step(tmp_path / "good", load_recipe("minibatch", fields))
    bad = a_step(tmp_path / "bad", load_recipe("minibatch", {**fields, "train.learning_rate": 1e30}))
    after_good, after_bad = (
        a_step(tmp_path / f"after-{needs.folder.name}", load_recipe("minibatch", {**fields, "seed": 1}), needs)
        for needs in (good, bad)
    )
    plan = Plan((good, bad, after_good, after_bad), Speeds(), (), ())
    submit(plan, few, tmp_path, slurm_parameters([], "cpu"))
    dropped = plan.runs[-1].folder
    until(lambda: state(dropped) == "CANCELLED")
    assert not (dropped.path / "log.txt").exists()
    until(lambda: state(after_good.folder) not in ("PENDING", "COMPLETING"))
    assert good.folder.finished
    found = statuses(plan, tmp_path)
    assert found[bad].state == "failed"
    assert (found[after_bad].state, found[after_bad].detail) == ("cancelled", "needs bad seed 0")
    cancel(plan, tmp_path)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("partition=nowhere", "sbatch: error: invalid partition specified: nowhere"),
        ("no-such=1", "sbatch: unrecognized option '--no-such=1'"),
    ],
)
def test_what_sbatch_refuses_is_said_in_its_words(few: Path, tmp_path: Path, option: str, said: str) -> None:
    plan = Plan((a_step(tmp_path / "run", load_recipe("minibatch")),), Speeds(), (), ())
    key, _, value = option.partition("=")
    with pytest.raises(AffsupError, match=f"^Slurm takes no jobs: {said}$"):
        submit(plan, few, tmp_path, slurm_parameters([(key, value)], "cpu"))


def a_step(folder: Path, recipe: Recipe, needs: PlannedRun | None = None) -> PlannedRun:
    return PlannedRun((folder.name,), recipe, None, RunFolder(folder), "missing", needs, 0)
