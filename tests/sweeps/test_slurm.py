"""What is asked of Slurm and made of its answers; programs that stand in for Slurm's keep what they are told.

With a real Slurm: tests/slurm.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from affsup_cli.commands import sweep as command
from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.sweeps.messages import RunEnded, RunRequest
from affsup_cli.sweeps.plan import Plan, PlannedRun
from affsup_cli.sweeps.slurm import cancel, slurm_parameters, statuses, submit
from affsup_cli.sweeps.slurm_job import RunJob
from affsup_cli.sweeps.slurm_queue import RecordedJob, read_end, read_job, write_end, write_job
from affsup_cli.sweeps.speeds import Speeds
from data_prep.errors import AffsupError, UsageError
from tests.commands.calling import invoke

submitit = pytest.importorskip("submitit", reason="submitit is not installed (affsup[slurm])")

ASKED = {"time": 60, "signal_delay_s": 300, "additional_parameters": {"partition": "gpu"}}
PATIENCE_SECONDS = 60
Begin = Callable[..., subprocess.Popen[bytes]]


class Slurm:
    """Slurm's commands, as far as a sweep calls them; `queue` is what squeue says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        self.sbatch = 'cp "$1" script.$(($(ls | grep -c script) + 1)); echo job $(ls | grep -c script)'
        self.program("sbatch", self.sbatch)
        self.program("squeue", "cat queue")
        for name in ("scancel", "scontrol", "srun"):
            self.program(name, f'echo "$@" >> {name}')
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

    def program(self, name: str, text: str) -> None:
        """Set what a command does, in this folder."""
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


def planned(
    path: Path, needs: PlannedRun | None = None, state: str = "missing", baseline: Recipe | None = None
) -> PlannedRun:
    return PlannedRun((path.name,), load_recipe("minibatch"), baseline, RunFolder(path), state, needs, 3)  # type: ignore[arg-type]


def plan(*planned_runs: PlannedRun) -> Plan:
    return Plan(planned_runs, Speeds(), (), ())


def submitted(runs: Path, *planned_runs: PlannedRun) -> dict[str, str]:
    new = submit(plan(*planned_runs), Path("data"), runs, ASKED)
    return {each.cells[0]: job for each, job in new.items()}


def test_runs_that_ask_for_the_same_are_one_array_and_each_run_records_its_job(slurm: Slurm, runs: Path) -> None:
    assert submitted(runs, planned(runs / "a"), planned(runs / "b"), planned(runs / "c", state="finished")) == {
        "a": "1_0",
        "b": "1_1",
    }
    (options,) = slurm.submitted()
    assert {"--array=0-1%2", "--partition=gpu", "--time=60"} < options
    assert [read_job(runs / name) for name in "abc"] == [RecordedJob("1_0"), RecordedJob("1_1"), None]


def test_a_run_waits_for_the_job_of_the_one_that_it_needs(slurm: Slurm, runs: Path) -> None:
    network = planned(runs / "network")
    done = planned(runs / "done", state="finished")
    scenes = [planned(runs / "scene", network), planned(runs / "other", network), planned(runs / "free", done)]
    jobs = submitted(runs, *scenes, network, done)
    first, second = slurm.submitted()
    assert jobs == {"free": "1_0", "network": "1_1", "scene": "2_0", "other": "2_1"}
    assert not any(option.startswith("--dependency") for option in first)
    assert "--dependency=afterok:1_1" in second


def test_a_run_waits_for_a_job_that_an_earlier_sweep_has_submitted(slurm: Slurm, runs: Path) -> None:
    network = planned(runs / "network")
    write_job(network.folder.path, "70_4")
    slurm.queue(j70_4="RUNNING")
    assert submitted(runs, network, planned(runs / "scene", network)) == {"scene": "1"}
    assert "--dependency=afterok:70_4" in slurm.submitted()[0]


