"""Worker processes on this machine, one for each slot."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, cast

from affsup_cli.runtime.subprocess_command import subprocess_command
from affsup_cli.sweeps.messages import Ended, Event, Order, event_from_line
from affsup_cli.sweeps.slots import Slot


@dataclasses.dataclass(eq=False)
class _Worker:
    """A process, which lives until its standard input is closed.

    Attributes:
        slot: where it is.
        process: the process.
        run: number of the run that it is doing, None while it is idle.
        leaving: it was told to exit.
    """

    slot: Slot
    process: subprocess.Popen[bytes]
    run: int | None = None
    leaving: bool = False

    @classmethod
    def started(cls, slot: Slot) -> _Worker:
        command, environment = subprocess_command("affsup_cli.sweeps.worker")
        process = subprocess.Popen(  # noqa: S603
            command,
            env={**environment, **slot.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return cls(slot, process)

    def send(self, number: int, order: Order) -> None:
        self.run = number
        pipe = cast(IO[bytes], self.process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it has died: the end of its output says so
            pipe.write(order.to_line())
            pipe.flush()

    def dismiss(self) -> None:
        """Tell it to exit, after a checkpoint if it is doing a run."""
        self.leaving = True
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], self.process.stdin).close()


class LocalWorkers:
    """A `Launcher` with one worker process a slot. A worker does run after run; one whose run has failed is replaced.

    Each worker has a session of its own: Ctrl-C reaches the sweep alone, which then tells its workers to exit. They
    also exit when the sweep is killed, since their standard input ends.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._workers: list[_Worker] = []
        self._lines: queue.SimpleQueue[tuple[_Worker, bytes]] = queue.SimpleQueue()

    def has_room(self) -> bool:
        """Return whether a slot is free."""
        return bool(self._free_slots())

    def start(self, number: int, order: Order) -> str:
        """Start a run on the device that has the fewest, by an idle worker or a new one; returns the device."""
        load = Counter(worker.slot.device for worker in self._workers if worker.run is not None)
        idle = {worker.slot: worker for worker in self._workers if worker.run is None and not worker.leaving}
        slot = min(self._free_slots(), key=lambda slot: (load[slot.device], slot not in idle))
        worker = idle.get(slot) or self._start_worker(slot)
        worker.send(number, _at(slot, order))
        return slot.device

    def events(self, seconds: float) -> Iterator[tuple[int, Event]]:
        """Yield the workers' events; the death of a worker is a failure of its run."""
        with contextlib.suppress(queue.Empty):
            worker, line = self._lines.get(timeout=seconds)
            while True:
                yield from self._events(worker, line)
                worker, line = self._lines.get_nowait()

    def stop(self) -> None:
        """Tell all workers to save and exit."""
        for worker in self._workers:
            worker.dismiss()

    def close(self) -> None:
        """Dismiss those that are idle and kill the others."""
        for worker in self._workers:
            if worker.run is not None:
                worker.process.kill()
            worker.dismiss()
        for worker in self._workers:
            worker.process.wait()

    def _events(self, worker: _Worker, line: bytes) -> list[tuple[int, Event]]:
        if not line:
            self._workers.remove(worker)
            cause = _cause_of_death(worker.process.wait())
            ended = Ended("stopped") if worker.leaving else Ended("failed", cause)
            return [] if worker.run is None else [(worker.run, ended)]
        event = event_from_line(line)
        number = cast(int, worker.run)
        if isinstance(event, Ended):
            worker.run = None
            if event.how != "finished":  # an error may leave the process in any state
                worker.dismiss()
        return [(number, event)]

    def _free_slots(self) -> list[Slot]:
        """Return the slots that have an idle worker, or none."""
        taken = [worker.slot for worker in self._workers if worker.run is not None or worker.leaving]
        return [slot for slot in self._slots if slot not in taken]

    def _start_worker(self, slot: Slot) -> _Worker:
        worker = _Worker.started(slot)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        with cast(IO[bytes], worker.process.stdout) as lines:
            for line in lines:
                if line.endswith(b"\n"):  # a process that is killed may leave half of one
                    self._lines.put((worker, line))
        self._lines.put((worker, b""))


def _at(slot: Slot, order: Order) -> Order:
    baseline = slot.recipe(order.baseline) if order.baseline else None
    return dataclasses.replace(order, recipe=slot.recipe(order.recipe), baseline=baseline)


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"its process left with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory, if nobody else has sent it)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
