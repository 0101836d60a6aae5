"""A sweep on a Slurm cluster: submit its runs as jobs, report their state, cancel them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from affsup_cli.sweeps.messages import RunRequest
from affsup_cli.sweeps.plan import Plan, PlannedRun
from affsup_cli.sweeps.schedule import request_of
from affsup_cli.sweeps.slurm_job import RunJob
from affsup_cli.sweeps.slurm_queue import (
    QueuedJob,
    RecordedJob,
    cancel_jobs,
    queued_jobs,
    read_end,
    read_job,
    write_job,
)
from affsup_cli.sweeps.worker import LOG
from data_prep.errors import AffsupError, UsageError

if TYPE_CHECKING:
    from submitit import SlurmExecutor

JOBS = ".slurm"
"""Folder of submitit's own files, beside the run folders."""
JOB_MINUTES = 240
"""Time limit of a job; a run that needs longer is requeued and continues from its checkpoint."""
NOTICE_SECONDS = 300
"""How long before its time limit a job is signalled; for a short job a quarter of its limit."""
_MAX_REQUEUES = 100
_RESERVED = frozenset(
    (
        *("array", "dependency", "requeue", "signal", "output", "error", "chdir", "clusters"),
        *("nodes", "ntasks", "ntasks_per_node", "tasks_per_node"),
    )
)
_SUBMITIT_PARAMETERS = frozenset(("array_parallelism", "setup", "signal_delay_s", "srun_args", "teardown", "time"))
_LIST_PARAMETERS = frozenset(("setup", "srun_args", "teardown"))
_NUMBER_PARAMETERS = {
    "time": "minutes, such as 240",
    "array_parallelism": "how many jobs run at the same time, such as 8",
    "signal_delay_s": "seconds, such as 300",
}
_OPTIONS = {
    "job_name": "affsup",
    "requeue": True,
    "kill_on_invalid_dep": "yes",  # otherwise a job that depends on a failed one would wait for ever
}
_GPUS = frozenset(("gpus_per_node", "gpus_per_task", "gpus", "gres"))
_ENDED_BY_SLURM = frozenset(("CANCELLED", "PREEMPTED"))


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """The state of a run of a sweep.

    Attributes:
        state: "to do" if no job was submitted for it and no process of this machine trains it.
        job: the id of the job that was last submitted, if any.
        detail: the reason why a run is pending, failed or cancelled.
        log: for a failed run its log file, if there is one.
    """

    state: Literal["finished", "running", "pending", "failed", "cancelled", "to do"]
    job: str | None = None
    detail: str = ""
    log: Path | None = None


