"""What is asked of Slurm and made of its answers; programs that stand in for Slurm's keep what they are told.

With a real Slurm: tests/slurm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affsup_cli.commands import sweep as command
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.errors import AffsupError, UsageError
from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.sweeps.cluster import asked_of_slurm, cancel, standings, submit
from affsup_cli.sweeps.job import RunsJob
from affsup_cli.sweeps.jobs import read_end, read_job, write_end, write_job
from affsup_cli.sweeps.messages import Ended, Order
from affsup_cli.sweeps.plan import Plan, Step
from affsup_cli.sweeps.speeds import Speeds
from tests.commands.calling import invoke

submitit = pytest.importorskip("submitit", reason="submitit is not installed (affsup[slurm])")

ASKED = {"time": 60, "additional_parameters": {"partition": "gpu"}}


class Slurm:
    """Slurm's commands, as far as a sweep calls them; `queue` is what squeue says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        self._program("sbatch", 'cp "$1" script.$(($(ls | grep -c script) + 1)); echo job $(ls | grep -c script)')
        self._program("squeue", "cat queue")
        for name in ("scancel", "scontrol", "srun"):
            self._program(name, f'echo "$@" >> {name}')
        self.queue()

    def queue(self, **states: str) -> None:
        """Set what squeue says: the state of each job `j12_0`, with its reason behind a bar if it waits."""
        rows = [f"{job[1:]}|{state if '|' in state else state + '|None'}\n" for job, state in states.items()]
        (self.folder / "queue").write_text("".join(rows))

    def submitted(self) -> list[set[str]]:
        """The options of each job script, in the order in which they came."""
        scripts = sorted(self.folder.glob("script.*"))
        return [{line[8:] for line in each.read_text().splitlines() if line.startswith("#SBATCH")} for each in scripts]

    def told(self, name: str) -> str:
        """What a command was called with."""
        path = self.folder / name
        return path.read_text().strip() if path.exists() else ""

    def _program(self, name: str, text: str) -> None:
        program = self.programs / name
        program.write_text(f"#!/bin/bash\ncd {self.folder}\n{text}\n")
        program.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{found.programs}:{os.environ['PATH']}")
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def step(path: Path, needs: Step | None = None, state: str = "missing", baseline: Recipe | None = None) -> Step:
    return Step((path.name,), load_recipe("minibatch"), baseline, RunFolder(path), state, needs, 3)  # type: ignore[arg-type]


def plan(*steps: Step) -> Plan:
    return Plan(steps, Speeds(), (), ())


def submitted(runs: Path, *steps: Step, together: bool = False) -> dict[str, str]:
    new = submit(plan(*steps), Path("data"), runs, ASKED, together)
    return {each.cells[0]: job for each, job in new.items()}


def test_runs_that_ask_for_the_same_are_one_array_and_each_run_records_its_job(slurm: Slurm, runs: Path) -> None:
    assert submitted(runs, step(runs / "a"), step(runs / "b"), step(runs / "c", state="finished")) == {
        "a": "1_0",
        "b": "1_1",
    }
    (options,) = slurm.submitted()
    assert {"--array=0-1%2", "--partition=gpu", "--time=60"} < options
    assert [read_job(runs / name) for name in "abc"] == ["1_0", "1_1", None]


def test_a_run_waits_for_the_job_of_the_one_that_it_needs(slurm: Slurm, runs: Path) -> None:
    network = step(runs / "network")
    done = step(runs / "done", state="finished")
    scenes = [step(runs / "scene", network), step(runs / "other", network), step(runs / "free", done)]
    jobs = submitted(runs, *scenes, network, done)
    first, second = slurm.submitted()
    assert jobs == {"free": "1_0", "network": "1_1", "scene": "2_0", "other": "2_1"}
    assert not any(option.startswith("--dependency") for option in first)
    assert "--dependency=afterok:1_1" in second


def test_together_runs_that_are_alike_are_one_job(slurm: Slurm, runs: Path) -> None:
    cost = step(runs / "cost", baseline=load_recipe("minibatch"))
    jobs = submitted(runs, step(runs / "a"), cost, step(runs / "b"), together=True)
    assert jobs == {"a": "1", "b": "1", "cost": "2"}
    assert [read_job(runs / name) for name in ("a", "b", "cost")] == ["1", "1", "2"]


