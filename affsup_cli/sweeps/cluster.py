"""A sweep on a Slurm cluster: its runs submitted as jobs, how they stand, and cancelled again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from affsup_cli.sweeps.job import RunsJob
from affsup_cli.sweeps.jobs import (
    QueuedJob,
    RecordedJob,
    cancel_jobs,
    queued_jobs,
    read_end,
    read_job,
    runs_of,
    write_job,
)
from affsup_cli.sweeps.messages import Order
from affsup_cli.sweeps.packs import Pack, packed
from affsup_cli.sweeps.plan import Plan, Step
from affsup_cli.sweeps.schedule import order_of
from affsup_cli.sweeps.worker import LOG
from data_prep.errors import AffsupError, UsageError

if TYPE_CHECKING:
    from submitit import SlurmExecutor

JOBS = ".slurm"
"""Folder of submitit's own files, beside the run folders."""
JOB_MINUTES = 240
"""Time that a job asks for; a run that needs longer goes on in another turn."""
NOTICE_SECONDS = 300
"""How long before that time is over a job is warned; of a short job a quarter of its time."""
_MAX_TURNS = 100
_OURS = frozenset(
    (
        *("array", "dependency", "requeue", "signal", "output", "error", "chdir", "clusters"),
        *("nodes", "ntasks", "ntasks_per_node", "tasks_per_node"),
    )
)
_SUBMITIT = frozenset(("array_parallelism", "setup", "signal_delay_s", "srun_args", "teardown", "time"))
_LISTS = frozenset(("setup", "srun_args", "teardown"))
_NUMBERS = {
    "time": "minutes, such as 240",
    "array_parallelism": "how many jobs run at the same time, such as 8",
    "signal_delay_s": "seconds, such as 300",
}
_OPTIONS = {
    "job_name": "affsup",
    "requeue": True,
    "kill_on_invalid_dep": "yes",  # those that need a run which has failed would wait for ever
}
_GPUS = frozenset(("gpus_per_node", "gpus_per_task", "gpus", "gres"))
_TAKEN_AWAY = frozenset(("CANCELLED", "PREEMPTED"))


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a run of a sweep is.

    Attributes:
        state: "to do" if no job has been submitted to do it.
        job: the id of the job that was last submitted, if any.
        detail: of a pending run what it waits for, of a failed or cancelled one why.
        log: of a failed run, where more is said, if there is such a file.
    """

    state: Literal["finished", "running", "pending", "failed", "cancelled", "to do"]
    job: str | None = None
    detail: str = ""
    log: Path | None = None


def asked_of_slurm(settings: Iterable[tuple[str, str]], device: str) -> dict[str, Any]:
    """Return what each job asks for, as submitit's parameters.

    Args:
        settings: options of sbatch, and those that submitit adds to them; "true" for a flag. What is a list of lines
            or arguments for submitit may come several times.
        device: `run.device`; a run on anything but the CPU asks for one GPU, if the settings do not.

    Raises:
        UsageError: a setting is the sweep's own business, comes twice, or is not the number that it should be.
    """
    given: dict[str, Any] = {}
    for name, value in settings:
        key = name.replace("-", "_")
        if key in _OURS:
            what = "a job is one process, begun from this folder on this cluster"
            raise UsageError(f"--slurm {key}=…: {what}; the sweep sets '{key}' itself")
        if key in _LISTS:
            given.setdefault(key, []).append(value)
        elif key in given:
            raise UsageError(f"--slurm {key}={value}: '{key}' was given already, as {given[key]}; give one of them")
        else:
            given[key] = _value(key, value)
    minutes = given.setdefault("time", JOB_MINUTES)
    given.setdefault("signal_delay_s", min(NOTICE_SECONDS, minutes * 60 // 4))
    if device != "cpu" and not _GPUS & given.keys():
        given["gpus_per_node"] = 1
    asked = {key: value for key, value in given.items() if key in _SUBMITIT}
    options = {key: value for key, value in given.items() if key not in _SUBMITIT}
    asked["additional_parameters"] = _OPTIONS | options
    # Each run would take all cores of its node otherwise.
    asked["setup"] = ["export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}", *asked.get("setup", [])]
    if "cpus_per_task" in given:  # from Slurm 22.05 on srun does not ask the job
        asked["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}", *asked.get("srun_args", [])]
    return asked


def _value(key: str, text: str) -> int | str | Literal[True]:
    if key not in _NUMBERS:
        return True if text == "true" else text
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"--slurm {key}={text}: expected {_NUMBERS[key]}")
    return int(text)


def submit(plan: Plan, data_dir: Path, runs_dir: Path, asked: Mapping[str, Any], together: int = 1) -> dict[Step, str]:
    """Submit the runs that are neither finished nor in the queue: jobs that ask for the same as one array.

    A run that needs another begins when that is finished; if it fails, Slurm drops the ones that need it.

    Args:
        plan: what is to be done.
        data_dir: where the data sets are prepared.
        runs_dir: where the run folders are; submitit's own files go to `JOBS` there.
        asked: as `asked_of_slurm` returns it.
        together: so many runs that are alike a job trains side by side at most.

    Returns:
        The new runs' jobs, by their ids.

    Raises:
        AffsupError: Slurm is not here or refuses, or a run folder is damaged.
    """
    damaged = [str(step.folder.path) for step in plan.to_do if step.state == "damaged"]
    if damaged:
        raise AffsupError(f"damaged: {', '.join(damaged)}. Move what is damaged away, then sweep again")
    from submitit import SlurmExecutor

    new: dict[Step, str] = {}
    with _alone(runs_dir) as folder:  # of two sweeps at a time, one submits what both need
        queue = queued_jobs()
        jobs, leaving = _active(plan, queue), _leaving(plan, queue)
        executor = SlurmExecutor(folder, max_num_timeout=_MAX_TURNS)
        while left := [step for step in plan.to_do if step not in jobs]:
            ready = [step for step in left if step.needs is None or step.needs not in left]
            for parameters, packs in _alike(packed(ready, together), jobs, leaving, asked):
                executor.parameters = {}
                with _undisturbed():
                    for pack, job in zip(packs, _submitted(executor, parameters, packs, data_dir), strict=True):
                        for step in pack:
                            write_job(step.folder.path, job)
                            jobs[step] = new[step] = job
    return new


def standings(plan: Plan, runs_dir: Path) -> dict[Step, Standing]:
    """Find out how the runs of a sweep stand, from their folders and from Slurm.

    Raises:
        AffsupError: Slurm is not here or does not answer, and some run has been submitted.
    """
    records = {step: read_job(step.folder.path) for step in plan.steps}
    asks = any(record is not None and step.state != "finished" for step, record in records.items())
    queue = queued_jobs() if asks else {}
    found: dict[Step, Standing] = {}
    for step in sorted(plan.steps, key=_depth):  # what a run needs stands before it
        found[step] = _standing(step, records[step], queue, found, runs_dir)
    return {step: found[step] for step in plan.steps}


def cancel(plan: Plan, runs_dir: Path) -> tuple[dict[Step, str], list[str]]:
    """Cancel the jobs of a sweep that are in the queue or run; those that run save and leave.

    Returns:
        The runs' jobs, by their ids, and the names of runs that are not of this sweep but trained beside them.

    Raises:
        AffsupError: Slurm is not here or refuses.
    """
    with _alone(runs_dir):
        jobs = _active(plan, queued_jobs())
        if not jobs:
            return {}, []
        runs = runs_of(set(jobs.values()), runs_dir)
        with _undisturbed():
            cancel_jobs(sorted(set(jobs.values())))
            for folder, job in runs.items():
                write_job(folder, job, cancelled=True)
    own = {step.folder.name for step in plan.steps}
    return jobs, [folder.name for folder in runs if folder.name not in own]


@contextlib.contextmanager
def _alone(runs_dir: Path) -> Iterator[Path]:
    """Yield the folder of submitit's files; no other sweep of these runs submits or cancels meanwhile."""
    folder = runs_dir.absolute() / JOBS
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield folder


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C, in the commands called too: a job that no run folder names could be neither seen nor cancelled."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _active(plan: Plan, queue: Mapping[str, QueuedJob]) -> dict[Step, str]:
    """Return the runs that a job does or will do, with these jobs."""
    return {step: record.job for step, record in _recorded(plan).items() if _goes_on(step, queue, record)}


