"""What a job of a Slurm cluster does: one run, which it leaves saved and puts back into the queue when it must."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

from affsup_cli.sweeps.jobs import queued_jobs, write_end
from affsup_cli.sweeps.messages import Ended, Event, Order
from affsup_cli.sweeps.worker import carry_out

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class RunJob:
    """A run as submitit stores it, calls it in the job, and stores it again to be called anew after a requeue.

    Slurm sends SIGUSR2 when the job's time is nearly over, SIGTERM when it is cancelled, requeued or pre-empted. At
    either the run saves and leaves after its step; if Slurm takes the job for running still, nobody else will put it
    back into the queue, and submitit's own handler of SIGUSR2 does. The next turn goes on from the checkpoint.
    """

    def __init__(self, order: Order) -> None:
        self._order = order.to_line()

    def __call__(self) -> None:
        """Do the run, then leave: with exit code 0 if it is finished, so that those who need it may begin."""
        from submitit import JobEnvironment

        requeue: Any = signal.getsignal(signal.SIGUSR2)
        for number in _STOPPING:
            signal.signal(number, _interrupt)
        order, job = Order.from_line(self._order), JobEnvironment().job_id
        try:
            ended = carry_out(order, _say_nothing)
        except KeyboardInterrupt:  # a second signal, while the first was obeyed
            ended = Ended("stopped")
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        if ended.how == "finished":
            sys.exit(0)
        write_end(order.folder, job, ended)
        if ended.how == "stopped" and queued_jobs()[job].state == "RUNNING":
            requeue(signal.SIGUSR2, None)
        sys.exit(1)

    def checkpoint(self) -> DelayedSubmission:
        """Return what is called after a requeue: the same; the run's own folder says how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _interrupt(number: int, _: object) -> None:
    """Make all of them one: SIGTERM, which a run in its loop handles itself."""
    if number == signal.SIGUSR2:
        signal.raise_signal(signal.SIGTERM)
    else:
        raise KeyboardInterrupt


def _say_nothing(_: Event) -> None:
    """Nobody listens; what there is to know stands in the run's folder."""
