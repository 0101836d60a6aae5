"""What a Slurm job does: one run, which is saved and requeued if the job must end before it."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from affsup_cli.sweeps.messages import RunEnded, RunRequest
from affsup_cli.sweeps.slurm_queue import clear_end, queued_jobs, write_end
from affsup_cli.sweeps.worker import execute_run
from data_prep.errors import AffsupError

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_PAUSES = (1.0, 2.0, 4.0)  # seconds to wait after each query that Slurm does not answer


class RunJob:
    """One run as a Slurm job: submitit stores this object, calls it, and stores it again when the job is requeued.

    Slurm sends submitit's signal (SIGUSR2, if the site has not configured another one) shortly before the job's time
    limit, and SIGTERM when the job is cancelled, requeued or pre-empted. At either the run finishes its step, saves a
    checkpoint and exits. A run that does not exit in half of the remaining time, because it evaluates, is interrupted.
    If Slurm still counts the job as running, Slurm will not requeue it, and submitit's signal handler does. The
    requeued job continues from the checkpoint.

    Args:
        request: the run.
        notice: seconds between the signal and the time limit.
    """

    def __init__(self, request: RunRequest, notice: float) -> None:
        self._request = request.to_line()
        self._notice = notice

    def __call__(self) -> None:
        """Do the run, then exit: with code 0 if it is finished, so that the jobs that depend on it may begin."""
        from submitit import JobEnvironment

        warning = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        requeue: Any = signal.getsignal(warning)
        for number in _STOPPING:
            signal.signal(number, _interrupt)
        signal.signal(warning, self._warned)
        request, job = RunRequest.from_line(self._request), JobEnvironment().job_id
        clear_end(request.folder)
        ended = RunEnded("stopped")
        with contextlib.suppress(KeyboardInterrupt):  # a second signal, while the first was handled
            ended = execute_run(request, lambda _: None)
        for number in (warning, *_STOPPING):
            signal.signal(number, signal.SIG_IGN)
        if ended.how != "finished":
            write_end(request.folder, job, ended)
        if ended.how == "stopped" and not _ended_by_slurm(job):
            requeue(warning, None)
        sys.exit(0 if ended.how == "finished" else 1)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit calls after a requeue: this object again; the run folder says how far the run is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _warned(self, _number: int, _frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._notice / 2)
        signal.raise_signal(signal.SIGTERM)  # the training loop has a handler of its own for it


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _ended_by_slurm(job: str) -> bool:
    """Return whether Slurm itself ends or requeues this job; False if it does not answer, so that no run is lost."""
    for pause in _PAUSES:
        with contextlib.suppress(AffsupError, KeyError):
            return queued_jobs()[job].state != "RUNNING"
        time.sleep(pause)
    return False