def _leaving(plan: Plan, queue: Mapping[str, QueuedJob]) -> dict[Step, str]:
    """Return the runs whose jobs were cancelled but may still hold their folders, with these jobs."""
    there = {job for job, queued in queue.items() if not queued.over}
    return {step: record.job for step, record in _recorded(plan).items() if record.cancelled and record.job in there}


def _recorded(plan: Plan) -> dict[Step, RecordedJob]:
    records = {step: read_job(step.folder.path) for step in plan.to_do}
    return {step: record for step, record in records.items() if record is not None}


def _goes_on(step: Step, queue: Mapping[str, QueuedJob], record: RecordedJob) -> bool:
    """Say whether a job still does, or will do, this run; others that it does side by side may outlast it."""
    queued = queue.get(record.job)
    if queued is None or queued.over or record.cancelled:
        return False
    ended = read_end(step.folder.path, record.job)
    return ended is None or ended.how == "stopped"


def _alike(
    packs: Sequence[Pack], jobs: Mapping[Step, str], leaving: Mapping[Step, str], asked: Mapping[str, Any]
) -> list[tuple[dict[str, Any], list[Pack]]]:
    """Put packs that ask for the same together, each group with its parameters."""
    groups: dict[str, tuple[dict[str, Any], list[Pack]]] = {}
    for pack in packs:
        parameters = dict(asked)
        if any(step.baseline is not None for step in pack):  # nothing else may take its time
            parameters["exclusive"] = True
        needed = {jobs[step.needs] for step in pack if step.needs is not None and step.needs in jobs}
        # All that leave, not the run's own alone: one array then waits for them.
        held = set(leaving.values()) if any(step in leaving for step in pack) else set()
        waits = [f"{how}:{':'.join(sorted(of))}" for how, of in (("afterok", needed), ("afterany", held)) if of]
        if waits:
            parameters["dependency"] = ",".join(waits)
        groups.setdefault(json.dumps(parameters, sort_keys=True), (parameters, []))[1].append(pack)
    return list(groups.values())


