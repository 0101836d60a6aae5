"""A process that does the runs of a sweep one after another: `python -m affsup_cli.sweeps.worker`.

It takes orders from its standard input and reports on its standard output (see `messages`). What a run prints goes to
`log.txt` in its folder. When the input ends, because the sweep is over, was stopped or has died, it leaves; a run in
progress saves its checkpoint first.
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
from pathlib import Path
from typing import Any

from affsup_cli.engine.observer import Observer, Progress
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.engine.stop import Stopped, StopRequest
from affsup_cli.errors import AffsupError
from affsup_cli.sweeps.messages import Ended, Epoch, Event, Order, event_to_line

LOG = "log.txt"
COST_ROUNDS = 40
_Tell = Callable[[Event], None]


def main() -> None:
    """Do what the standard input asks for until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Text that libraries print would mix with the reports: those keep the pipe, the file descriptor 1 becomes the log.
    pipe = os.dup(sys.stdout.fileno())

    def tell(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the end of the input says so too
            os.write(pipe, event_to_line(event))

    orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        for line in iter(orders.get, None):
            try:
                order = Order.from_line(line)
            except ValueError as error:
                tell(Ended("failed", f"its order cannot be read, as if affsup had changed meanwhile: {error}"))
            else:
                tell(carry_out(order, tell))


def _listen(orders: queue.SimpleQueue[bytes | None]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    orders.put(None)


def carry_out(order: Order, tell: Callable[[Event], None]) -> Ended:
    """Do one run; whatever becomes of it is said in its log and in what is returned."""
    try:
        with _log(order.folder / LOG) as write:
            try:
                write(f"process {os.getpid()} begins")
                _run(order, tell)
            except (Stopped, KeyboardInterrupt) as stopped:
                write(str(stopped) or "stopped")
                return Ended("stopped")
            except AffsupError as error:
                write(f"failed: {error}")
                return Ended("failed", _last_line(error))
            except Exception as error:
                write(f"failed:\n{traceback.format_exc()}")
                return Ended("failed", f"{type(error).__name__}: {_last_line(error)}")
            write("finished")
            return Ended("finished")
    except OSError as error:  # the log itself
        return Ended("failed", str(error))


def _run(order: Order, tell: _Tell) -> None:
    with StopRequest() as stop:  # an interrupted import leaves modules in pieces
        from affsup_cli.tasks.launch import measure_run, train_run
    if stop.requested:
        raise KeyboardInterrupt
    run = RunFolder(order.folder)
    if order.baseline is None:
        observers = [_Teller(tell)]
        train_run(order.recipe, order.data_dir, run, run.exists, lambda: observers, order.pretrained)
    else:
        begun = time.monotonic()

        def turned(turn: int) -> None:
            left = (time.monotonic() - begun) / turn * (COST_ROUNDS - turn)
            tell(Progress(turn, COST_ROUNDS, 1, 1, {}, 0.0, left))

        measure_run(order.baseline, order.recipe, order.data_dir, run, COST_ROUNDS, turned)


class _Teller(Observer):
    def __init__(self, tell: _Tell) -> None:
        self._tell = tell

    def progressed(self, progress: Progress) -> None:
        self._tell(progress)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        self._tell(Epoch(record))


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Callable[[str], None]]:
    """Send all that this process prints to the end of the file `path`; yields what writes a line with the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())

    def write(text: str) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        sys.stderr.write(f"{now} {text}\n")

    yield write
    sys.stdout.flush()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