def test_what_was_cancelled_is_submitted_again_behind_the_jobs_that_still_leave(slurm: Slurm, runs: Path) -> None:
    network = planned(runs / "network", state="unfinished")
    planned_runs = [
        planned(runs / name, needs, "unfinished") for name, needs in (("a", network), ("b", None), ("c", None))
    ]
    for each, job in zip((network, *planned_runs), ("70", "7_0", "7_1", "7_2"), strict=True):
        write_job(each.folder.path, job)
    slurm.queue(j70="RUNNING", j7_0="RUNNING", j7_1="RUNNING", j7_2="RUNNING")
    cancel(plan(*planned_runs), runs)
    slurm.queue(j70="RUNNING", j7_0="COMPLETING", j7_1="COMPLETING", j7_2="CANCELLED")
    assert [status.state for status in statuses(plan(network, *planned_runs), runs).values()] == [
        "running",
        *["cancelled"] * 3,
    ]
    assert submitted(runs, network, *planned_runs) == {"a": "1", "b": "2", "c": "3"}
    waits = [
        [option.removeprefix("--dependency=") for option in options if option.startswith("--dependency")]
        for options in slurm.submitted()
    ]
    assert waits == [["afterok:70,afterany:7_0:7_1"], ["afterany:7_0:7_1"], []]
    assert read_job(runs / "a") == RecordedJob("1")


def test_ctrl_c_while_jobs_are_submitted_waits_until_the_runs_have_recorded_them(slurm: Slurm, runs: Path) -> None:
    slurm.program("sbatch", f"kill -INT $PPID $$; {slurm.sbatch}")
    try:
        submitted(runs, planned(runs / "a"))
    except KeyboardInterrupt:
        pytest.fail("interrupted")
    assert read_job(runs / "a") == RecordedJob("1")


def test_a_cost_comparison_has_its_machine_for_itself(slurm: Slurm, runs: Path) -> None:
    submitted(runs, planned(runs / "cost", baseline=load_recipe("minibatch")), planned(runs / "other"))
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
    assert submitted(runs, planned(runs / "a", state="unfinished")) == ({"a": "1"} if again else {})


def test_a_damaged_run_folder_is_left_out(slurm: Slurm, runs: Path) -> None:
    assert submitted(runs, planned(runs / "a"), planned(runs / "broken", state="damaged")) == {"a": "1"}


def test_what_sbatch_refuses_is_said_in_its_words(slurm: Slurm, runs: Path) -> None:
    said = "sbatch: unrecognized option '--gpu'", 'Try "sbatch --help" for more information'
    slurm.program("sbatch", f"echo {shlex.quote(chr(10).join(said))} >&2; exit 1")
    with pytest.raises(AffsupError, match=r"^Slurm takes no jobs: sbatch: unrecognized option '--gpu'$"):
        submitted(runs, planned(runs / "a"))
    assert read_job(runs / "a") is None
    assert [path.name for path in (runs / ".slurm").iterdir()] == [".lock"]


def test_cancel_takes_the_jobs_of_this_sweep_that_are_not_over(slurm: Slurm, runs: Path) -> None:
    for name, job in {"a": "7_0", "b": "7_1", "c": "7_2", "other": "8"}.items():
        write_job(runs / name, job)
    slurm.queue(j7_0="RUNNING", j7_1="PENDING|Resources", j7_2="FAILED", j8="RUNNING")
    planned_runs = [planned(runs / name) for name in "abc"]
    assert cancel(plan(*planned_runs), runs) == {planned_runs[0]: "7_0", planned_runs[1]: "7_1"}
    assert slurm.told("scancel") == "7_0 7_1"
    records = [read_job(runs / name) for name in ("a", "b", "c", "other")]
    assert [record and record.cancelled for record in records] == [True, True, False, False]


def test_while_jobs_are_cancelled_no_other_sweep_submits(slurm: Slurm, runs: Path) -> None:
    write_job(runs / "a", "7")
    slurm.queue(j7="RUNNING")
    (runs / ".slurm").mkdir()
    slurm.program("scancel", f"flock --nonblock {runs}/.slurm/.lock true || echo held > scancel")
    cancel(plan(planned(runs / "a")), runs)
    assert slurm.told("scancel") == "held"


def test_cancel_without_jobs_calls_nothing(slurm: Slurm, runs: Path) -> None:
    assert cancel(plan(planned(runs / "a")), runs) == {}
    assert not (slurm.folder / "scancel").exists()