def test_a_run_that_failed_while_others_of_its_job_go_on_has_failed_and_is_submitted_again(
    slurm: Slurm, runs: Path
) -> None:
    failed, stopped, _ = steps = [step(runs / name, state="unfinished") for name in ("a", "b", "c")]
    for each in steps:
        write_job(each.folder.path, "7")
    write_end(failed.folder.path, "7", Ended("failed", "no space"))
    write_end(stopped.folder.path, "7", Ended("stopped"))  # by a time limit; its next turn comes
    slurm.queue(j7="RUNNING")
    found = standings(plan(*steps), runs)
    assert [found[each].state for each in steps] == ["failed", "running", "running"]
    assert submitted(runs, *steps, together=True) == {"a": "1"}


def test_a_run_waits_for_a_job_that_an_earlier_sweep_has_submitted(slurm: Slurm, runs: Path) -> None:
    network = step(runs / "network")
    write_job(network.folder.path, "70_4")
    slurm.queue(j70_4="RUNNING")
    assert submitted(runs, network, step(runs / "scene", network)) == {"scene": "1"}
    assert "--dependency=afterok:70_4" in slurm.submitted()[0]


def test_a_cost_comparison_has_its_machine_for_itself(slurm: Slurm, runs: Path) -> None:
    submitted(runs, step(runs / "cost", baseline=load_recipe("minibatch")), step(runs / "other"))
    assert sorted("--exclusive" in options for options in slurm.submitted()) == [False, True]


