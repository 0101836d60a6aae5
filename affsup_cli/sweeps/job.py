"""What a job of a Slurm cluster does: runs, which it leaves saved and puts back into the queue when it must."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from affsup_cli.sweeps.jobs import forget_end, queued_jobs, write_end
from affsup_cli.sweeps.messages import Ended, Event, Order
from affsup_cli.sweeps.worker import carry_out
from data_prep.errors import AffsupError

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_PAUSES = (1.0, 2.0, 4.0)  # seconds after each time that Slurm does not answer


class RunsJob:
    """Runs, one or several side by side, as submitit stores them, calls them, and stores them again to be called anew.

    Slurm warns with submitit's signal (SIGUSR2, if the site has not named another) when the job's time is nearly over,
    and sends SIGTERM when it is cancelled, requeued or pre-empted. At either the runs save and leave after a step; one
    that does not in half of the time left, since it evaluates, is interrupted where it is. If Slurm takes the job for
    running still, nobody else will put it back into the queue, and submitit's own handler of the warning does. The
    next turn goes on from the checkpoints.

    Args:
        orders: the runs.
        notice: seconds between the warning and the end of the job's time.
    """

    def __init__(self, orders: Sequence[Order], notice: float) -> None:
        self._orders = Order.line_of(orders)
        self._notice = notice

    def __call__(self) -> None:
        """Do the runs, then leave: with exit code 0 if all are finished, so that those who need them may begin."""
        from submitit import JobEnvironment

        warning = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        requeue: Any = signal.getsignal(warning)
        for number in _STOPPING:
            signal.signal(number, _interrupt)
        signal.signal(warning, self._warned)
        orders, job = Order.several_from_line(self._orders), JobEnvironment().job_id
        unfinished = dict.fromkeys(range(len(orders)), Ended("stopped"))
        for order in orders:
            forget_end(order.folder)

        def tell(place: int, event: Event) -> None:
            if not isinstance(event, Ended):
                return
            if event.how == "finished":
                del unfinished[place]
            else:
                unfinished[place] = event
                write_end(orders[place].folder, job, event)

        with contextlib.suppress(KeyboardInterrupt):  # a second signal, while the first was obeyed
            carry_out(orders, tell)
        for number in (warning, *_STOPPING):
            signal.signal(number, signal.SIG_IGN)
        for place, ended in unfinished.items():
            write_end(orders[place].folder, job, ended)
        if any(ended.how == "stopped" for ended in unfinished.values()) and not _taken_away(job):
            requeue(warning, None)
        sys.exit(1 if unfinished else 0)

    def checkpoint(self) -> DelayedSubmission:
        """Return what is called after a requeue: the same; each run's own folder says how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _warned(self, _number: int, _frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._notice / 2)
        signal.raise_signal(signal.SIGTERM)  # which a run in its loop handles itself


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _taken_away(job: str) -> bool:
    """Say whether Slurm ends this job or puts it back itself; if it never says so, the run would be lost else."""
    for pause in _PAUSES:
        with contextlib.suppress(AffsupError, KeyError):
            return queued_jobs()[job].state != "RUNNING"
        time.sleep(pause)
    return False