@pytest.mark.parametrize(
    ("queued", "ended", "state", "detail"),
    [
        ("RUNNING", None, "running", ""),
        ("RUNNING", RunEnded("stopped"), "running", ""),  # in its next turn
        ("COMPLETING", None, "running", ""),
        ("PENDING|BeginTime", RunEnded("stopped"), "pending", "BeginTime"),
        ("FAILED", RunEnded("failed", "no space"), "failed", "no space"),
        (None, RunEnded("failed", "no space"), "failed", "no space"),
        ("CANCELLED", RunEnded("stopped"), "cancelled", "sweep again to go on"),
        ("CANCELLED", None, "cancelled", "sweep again to go on"),
        (None, RunEnded("stopped"), "cancelled", "sweep again to go on"),
        (None, RunEnded("busy"), "cancelled", "another process had it; sweep again to go on"),
        ("OUT_OF_MEMORY", None, "failed", "Slurm says OUT_OF_MEMORY"),
        ("OUT_OF_MEMORY", RunEnded("stopped"), "failed", "Slurm says OUT_OF_MEMORY"),  # in its next turn
        ("PREEMPTED", RunEnded("stopped"), "cancelled", "sweep again to go on"),  # where a site does not requeue
        (None, None, "failed", "the job has left the queue (`sacct -j 7` may know why)"),
    ],
)
def test_a_run_stands_as_its_job_and_its_own_last_words_say(
    slurm: Slurm, runs: Path, queued: str | None, ended: RunEnded | None, state: str, detail: str
) -> None:
    one = planned(runs / "a", state="unfinished")
    write_job(one.folder.path, "7")
    slurm.queue(**({"j7": queued} if queued else {}))
    if ended:
        write_end(one.folder.path, "7", ended)
    found = statuses(plan(one), runs)[one]
    assert (found.state, found.job, found.detail) == (state, "7", detail)


@pytest.mark.parametrize("content", ["[]", "{}", '{"job": 7}', "{"])
@pytest.mark.parametrize("name", ["job.json", "job-ended.json"])
def test_a_record_that_affsup_did_not_write_is_named(slurm: Slurm, runs: Path, name: str, content: str) -> None:
    write_job(runs / "a", "7")
    (runs / "a" / name).write_text(content)
    slurm.queue(j7="FAILED")
    with pytest.raises(AffsupError, match=rf"/a/{name} is (damaged|not valid JSON): .*Remove it"):
        statuses(plan(planned(runs / "a")), runs)


def test_last_words_of_an_earlier_job_do_not_count(runs: Path) -> None:
    write_job(runs / "a", "8")
    write_end(runs / "a", "7", RunEnded("failed", "no space"))
    assert read_end(runs / "a", "8") is None
    assert read_end(runs / "a", "7") == RunEnded("failed", "no space")


def test_without_a_job_a_run_stands_as_its_folder_says_and_slurm_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    planned_runs = [planned(runs / state, state=state) for state in ("finished", "unfinished", "missing", "damaged")]
    write_job(runs / "finished", "7")
    found = statuses(plan(*planned_runs), runs)
    assert [each.state for each in found.values()] == ["finished", "to do", "to do", "failed"]
    with planned_runs[1].folder.lock():
        found = statuses(plan(*planned_runs), runs)
    assert [each.state for each in found.values()] == ["finished", "running", "to do", "failed"]


def test_what_needs_a_failed_run_says_so_and_a_failed_run_has_its_log(slurm: Slurm, runs: Path) -> None:
    network = planned(runs / "network")
    scene = planned(runs / "scene", network)
    for each, job in ((network, "7"), (scene, "8")):
        write_job(each.folder.path, job)
    slurm.queue(j7="NODE_FAIL", j8="CANCELLED|DependencyNeverSatisfied")
    (runs / ".slurm").mkdir()
    log = runs / ".slurm" / "7_0_log.err"
    log.touch()
    found = statuses(plan(scene, network), runs)
    assert list(found) == [scene, network]
    assert (found[scene].state, found[scene].detail) == ("cancelled", "needs network seed 0")
    assert found[network].log == log
    (network.folder.path / "log.txt").touch()
    assert statuses(plan(scene, network), runs)[network].log == network.folder.path / "log.txt"
    os.utime(network.folder.path / "log.txt", (0, 0))  # of an earlier job; this one never came to the run
    assert statuses(plan(scene, network), runs)[network].log == log


@pytest.mark.parametrize(
    ("settings", "device", "options"),
    [
        ({}, "auto", {"gpus_per_node": 1}),
        ({}, "cpu", {}),
        ({"gres": "gpu:a100:1"}, "cuda", {"gres": "gpu:a100:1"}),
        ({"mem-per-cpu": "4G", "cpus-per-task": "4"}, "cpu", {"mem_per_cpu": "4G", "cpus_per_task": "4"}),
        ({"account": "0042", "exclusive": "true"}, "cpu", {"account": "0042", "exclusive": True}),
    ],
)
def test_options_of_sbatch_are_handed_on_and_a_gpu_asked_for_beside(
    settings: dict[str, str], device: str, options: dict[str, object]
) -> None:
    found = slurm_parameters(settings.items(), device)["additional_parameters"]
    fixed = {"job_name": "affsup", "requeue": True, "kill_on_invalid_dep": "yes"}
    assert found == {**fixed, **options}