@pytest.mark.parametrize(
    ("state", "again"),
    [
        *((state, False) for state in ("PENDING|Priority", "CONFIGURING", "RUNNING", "REQUEUED", "COMPLETING")),
        *((state, True) for state in ("CANCELLED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "COMPLETED")),
    ],
)
def test_only_runs_whose_job_is_over_are_submitted_again(slurm: Slurm, runs: Path, state: str, again: bool) -> None:
    write_job(runs / "a", "7")
    slurm.queue(j7=state)
    assert submitted(runs, step(runs / "a", state="unfinished")) == ({"a": "1"} if again else {})


def test_a_damaged_run_folder_is_refused_before_anything_is_submitted(slurm: Slurm, runs: Path) -> None:
    with pytest.raises(AffsupError, match=r"damaged: .*/broken\. Move"):
        submitted(runs, step(runs / "a"), step(runs / "broken", state="damaged"))
    assert not slurm.submitted()


def test_what_sbatch_refuses_is_said_in_its_words(slurm: Slurm, runs: Path) -> None:
    (slurm.programs / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: gpu' >&2; exit 1\n")
    with pytest.raises(AffsupError, match=r"Slurm takes no jobs: .*invalid partition: gpu"):
        submitted(runs, step(runs / "a"))
    assert read_job(runs / "a") is None
    assert [path.name for path in (runs / ".slurm").iterdir()] == [".lock"]


def test_cancel_takes_the_jobs_of_this_sweep_that_are_not_over(slurm: Slurm, runs: Path) -> None:
    for name, job in {"a": "7_0", "b": "7_1", "c": "7_2", "other": "8"}.items():
        write_job(runs / name, job)
    slurm.queue(j7_0="RUNNING", j7_1="PENDING|Resources", j7_2="FAILED", j8="RUNNING")
    cancel(plan(*(step(runs / name) for name in "abc")), runs)
    assert slurm.told("scancel") == "7_0 7_1"


def test_cancel_names_each_job_once_and_the_runs_of_other_sweeps_that_it_does_too(slurm: Slurm, runs: Path) -> None:
    for name, job in {"a": "7_0", "b": "7_0", "beside": "7_0", "other": "7_1"}.items():
        write_job(runs / name, job)
    slurm.queue(j7_0="RUNNING", j7_1="RUNNING")
    a, b = step(runs / "a"), step(runs / "b")
    assert cancel(plan(a, b), runs) == ({a: "7_0", b: "7_0"}, ["beside"])
    assert slurm.told("scancel") == "7_0"


def test_cancel_without_jobs_calls_nothing(slurm: Slurm, runs: Path) -> None:
    assert cancel(plan(step(runs / "a")), runs) == ({}, [])
    assert not (slurm.folder / "scancel").exists()


@pytest.mark.parametrize(
    ("queued", "ended", "state", "detail"),
    [
        ("RUNNING", None, "running", ""),
        ("RUNNING", Ended("stopped"), "running", ""),  # in its next turn
        ("COMPLETING", None, "running", ""),
        ("PENDING|BeginTime", Ended("stopped"), "pending", "BeginTime"),
        ("FAILED", Ended("failed", "no space"), "failed", "no space"),
        (None, Ended("failed", "no space"), "failed", "no space"),
        ("CANCELLED", Ended("stopped"), "cancelled", "sweep again to go on"),
        ("CANCELLED", None, "cancelled", "sweep again to go on"),
        (None, Ended("stopped"), "cancelled", "sweep again to go on"),
        (None, Ended("busy"), "cancelled", "another process had it; sweep again to go on"),
        ("OUT_OF_MEMORY", None, "failed", "Slurm says OUT_OF_MEMORY"),
        (None, None, "failed", "the job has left the queue (`sacct -j 7` may know why)"),
    ],
)
def test_a_run_stands_as_its_job_and_its_own_last_words_say(
    slurm: Slurm, runs: Path, queued: str | None, ended: Ended | None, state: str, detail: str
) -> None:
    one = step(runs / "a", state="unfinished")
    write_job(one.folder.path, "7")
    slurm.queue(**({"j7": queued} if queued else {}))
    if ended:
        write_end(one.folder.path, "7", ended)
    found = standings(plan(one), runs)[one]
    assert (found.state, found.job, found.detail) == (state, "7", detail)


def test_last_words_of_an_earlier_job_do_not_count(runs: Path) -> None:
    write_job(runs / "a", "8")
    write_end(runs / "a", "7", Ended("failed", "no space"))
    assert read_end(runs / "a", "8") is None
    assert read_end(runs / "a", "7") == Ended("failed", "no space")


def test_without_a_job_a_run_stands_as_its_folder_says_and_slurm_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    steps = [step(runs / state, state=state) for state in ("finished", "unfinished", "missing", "damaged")]
    write_job(runs / "finished", "7")
    found = standings(plan(*steps), runs)
    assert [each.state for each in found.values()] == ["finished", "to do", "to do", "failed"]


def test_what_needs_a_failed_run_says_so_and_a_failed_run_has_its_log(slurm: Slurm, runs: Path) -> None:
    network = step(runs / "network")
    scene = step(runs / "scene", network)
    for each, job in ((network, "7"), (scene, "8")):
        write_job(each.folder.path, job)
    slurm.queue(j7="NODE_FAIL", j8="CANCELLED|DependencyNeverSatisfied")
    (runs / ".slurm").mkdir()
    log = runs / ".slurm" / "7_0_log.err"
    log.touch()
    found = standings(plan(scene, network), runs)
    assert list(found) == [scene, network]
    assert (found[scene].state, found[scene].detail) == ("cancelled", "needs network seed 0")
    assert found[network].log == log
    (network.folder.path / "log.txt").touch()
    assert standings(plan(scene, network), runs)[network].log == network.folder.path / "log.txt"


@pytest.mark.parametrize(
    ("settings", "device", "options"),
    [
        ({}, "auto", {"gpus_per_node": 1}),
        ({}, "cpu", {}),
        ({"gres": "gpu:a100:1"}, "cuda", {"gres": "gpu:a100:1"}),
        ({"mem-per-cpu": "4G", "cpus-per-task": 4}, "cpu", {"mem_per_cpu": "4G", "cpus_per_task": 4}),
    ],
)
def test_a_run_asks_for_one_gpu_unless_told_otherwise(
    settings: dict[str, object], device: str, options: dict[str, object]
) -> None:
    found = asked_of_slurm(settings, device)["additional_parameters"]
    fixed = {"job_name": "affsup", "requeue": True, "kill_on_invalid_dep": "yes"}
    assert found == {**fixed, **options}


def test_settings_of_submitit_itself_are_no_options_of_sbatch() -> None:
    asked = asked_of_slurm({"time": 30, "setup": "module load cuda", "cpus_per_task": 4}, "cpu")
    assert asked["time"] == 30
    assert asked["setup"][-1] == "module load cuda"
    assert asked["srun_args"] == ["--cpus-per-task=4"]
    assert {"time", "setup"}.isdisjoint(asked["additional_parameters"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--slurm", "dependency=singleton"], "--slurm dependency=…: a job is one process, and the sweep sets"),
        (["--slurm", "time=4:00:00"], "--slurm time=4:00:00: expected minutes"),
        (["--slurm", "partition"], "--slurm takes KEY=VALUE, for example partition=gpu; found 'partition'"),
        (["--device", "cuda:1"], "--device cuda:1: Slurm decides which GPU a run is given; take --device cuda"),
        (["--jobs", "2"], "--jobs 2 is for this machine: on a cluster --slurm array_parallelism=2 bounds them"),
        (["--status", "--cancel"], "--status and --cancel: give one of them"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(options: list[str], said: str) -> None:
    result = invoke(command.sweep, "demo", "--launcher", "slurm", *options)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(said)


def test_settings_of_a_cluster_without_one_are_refused() -> None:
    result = invoke(command.sweep, "demo", "--slurm", "partition=gpu")
    assert str(result.exception) == "--slurm is for jobs of a cluster: add --launcher slurm"


def test_without_submitit_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = invoke(command.sweep, "demo", "--launcher", "slurm")
    assert isinstance(result.exception, AffsupError)
    assert "needs submitit, which is not installed: `pip install 'affsup[slurm]'`" in str(result.exception)


def test_without_slurm_it_is_named_after_the_plan(monkeypatch: pytest.MonkeyPatch, digits: Path, runs: Path) -> None:
    monkeypatch.setenv("PATH", "")
    result = invoke(command.sweep, "demo", "--launcher", "slurm", "--data", str(digits), "--runs", str(runs))
    assert str(result.exception).startswith("no Slurm here: `squeue` was not found on the PATH")


def the_job(slurm: Slurm, runs: Path, digits: Path, *recipes: Recipe) -> tuple[str, list[RunFolder]]:
    """Submit recipes as one job; returns its id, and the folders of its runs."""
    folders = [RunFolder(runs / str(number)) for number in range(len(recipes))]
    orders = [Order(recipe, None, digits, folder.path, None) for recipe, folder in zip(recipes, folders, strict=True)]
    executor = submitit.SlurmExecutor(runs / ".slurm", max_num_timeout=3)
    return executor.submit(RunsJob(orders)).job_id, folders


def begun(runs: Path, job: str) -> subprocess.Popen[bytes]:
    """Do what Slurm does when it is the job's turn."""
    return subprocess.Popen(
        [sys.executable, "-m", "submitit.core._submit", str(runs / ".slurm")],
        env={**os.environ, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": job, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
@pytest.mark.parametrize("side_by_side", [1, 2])
def test_a_job_told_to_leave_saves_and_is_put_back_unless_slurm_takes_it_away_itself(
    slurm: Slurm, runs: Path, digits: Path, state: str, side_by_side: int
) -> None:
    fields = {"run.device": "cpu", "run.checkpoint_seconds": 1e-6}
    recipes = [load_recipe("minibatch", {**fields, "seed": seed}) for seed in range(side_by_side)]
    job, folders = the_job(slurm, runs, digits, *recipes)
    slurm.queue(**{f"j{job}": state})
    process = begun(runs, job)
    while not all(run.checkpoint.exists() for run in folders):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2 if state == "RUNNING" else signal.SIGTERM)
    assert process.wait() != 0
    assert slurm.told("scontrol") == (f"requeue {job}" if state == "RUNNING" else "")
    for run in folders:
        assert "saved" in (run.path / "log.txt").read_text()
        assert read_end(run.path, job) == Ended("stopped")


def test_of_the_runs_of_a_job_one_fails_and_the_others_finish(slurm: Slurm, runs: Path, digits: Path) -> None:
    fields = {"run.device": "cpu", "train.epochs": 1, "train.milestones": [], "train.batch_size": 16}
    recipes = [load_recipe("minibatch", {**fields, "train.learning_rate": rate}) for rate in (1e30, 0.01)]
    job, (fails, finishes) = the_job(slurm, runs, digits, *recipes)
    finishes.path.mkdir()
    write_end(finishes.path, job, Ended("failed", "in an earlier turn"))
    slurm.queue(**{f"j{job}": "RUNNING"})
    assert begun(runs, job).wait() == 1
    ended = read_end(fails.path, job)
    assert ended is not None
    assert (ended.how, ended.reason[:22]) == ("failed", "the loss is not finite")
    assert finishes.finished
    assert read_end(finishes.path, job) is None
    assert slurm.told("scontrol") == ""