def slurm_parameters(settings: Iterable[tuple[str, str]], device: str) -> dict[str, Any]:
    """Return the parameters of each job, as submitit takes them.

    Args:
        settings: options of sbatch, and those that submitit adds to them; "true" for a flag. A setting that is a list
            of lines or arguments for submitit may be given several times.
        device: `run.device`; a run on anything but the CPU asks for one GPU, if the settings do not.

    Raises:
        UsageError: a setting is one that the sweep sets itself, is given twice, or is not the number that it must be.
    """
    given: dict[str, Any] = {}
    for name, value in settings:
        key = name.replace("-", "_")
        if key in _RESERVED:
            what = "a job is one process, started from this folder on this cluster"
            raise UsageError(f"--slurm {key}=…: {what}; the sweep sets '{key}' itself")
        if key in _LIST_PARAMETERS:
            given.setdefault(key, []).append(value)
        elif key in given:
            raise UsageError(f"--slurm {key}={value}: '{key}' was given already, as {given[key]}; give one of them")
        else:
            given[key] = _value(key, value)
    minutes = given.setdefault("time", JOB_MINUTES)
    given.setdefault("signal_delay_s", min(NOTICE_SECONDS, minutes * 60 // 4))
    if device != "cpu" and not _GPUS & given.keys():
        given["gpus_per_node"] = 1
    asked = {key: value for key, value in given.items() if key in _SUBMITIT_PARAMETERS}
    options = {key: value for key, value in given.items() if key not in _SUBMITIT_PARAMETERS}
    asked["additional_parameters"] = _OPTIONS | options
    # Otherwise each run would use all cores of its node.
    asked["setup"] = ["export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}", *asked.get("setup", [])]
    if "cpus_per_task" in given:  # from Slurm 22.05 on srun does not inherit it from the job
        asked["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}", *asked.get("srun_args", [])]
    return asked


def _value(key: str, text: str) -> int | str | Literal[True]:
    if key not in _NUMBER_PARAMETERS:
        return True if text == "true" else text
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"--slurm {key}={text}: expected {_NUMBER_PARAMETERS[key]}")
    return int(text)


def submit(plan: Plan, data_dir: Path, runs_dir: Path, asked: Mapping[str, Any]) -> dict[PlannedRun, str]:
    """Submit the runs that are neither finished nor in the queue; jobs with equal parameters are one array.

    A run that needs another begins when that is finished; if that fails, Slurm drops the dependent job. Runs with a
    damaged folder, and those that need them, are left out (`Plan.blocked`).

    Args:
        plan: what is to be done.
        data_dir: the folder of the prepared data sets.
        runs_dir: where the run folders are; submitit's own files go to `JOBS` there.
        asked: as `slurm_parameters` returns it.

    Returns:
        The submitted runs, each with the id of its job.

    Raises:
        AffsupError: Slurm is not installed or refuses.
    """
    from submitit import SlurmExecutor

    new: dict[PlannedRun, str] = {}
    with _sweep_lock(runs_dir) as folder:  # of two sweeps, one submits the runs that both need
        queue = queued_jobs()
        jobs, shutting_down = _active(plan, queue), _cancelled_but_running(plan, queue)
        executor = SlurmExecutor(folder, max_num_timeout=_MAX_REQUEUES)
        while left := [planned for planned in plan.to_do if planned not in jobs and planned not in plan.blocked]:
            ready = [planned for planned in left if planned.needs is None or planned.needs not in left]
            for parameters, planned_runs in _arrays(ready, jobs, shutting_down, asked):
                executor.parameters = {}
                with _sigint_ignored():
                    for planned, job in zip(
                        planned_runs, _submit_array(executor, parameters, planned_runs, data_dir), strict=True
                    ):
                        write_job(planned.folder.path, job)
                        jobs[planned] = new[planned] = job
    return new


def statuses(plan: Plan, runs_dir: Path) -> dict[PlannedRun, RunStatus]:
    """Return the state of each run of a sweep, from the run folders and from Slurm.

    Raises:
        AffsupError: Slurm is not installed or does not answer, and some run has been submitted.
    """
    records = {planned: read_job(planned.folder.path) for planned in plan.runs}
    asks = any(record is not None and planned.state != "finished" for planned, record in records.items())
    queue = queued_jobs() if asks else {}
    found: dict[PlannedRun, RunStatus] = {}
    for planned in sorted(plan.runs, key=_depth):  # a run comes after the one that it needs
        found[planned] = _status(planned, records[planned], queue, found, runs_dir)
    return {planned: found[planned] for planned in plan.runs}


def cancel(plan: Plan, runs_dir: Path) -> dict[PlannedRun, str]:
    """Cancel the jobs of a sweep that are in the queue or running; those that are running save a checkpoint and exit.

    Returns:
        The cancelled runs, each with the id of its job.

    Raises:
        AffsupError: Slurm is not installed or refuses.
    """
    with _sweep_lock(runs_dir):
        jobs = _active(plan, queued_jobs())
        if jobs:
            with _sigint_ignored():
                cancel_jobs(sorted(jobs.values()))
                for planned, job in jobs.items():
                    write_job(planned.folder.path, job, cancelled=True)
    return jobs


@contextlib.contextmanager
def _sweep_lock(runs_dir: Path) -> Iterator[Path]:
    """Yield the folder of submitit's files, locked: no other sweep of these runs submits or cancels meanwhile."""
    folder = runs_dir.absolute() / JOBS
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield folder


@contextlib.contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Ignore Ctrl-C, also in child processes: a job that no run folder records could be neither seen nor cancelled."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _active(plan: Plan, queue: Mapping[str, QueuedJob]) -> dict[PlannedRun, str]:
    """Return the runs that have a pending or running job, each with its job."""
    return {planned: record.job for planned, record in _recorded(plan).items() if _is_active(queue, record)}


def _cancelled_but_running(plan: Plan, queue: Mapping[str, QueuedJob]) -> dict[PlannedRun, str]:
    """Return the runs whose jobs were cancelled but may still hold the folder, each with its job."""
    there = {job for job, queued in queue.items() if not queued.over}
    return {
        planned: record.job for planned, record in _recorded(plan).items() if record.cancelled and record.job in there
    }


def _recorded(plan: Plan) -> dict[PlannedRun, RecordedJob]:
    records = {planned: read_job(planned.folder.path) for planned in plan.to_do}
    return {planned: record for planned, record in records.items() if record is not None}


def _is_active(queue: Mapping[str, QueuedJob], record: RecordedJob) -> bool:
    """Return whether a job is pending or running, and not cancelled."""
    queued = queue.get(record.job)
    return queued is not None and not queued.over and not record.cancelled


def _arrays(
    planned_runs: Sequence[PlannedRun],
    jobs: Mapping[PlannedRun, str],
    shutting_down: Mapping[PlannedRun, str],
    asked: Mapping[str, Any],
) -> list[tuple[dict[str, Any], list[PlannedRun]]]:
    """Group runs with equal submission parameters; each group, returned with its parameters, is one job array."""
    groups: dict[str, tuple[dict[str, Any], list[PlannedRun]]] = {}
    for planned in planned_runs:
        parameters = dict(asked)
        if planned.baseline is not None:  # a time measurement needs the node for itself
            parameters["exclusive"] = True
        needed = [jobs[planned.needs]] if planned.needs is not None and planned.needs in jobs else []
        # All cancelled jobs that still run, not this run's own alone: then one array waits for them.
        held = sorted(set(shutting_down.values())) if planned in shutting_down else []
        waits = [f"{kind}:{':'.join(ids)}" for kind, ids in (("afterok", needed), ("afterany", held)) if ids]
        if waits:
            parameters["dependency"] = ",".join(waits)
        groups.setdefault(json.dumps(parameters, sort_keys=True), (parameters, []))[1].append(planned)
    return list(groups.values())


def _submit_array(
    executor: SlurmExecutor, parameters: Mapping[str, Any], planned_runs: Sequence[PlannedRun], data_dir: Path
) -> list[str]:
    """Submit runs as one job array; returns the id of each run's job."""
    notice = parameters["signal_delay_s"]
    try:
        executor.update_parameters(**parameters)
        jobs = executor.submit_array(
            [RunJob(_absolute(request_of(planned, data_dir)), notice) for planned in planned_runs]
        )
    except RuntimeError as error:  # submitit raises it with sbatch's output
        lines = str(error).strip().splitlines() or ["sbatch failed and said nothing"]
        said = next((line for line in lines if "error:" in line or "unrecognized" in line), lines[-1])
        raise AffsupError(f"Slurm takes no jobs: {said}") from error
    finally:
        for leftover in (*executor.folder.glob(".submission_file_*"), *executor.folder.glob(f"{'[0-9a-f]' * 32}.pkl")):
            leftover.unlink()
    return [job.job_id for job in jobs]


def _absolute(request: RunRequest) -> RunRequest:
    return dataclasses.replace(
        request,
        data_dir=request.data_dir.absolute(),
        folder=request.folder.absolute(),
        pretrained=request.pretrained and request.pretrained.absolute(),
    )


def _status(
    planned: PlannedRun,
    record: RecordedJob | None,
    queue: Mapping[str, QueuedJob],
    found: Mapping[PlannedRun, RunStatus],
    runs_dir: Path,
) -> RunStatus:
    job = record.job if record else None
    match planned.state:
        case "finished":
            return RunStatus("finished", job)
        case "damaged":
            return RunStatus("failed", job, planned.damage)
    if record is None or job is None:
        return RunStatus("running" if planned.folder.in_use else "to do")
    queued = queue.get(job)
    if queued is not None and _is_active(queue, record):
        if queued.state == "PENDING":
            return RunStatus("pending", job, queued.reason)
        return RunStatus("running", job)
    if planned.needs is not None and found[planned.needs].state in ("failed", "cancelled"):
        return RunStatus("cancelled", job, f"needs {planned.needs.label}")
    ended = read_end(planned.folder.path, job)
    if ended is not None and ended.how == "failed":
        return RunStatus("failed", job, ended.reason, _newest(planned.folder.path / LOG))
    if ended is not None and ended.how == "busy":
        return RunStatus("cancelled", job, "another process had it; sweep again to go on")
    # Whatever the job recorded before it was requeued.
    died = queued is not None and queued.over and queued.state not in _ENDED_BY_SLURM
    if not died and (record.cancelled or queued or ended):
        return RunStatus("cancelled", job, "sweep again to go on")
    said = f"Slurm says {queued.state}" if queued else f"the job has left the queue (`sacct -j {job}` may know why)"
    # If the job ended before the run began, the run's log is an earlier job's.
    return RunStatus("failed", job, said, _newest(planned.folder.path / LOG, runs_dir / JOBS / f"{job}_0_log.err"))


def _newest(*logs: Path) -> Path | None:
    return max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime, default=None)


def _depth(planned: PlannedRun) -> int:
    return 0 if planned.needs is None else 1 + _depth(planned.needs)