def test_settings_of_submitit_itself_are_no_options_of_sbatch() -> None:
    lines = "module load cuda", "source activate"
    asked = slurm_parameters([("time", "30"), *(("setup", line) for line in lines), ("cpus_per_task", "4")], "cpu")
    assert asked["time"] == 30
    assert asked["setup"][1:] == [*lines]
    assert asked["srun_args"] == ["--cpus-per-task=4"]
    assert {"time", "setup"}.isdisjoint(asked["additional_parameters"])


@pytest.mark.parametrize(("minutes", "seconds"), [(240, 300), (8, 120)])
def test_a_job_is_warned_five_minutes_before_its_time_is_over_or_after_three_quarters_of_it(
    minutes: int, seconds: int
) -> None:
    assert slurm_parameters([("time", str(minutes))], "cpu")["signal_delay_s"] == seconds


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--slurm", "dependency=singleton"],
            "--slurm dependency=…: a job is one process, started from this folder on this cluster; the sweep sets 'dep",
        ),
        (["--slurm", "chdir=/tmp"], "--slurm chdir=…: a job is one process"),
        (["--slurm", "clusters=all"], "--slurm clusters=…: a job is one process"),
        (["--slurm", "time=4:00:00"], "--slurm time=4:00:00: expected minutes"),
        (["--slurm", "array-parallelism=x"], "--slurm array_parallelism=x: expected how many jobs"),
        (["--slurm", "signal_delay_s=0"], "--slurm signal_delay_s=0: expected seconds"),
        (["--slurm", "mem-per-cpu=4G", "--slurm", "mem_per_cpu=8G"], "--slurm mem_per_cpu=8G: 'mem_per_cpu' was given"),
        (["--slurm", "partition"], "--slurm takes KEY=VALUE, for example partition=gpu; found 'partition'"),
        (["--device", "cuda:1"], "--device cuda:1: Slurm decides which GPU a run is given; take --device cuda"),
        (["--jobs", "2"], "--jobs 2 is for this machine: on a cluster --slurm array_parallelism=2 bounds them"),
        (["--status", "--cancel"], "--status, --cancel and --dry-run: give one of them"),
        (["--dry-run", "--cancel"], "--status, --cancel and --dry-run: give one of them"),
        (["--dry-run", "--status"], "--status, --cancel and --dry-run: give one of them"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(options: list[str], said: str) -> None:
    result = invoke(command.sweep, "digits-table3", "--launcher", "slurm", *options)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(said)


def test_settings_of_a_cluster_without_one_are_refused() -> None:
    result = invoke(command.sweep, "digits-table3", "--slurm", "partition=gpu")
    assert str(result.exception) == "--slurm is for jobs of a cluster: add --launcher slurm"


def test_without_submitit_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = invoke(command.sweep, "digits-table3", "--launcher", "slurm")
    assert isinstance(result.exception, AffsupError)
    assert "needs submitit, which is not installed: `pip install 'affsup[slurm]'`" in str(result.exception)


def test_without_slurm_it_is_named_after_the_plan(monkeypatch: pytest.MonkeyPatch, digits: Path, runs: Path) -> None:
    monkeypatch.setenv("PATH", "")
    result = invoke(command.sweep, "digits-table3", "--launcher", "slurm", "--data", str(digits), "--runs", str(runs))
    assert str(result.exception).startswith("Slurm not found: `squeue` is not on the PATH")


def the_job(runs: Path, digits: Path, recipe: Recipe, notice: float = 300.0) -> tuple[str, RunFolder]:
    """Submit a run as a job; returns its id, and the run folder."""
    run = RunFolder(runs / "run")
    executor = submitit.SlurmExecutor(runs / ".slurm", max_num_timeout=3)
    return executor.submit(RunJob(RunRequest(recipe, None, digits, run.path, None), notice)).job_id, run


@pytest.fixture
def begun(runs: Path) -> Iterator[Begin]:
    """Do what Slurm does when it is a job's turn; with another program, that one instead of submitit's."""
    processes = []

    def begin(job: str, *program: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *(program or ["-m", "submitit.core._submit"]), str(runs / ".slurm")],
            env={**os.environ, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": job, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


# Leaves after its step when it is told to, or, evaluating, not at all.
A_RUN = """
import sys, time
from affsup_cli.runtime.stop import Stopped, StopRequest
from affsup_cli.sweeps import worker
from affsup_cli.sweeps import slurm_job
from submitit.core.submission import submitit_main

def run(order, emit):
    with StopRequest() as stop:
        (order.folder / "begun").touch()
        while {evaluating} or not stop.requested:
            time.sleep(0.01)
        raise Stopped

worker._run = run
slurm_job._PAUSES = (0, 0, 0)
submitit_main()
"""


def told_to_leave(begun: Begin, job: str, run: RunFolder, number: int, evaluating: bool = False) -> None:
    """Let a job come to its run, send it a signal, and wait until it has left."""
    process = begun(job, "-c", A_RUN.format(evaluating=evaluating))
    while not (run.path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(PATIENCE_SECONDS) != 0
    assert read_end(run.path, job) == RunEnded("stopped")


def test_a_run_that_evaluates_on_when_its_time_is_nearly_over_is_interrupted_and_put_back(
    slurm: Slurm, runs: Path, digits: Path, begun: Begin
) -> None:
    job, run = the_job(runs, digits, load_recipe("minibatch"), notice=0.2)
    slurm.queue(**{f"j{job}": "RUNNING"})
    told_to_leave(begun, job, run, signal.SIGUSR2, evaluating=True)
    assert slurm.told("scontrol") == f"requeue {job}"


@pytest.mark.parametrize(
    ("squeue", "back"),
    [
        ("cat queue", False),
        ("exit 1", True),
        ("true", True),  # knows nothing of the job
        ("test -e asked || { touch asked; exit 1; }; cat queue", False),
    ],
)
def test_a_job_is_not_put_back_if_slurm_takes_it_away_but_it_is_if_slurm_never_says_so(
    slurm: Slurm,
    runs: Path,
    digits: Path,
    begun: Begin,
    squeue: str,
    back: bool,
) -> None:
    job, run = the_job(runs, digits, load_recipe("minibatch"))
    slurm.queue(**{f"j{job}": "COMPLETING"})
    slurm.program("squeue", squeue)
    told_to_leave(begun, job, run, signal.SIGTERM)
    assert slurm.told("scontrol") == (f"requeue {job}" if back else "")


def test_a_site_may_name_another_signal_that_warns(
    slurm: Slurm,
    runs: Path,
    digits: Path,
    begun: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    job, run = the_job(runs, digits, load_recipe("minibatch"))
    slurm.queue(**{f"j{job}": "RUNNING"})
    told_to_leave(begun, job, run, signal.SIGUSR1)
    assert slurm.told("scontrol") == f"requeue {job}"


def test_a_job_whose_time_is_nearly_over_saves_and_is_put_back(
    slurm: Slurm, runs: Path, digits: Path, begun: Begin
) -> None:
    job, run = the_job(runs, digits, load_recipe("minibatch", {"run.device": "cpu", "run.checkpoint_seconds": 1e-6}))
    slurm.queue(**{f"j{job}": "RUNNING"})
    process = begun(job)
    while not run.checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    assert process.wait() != 0
    assert slurm.told("scontrol") == f"requeue {job}"
    assert "saved" in (run.path / "log.txt").read_text()
    assert read_end(run.path, job) == RunEnded("stopped")


@pytest.mark.parametrize(("rate", "code"), [(1e30, 1), (0.01, 0)])
def test_a_job_leaves_a_record_if_its_run_fails_and_none_if_it_finishes(
    slurm: Slurm, runs: Path, digits: Path, begun: Begin, rate: float, code: int
) -> None:
    fields = {"run.device": "cpu", "train.epochs": 1, "train.milestones": [], "train.batch_size": 16}
    job, run = the_job(runs, digits, load_recipe("minibatch", {**fields, "train.learning_rate": rate}))
    run.path.mkdir()
    write_end(run.path, job, RunEnded("stopped", "in an earlier turn"))
    slurm.queue(**{f"j{job}": "RUNNING"})
    assert begun(job).wait() == code
    assert run.finished == (code == 0)
    ended = read_end(run.path, job)
    assert (ended and (ended.how, ended.reason[:22])) == (("failed", "the loss is not finite") if code else None)
    assert slurm.told("scontrol") == ""
