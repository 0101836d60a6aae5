"""A process that does the runs of a sweep one after another: `python -m affsup_cli.sweeps.worker`.

It takes orders from its standard input and reports on its standard output (see `messages`). What a run prints goes to
`log.txt` in its folder. When the input ends, because the sweep is over, was stopped or has died, it leaves; a run in
progress saves its checkpoint first.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from affsup_cli.engine.observer import Observer, Progress
from affsup_cli.engine.run_folder import RunFolder, RunInUse
from affsup_cli.engine.stop import Stopped, imports_whole
from affsup_cli.sweeps.messages import Ended, Epoch, Event, Order, event_to_line
from data_prep.errors import AffsupError

LOG = "log.txt"
COST_ROUNDS = 40
_Tell = Callable[[Event], None]
_Write = Callable[[str], None]


def main() -> None:
    """Do what the standard input asks for until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Text that libraries print would mix with the reports: those keep the pipe, the file descriptor 1 becomes the log.
    pipe = os.dup(sys.stdout.fileno())

    def tell(place: int, event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the end of the input says so too
            os.write(pipe, event_to_line(place, event))

    orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        for line in iter(orders.get, None):
            _obey(line, tell)
        for number in (signal.SIGINT, signal.SIGTERM):  # that of `_listen` may come late, and stops nothing any more
            signal.signal(number, signal.SIG_IGN)


def _listen(orders: queue.SimpleQueue[bytes | None]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    orders.put(None)


def _obey(line: bytes, tell: Callable[[int, Event], None]) -> None:
    try:
        orders = Order.several_from_line(line)
    except Exception as error:
        said = f"{type(error).__name__}: {_last_line(error)}"
        for place in range(_count(line)):
            tell(place, Ended("failed", f"its order cannot be read, as if affsup had changed meanwhile: {said}"))
        return
    carry_out(orders, tell)


def _count(line: bytes) -> int:
    """Return how many orders there are in a line that cannot be read."""
    try:
        found = json.loads(line)
    except ValueError:
        return 1
    return len(found) if isinstance(found, list) else 1


def carry_out(orders: Sequence[Order], tell: Callable[[int, Event], None]) -> None:
    """Do runs, several side by side; what becomes of each is said in its log, and told last with its place."""
    if len(orders) == 1:
        tell(0, _carry_out_one(orders[0], partial(tell, 0)))
    else:
        _carry_out_together(orders, tell)


def _carry_out_one(order: Order, tell: _Tell) -> Ended:
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


def _carry_out_together(orders: Sequence[Order], tell: Callable[[int, Event], None]) -> None:
    """Do training runs side by side, each with its log; what libraries print goes to the last one's."""
    with contextlib.ExitStack() as logs:
        writes: dict[int, _Write] = {}
        for place, order in enumerate(orders):
            try:
                writes[place] = logs.enter_context(_log(order.folder / LOG))
            except OSError as error:
                tell(place, Ended("failed", str(error)))
            else:
                writes[place](f"process {os.getpid()} begins, with {len(orders)} runs side by side")
        left = list(writes)
        try:
            _load_what_trains()
            from affsup_cli.tasks.launch import Planned, train_together

            pack = [
                Planned(orders[place].recipe, RunFolder(orders[place].folder), partial(_tellers, partial(tell, place)))
                for place in writes
            ]
            for number, failure in train_together(pack, orders[0].data_dir):
                place = list(writes)[number]
                left.remove(place)
                tell(place, _ended(failure, writes[place]))
                del failure  # its traceback holds the memory of the run
        except (Exception, KeyboardInterrupt) as error:
            for place in left:
                tell(place, _ended(error, writes[place]))


def _ended(error: BaseException | None, write: _Write) -> Ended:
    """Write down how a run has come to its end, and return it."""
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


def _load_what_trains() -> None:
    with imports_whole():
        import affsup_cli.tasks.launch  # noqa: F401


def _run(order: Order, tell: _Tell) -> None:
    _load_what_trains()
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
    def __init__(self, tell: _Tell) -> None:
        self._tell = tell

    def progressed(self, progress: Progress) -> None:
        self._tell(progress)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        self._tell(Epoch(record))


def _tellers(tell: _Tell) -> list[Observer]:
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