def _submitted(
    executor: SlurmExecutor, parameters: Mapping[str, Any], packs: Sequence[Pack], data_dir: Path
) -> list[str]:
    notice = parameters["signal_delay_s"]
    jobs_to_do = [RunsJob([_absolute(order_of(step, data_dir)) for step in pack], notice) for pack in packs]
    try:
        executor.update_parameters(**parameters)
        jobs = executor.submit_array(jobs_to_do)
    except RuntimeError as error:  # submitit's word for what sbatch said
        lines = str(error).strip().splitlines() or ["sbatch failed and said nothing"]
        said = next((line for line in lines if "error:" in line or "unrecognized" in line), lines[-1])
        raise AffsupError(f"Slurm takes no jobs: {said}") from error
    finally:
        for litter in (*executor.folder.glob(".submission_file_*"), *executor.folder.glob(f"{'[0-9a-f]' * 32}.pkl")):
            litter.unlink()
    return [job.job_id for job in jobs]


def _absolute(order: Order) -> Order:
    return dataclasses.replace(
        order,
        data_dir=order.data_dir.absolute(),
        folder=order.folder.absolute(),
        pretrained=order.pretrained and order.pretrained.absolute(),
    )


def _standing(
    step: Step,
    record: RecordedJob | None,
    queue: Mapping[str, QueuedJob],
    found: Mapping[Step, Standing],
    runs_dir: Path,
) -> Standing:
    job = record.job if record else None
    match step.state:
        case "finished":
            return Standing("finished", job)
        case "damaged":
            return Standing("failed", job, f"{step.folder.path} is damaged: move it away, then sweep again")
    if record is None or job is None:
        return Standing("to do")
    queued = queue.get(job)
    if queued is not None and _goes_on(step, queue, record):
        if queued.state == "PENDING":
            return Standing("pending", job, queued.reason)
        return Standing("running", job)
    if step.needs is not None and found[step.needs].state in ("failed", "cancelled"):
        return Standing("cancelled", job, f"needs {step.needs.label}")
    ended = read_end(step.folder.path, job)
    if ended is not None and ended.how == "failed":
        return Standing("failed", job, ended.reason, _newest(step.folder.path / LOG))
    if ended is not None and ended.how == "busy":
        return Standing("cancelled", job, "another process had it; sweep again to go on")
    died = queued is not None and queued.over and queued.state not in _TAKEN_AWAY  # whatever an earlier turn said
    if not died and (record.cancelled or queued or ended):
        return Standing("cancelled", job, "sweep again to go on")
    said = f"Slurm says {queued.state}" if queued else f"the job has left the queue (`sacct -j {job}` may know why)"
    # It may have come to the run, or not: the run's log is then an earlier job's.
    return Standing("failed", job, said, _newest(step.folder.path / LOG, runs_dir / JOBS / f"{job}_0_log.err"))


def _newest(*logs: Path) -> Path | None:
    return max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime, default=None)


def _depth(step: Step) -> int:
    return 0 if step.needs is None else 1 + _depth(step.needs)
