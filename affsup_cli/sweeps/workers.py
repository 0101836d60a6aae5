"""Worker processes on this machine, one for each place."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, cast

from affsup_cli.engine.own_process import own_process
from affsup_cli.sweeps.messages import Ended, Event, Order, event_from_line
from affsup_cli.sweeps.places import Place


@dataclasses.dataclass(eq=False)
class _Worker:
    """A process, which lives until its standard input is closed.

    Attributes:
        place: where it is.
        process: the process.
        numbers: of the runs that it was last told to do, in their order.
        at_work: those of them that have not ended.
        failed: one of them has not come to a good end.
        leaving: it was told to leave.
    """

    place: Place
    process: subprocess.Popen[bytes]
    numbers: list[int] = dataclasses.field(default_factory=list)
    at_work: set[int] = dataclasses.field(default_factory=set)
    failed: bool = False
    leaving: bool = False

    @classmethod
    def hired(cls, place: Place) -> _Worker:
        command, environment = own_process("affsup_cli.sweeps.worker")
        process = subprocess.Popen(  # noqa: S603
            command,
            env={**environment, **place.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return cls(place, process)

    def send(self, orders: Mapping[int, Order]) -> None:
        self.numbers, self.at_work = list(orders), set(orders)
        line = cast(IO[bytes], self.process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it has died: the end of its output says so
            line.write(Order.line_of(list(orders.values())))
            line.flush()

    def dismiss(self) -> None:
        """Let it leave, after a checkpoint if it is at work."""
        self.leaving = True
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], self.process.stdin).close()


class LocalWorkers:
    """A `Launcher` whose runs are done by one process a place, each after run in the same as long as none fails.

    A process of its own session: Ctrl-C reaches the sweep alone, which then tells its workers. They also notice its
    death, since their standard input ends with it.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._workers: list[_Worker] = []
        self._heard: queue.SimpleQueue[tuple[_Worker, bytes]] = queue.SimpleQueue()

    def has_room(self) -> bool:
        """Say whether a place is free."""
        return self._idle() is not None or bool(self._free_places())

    def start(self, orders: Mapping[int, Order]) -> str:
        """Give the orders to an idle worker or to a new one; returns its device."""
        worker = self._idle() or self._hire(self._free_places()[0])
        worker.send({number: _at(worker.place, order) for number, order in orders.items()})
        return worker.place.device

    def events(self, seconds: float) -> Iterator[tuple[int, Event]]:
        """Yield what the workers report, the death of one as a failure of its runs."""
        with contextlib.suppress(queue.Empty):
            worker, line = self._heard.get(timeout=seconds)
            while True:
                yield from self._events(worker, line)
                worker, line = self._heard.get_nowait()

    def stop(self) -> None:
        """Tell all workers to save and leave."""
        for worker in self._workers:
            worker.dismiss()

    def close(self) -> None:
        """Dismiss those that are idle and kill the others."""
        for worker in self._workers:
            if worker.at_work:
                worker.process.kill()
            worker.dismiss()
        for worker in self._workers:
            worker.process.wait()

    def _events(self, worker: _Worker, line: bytes) -> list[tuple[int, Event]]:
        if not line:
            self._workers.remove(worker)
            cause = _cause_of_death(worker.process.wait())
            ended = Ended("stopped") if worker.leaving else Ended("failed", cause)
            return [(number, ended) for number in sorted(worker.at_work)]
        place, event = event_from_line(line)
        number = worker.numbers[place]
        if isinstance(event, Ended):
            worker.at_work.remove(number)
            worker.failed = worker.failed or event.how != "finished"
            if worker.failed and not worker.at_work:  # what an error leaves in a process is nobody's to know
                worker.dismiss()
        return [(number, event)]

    def _idle(self) -> _Worker | None:
        return next((worker for worker in self._workers if not worker.at_work and not worker.leaving), None)

    def _free_places(self) -> list[Place]:
        taken = [worker.place for worker in self._workers]
        return [place for place in self._places if place not in taken]

    def _hire(self, place: Place) -> _Worker:
        worker = _Worker.hired(place)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        with cast(IO[bytes], worker.process.stdout) as lines:
            for line in lines:
                if line.endswith(b"\n"):  # a process that is killed may leave half of one
                    self._heard.put((worker, line))
        self._heard.put((worker, b""))


def _at(place: Place, order: Order) -> Order:
    baseline = place.recipe(order.baseline) if order.baseline else None
    return dataclasses.replace(order, recipe=place.recipe(order.recipe), baseline=baseline)


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"its process left with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory, if nobody else has sent it)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
