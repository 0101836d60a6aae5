"""Slurm jobs: the records of them in run folders, and Slurm's own commands.

job.json        written when a run is submitted, with the job's id, and when the job is cancelled
job-ended.json  written by a job that ends with its run unfinished, with the reason; removed when it begins again
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from affsup_cli.runs.folder import atomic_file
from affsup_cli.sweeps.messages import RunEnded
from data_prep.errors import AffsupError

_JOB = "job.json"
_ENDED = "job-ended.json"
# A job in any other state, such as CONFIGURING, REQUEUED or COMPLETING, may still run.
_FINAL_STATES = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)


@dataclasses.dataclass(frozen=True)
class QueuedJob:
    """A job in Slurm's queue: its state, and why it is pending if it is, in Slurm's words."""

    state: str
    reason: str

    @property
    def over(self) -> bool:
        """Whether it will not run again."""
        return self.state in _FINAL_STATES


@dataclasses.dataclass(frozen=True)
class RecordedJob:
    """The job that was last submitted for a run: its id, and whether a sweep has cancelled it."""

    job: str
    cancelled: bool = False


def write_job(folder: Path, job: str, cancelled: bool = False) -> None:
    """Record that `job` does the run of `folder`, or did until it was cancelled."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _JOB, dataclasses.asdict(RecordedJob(job, cancelled)))


def read_job(folder: Path) -> RecordedJob | None:
    """Return the job that was last submitted for a run, None if none was."""
    content = _read(folder / _JOB, "job")
    return None if content is None else RecordedJob(content["job"], content.get("cancelled", False))


def clear_end(folder: Path) -> None:
    """Remove what a job recorded before it was requeued."""
    (folder / _ENDED).unlink(missing_ok=True)


def write_end(folder: Path, job: str, ended: RunEnded) -> None:
    """Record how `job` ended with the run of `folder` unfinished."""
    _write(folder / _ENDED, {"job": job, **dataclasses.asdict(ended)})


def read_end(folder: Path, job: str) -> RunEnded | None:
    """Return how `job` ended with its run unfinished; None if it has not ended, was killed, or finished the run."""
    content = _read(folder / _ENDED, "job", "how", "reason")
    if content is None or content["job"] != job:  # an earlier job's
        return None
    return RunEnded(content["how"], content["reason"])


def queued_jobs() -> dict[str, QueuedJob]:
    """Return this user's jobs by id, from squeue: those in the queue, and for some minutes those that have left it.

    Raises:
        AffsupError: Slurm is not installed, or does not answer.
    """
    answer = _slurm("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r")
    rows = (line.split("|", maxsplit=2) for line in answer.splitlines())
    return {job: QueuedJob(state, reason) for job, state, reason in rows}


def cancel_jobs(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that are running are signalled to save and exit.

    Raises:
        AffsupError: Slurm is not installed, or refuses.
    """
    _slurm("scancel", *jobs)


def _slurm(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    except FileNotFoundError:
        raise AffsupError(
            f"Slurm not found: `{command[0]}` is not on the PATH. Run this command on a login node of the cluster"
        ) from None
    except subprocess.CalledProcessError as error:
        raise AffsupError(f"Slurm's {command[0]} failed: {error.stderr.strip()}") from error


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _read(path: Path, *needed: str) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if there is no file; the fields `needed` must be strings."""
    then = "Remove it; the next sweep then submits the run again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise AffsupError(f"{path} is not valid JSON: {error}. {then}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(field), str) for field in needed):
        raise AffsupError(f"{path} is damaged: expected an object with texts as {', '.join(needed)}. {then}")
    return content
