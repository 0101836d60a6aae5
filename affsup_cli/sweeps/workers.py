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
from affsup_cli.sweeps.messages import Event, RunEnded, RunRequest, event_from_line
from affsup_cli.sweeps.slots import Slot


@dataclasses.dataclass(eq=False)
class _Worker:
    """A process, which lives until its standard input is closed.

    Attributes:
        slot: the slot of the process.
        process: the process.
        run: number of the run in progress, None while the process is idle.
        shutting_down: the process was told to exit.
    """

    slot: Slot
    process: subprocess.Popen[bytes]
    run: int | None = None
    shutting_down: bool = False

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

    def send(self, number: int, request: RunRequest) -> None:
        self.run = number
        pipe = cast(IO[bytes], self.process.stdin)
        with contextlib.suppress(BrokenPipeError):  # the process has ended: `_read_events` reports it
            pipe.write(request.to_line())
            pipe.flush()

    def shut_down(self) -> None:
        """Tell the process to exit; a run in progress saves a checkpoint first."""
        self.shutting_down = True
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

    def start(self, number: int, request: RunRequest) -> str:
        """Start a run on the device that has the fewest, by an idle worker or a new one; returns the device."""
        load = Counter(worker.slot.device for worker in self._workers if worker.run is not None)
        idle = {worker.slot: worker for worker in self._workers if worker.run is None and not worker.shutting_down}
        slot = min(self._free_slots(), key=lambda slot: (load[slot.device], slot not in idle))
        worker = idle.get(slot) or self._start_worker(slot)
        worker.send(number, _for_slot(slot, request))
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
            worker.shut_down()

    def close(self) -> None:
        """Shut down idle workers and kill the others."""
        for worker in self._workers:
            if worker.run is not None:
                worker.process.kill()
            worker.shut_down()
        for worker in self._workers:
            worker.process.wait()

    def _events(self, worker: _Worker, line: bytes) -> list[tuple[int, Event]]:
        if not line:
            self._workers.remove(worker)
            cause = _exit_reason(worker.process.wait())
            ended = RunEnded("stopped") if worker.shutting_down else RunEnded("failed", cause)
            return [] if worker.run is None else [(worker.run, ended)]
        event = event_from_line(line)
        number = cast(int, worker.run)
        if isinstance(event, RunEnded):
            worker.run = None
            if event.how != "finished":  # an error may leave the process in any state
                worker.shut_down()
        return [(number, event)]

    def _free_slots(self) -> list[Slot]:
        """Return the slots whose worker is idle, and the slots without a worker."""
        taken = [worker.slot for worker in self._workers if worker.run is not None or worker.shutting_down]
        return [slot for slot in self._slots if slot not in taken]

    def _start_worker(self, slot: Slot) -> _Worker:
        worker = _Worker.started(slot)
        self._workers.append(worker)
        threading.Thread(target=self._read_events, args=(worker,), daemon=True).start()
        return worker

    def _read_events(self, worker: _Worker) -> None:
        with cast(IO[bytes], worker.process.stdout) as lines:
            for line in lines:
                if line.endswith(b"\n"):  # a killed process may leave half a line
                    self._lines.put((worker, line))
        self._lines.put((worker, b""))


def _for_slot(slot: Slot, request: RunRequest) -> RunRequest:
    baseline = slot.recipe(request.baseline) if request.baseline else None
    return dataclasses.replace(request, recipe=slot.recipe(request.recipe), baseline=baseline)


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"its process left with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory, if nobody else has sent it)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
