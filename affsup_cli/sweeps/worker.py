"""A worker process, which does runs of a sweep one after another: `python -m affsup_cli.sweeps.worker`.

It reads orders from its standard input and writes events to its standard output (see `messages`). What a run prints
goes to `log.txt` in its folder. The worker exits when its input ends, because the sweep has finished, was stopped or
was killed; a run in progress saves its checkpoint first.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from affsup_cli.runs.folder import RunFolder, RunInUse
from affsup_cli.runtime.stop import Stopped, imports_uninterrupted
from affsup_cli.sweeps.messages import Ended, Epoch, Event, Order, event_to_line
from affsup_cli.training.observers import Observer, Progress
from data_prep.errors import AffsupError

LOG = "log.txt"
COST_ROUNDS = 40
Tell = Callable[[Event], None]
_Write = Callable[[str], None]


def main() -> None:
    """Do the runs that the standard input orders, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # What libraries print must not mix with the events: events keep the pipe, file descriptor 1 becomes the log.
    pipe = os.dup(sys.stdout.fileno())

    def tell(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):  # the sweep has ended: the end of the input says so too
            os.write(pipe, event_to_line(event))

    orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        for line in iter(orders.get, None):
            _obey(line, tell)
        for number in (signal.SIGINT, signal.SIGTERM):  # the signal of `_listen` may come late
            signal.signal(number, signal.SIG_IGN)


def _listen(orders: queue.SimpleQueue[bytes | None]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    orders.put(None)


def _obey(line: bytes, tell: Tell) -> None:
    try:
        order = Order.from_line(line)
    except Exception as error:
        reason = f"{type(error).__name__}: {_last_line(error)}"
        tell(Ended("failed", f"its order cannot be read; affsup may have changed since the sweep began: {reason}"))
        return
    tell(do_run(order, tell))


def do_run(order: Order, tell: Tell) -> Ended:
    """Do one run, report its progress to `tell`, write its log, and return how it ended."""
    try:
        with _log(order.folder / LOG) as write:
            write(f"process {os.getpid()} begins")
            try:
                _run(order, tell)
            except (Exception, KeyboardInterrupt) as error:
                return _ended(error, write)
            return _ended(None, write)
    except OSError as error:  # the log itself
        return Ended("failed", str(error))


def _ended(error: BaseException | None, write: _Write) -> Ended:
    """Write to the log how a run has ended, and return it."""
    match error:
        case None:
            write("finished")
            return Ended("finished")
        case Stopped() | KeyboardInterrupt():
            write(str(error) or "stopped")
            return Ended("stopped")
        case RunInUse():
            write("another process does it")
            return Ended("busy")
        case AffsupError():
            write(f"failed: {error}")
            return Ended("failed", _last_line(error))
    write(f"failed:\n{''.join(traceback.format_exception(error))}")
    return Ended("failed", f"{type(error).__name__}: {_last_line(error)}")


def _run(order: Order, tell: Tell) -> None:
    with imports_uninterrupted():
        from affsup_cli.tasks.launch import measure_run, train_run

    run = RunFolder(order.folder)
    if order.baseline is None:
        train_run(order.recipe, order.data_dir, run, run.exists, partial(_tellers, tell), order.pretrained)
    else:
        begun = time.monotonic()

        def turned(turn: int) -> None:
            left = (time.monotonic() - begun) / turn * (COST_ROUNDS - turn)
            tell(Progress(turn, COST_ROUNDS, 1, 1, {}, 0.0, left))

        measure_run(order.baseline, order.recipe, order.data_dir, run, COST_ROUNDS, turned)


class _Teller(Observer):
    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def progressed(self, progress: Progress) -> None:
        self._tell(progress)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        self._tell(Epoch(record))


def _tellers(tell: Tell) -> list[Observer]:
    return [_Teller(tell)]


@contextlib.contextmanager
def _log(path: Path) -> Iterator[_Write]:
    """Send all that this process prints to the end of the file `path`; yields what writes a line with the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())

        def write(text: str) -> None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            file.write(f"{now} {text}\n")
            file.flush()

        yield write
        sys.stdout.flush()


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
