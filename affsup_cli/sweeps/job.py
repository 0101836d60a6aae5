"""What a job of a Slurm cluster does: runs, which it leaves saved and puts back into the queue when it must."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from affsup_cli.sweeps.jobs import forget_end, queued_jobs, write_end
from affsup_cli.sweeps.messages import Ended, Event, Order
from affsup_cli.sweeps.worker import carry_out

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class RunsJob:
    """Runs, one or several side by side, as submitit stores them, calls them, and stores them again to be called anew.

    Slurm sends SIGUSR2 when the job's time is nearly over, SIGTERM when it is cancelled, requeued or pre-empted. At
    either the runs save and leave after a step; if Slurm takes the job for running still, nobody else will put it
    back into the queue, and submitit's own handler of SIGUSR2 does. The next turn goes on from the checkpoints.
    """

    def __init__(self, orders: Sequence[Order]) -> None:
        self._orders = Order.line_of(orders)

    def __call__(self) -> None:
        """Do the runs, then leave: with exit code 0 if all are finished, so that those who need them may begin."""
        from submitit import JobEnvironment

        requeue: Any = signal.getsignal(signal.SIGUSR2)
        for number in _STOPPING:
            signal.signal(number, _interrupt)
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
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        for place, ended in unfinished.items():
            write_end(orders[place].folder, job, ended)
        stopped = any(ended.how == "stopped" for ended in unfinished.values())
        if stopped and queued_jobs()[job].state == "RUNNING":
            requeue(signal.SIGUSR2, None)
        sys.exit(1 if unfinished else 0)

    def checkpoint(self) -> DelayedSubmission:
        """Return what is called after a requeue: the same; each run's own folder says how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _interrupt(number: int, _: object) -> None:
    """Make all of them one: SIGTERM, which a run in its loop handles itself."""
    if number == signal.SIGUSR2:
        signal.raise_signal(signal.SIGTERM)
    else:
        raise KeyboardInterrupt
