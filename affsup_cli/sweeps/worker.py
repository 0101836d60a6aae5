"""A worker process, which does runs of a sweep one after another: `python -m affsup_cli.sweeps.worker`.

The process reads requests from its standard input and writes events to its standard output (see `messages`). The output
of a run goes to `log.txt` in its folder. The worker exits when its input ends, because the sweep has finished, was
stopped or was killed; a run in progress saves its checkpoint first.
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
from affsup_cli.sweeps.messages import EpochEnded, Event, RunEnded, RunRequest, event_to_line
from affsup_cli.training.observers import Observer, Progress
from data_prep.errors import AffsupError

LOG = "log.txt"
COST_ROUNDS = 40
EmitEvent = Callable[[Event], None]
_Write = Callable[[str], None]


def main() -> None:
    """Do the requested runs, one after another, until the standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # What libraries print must not mix with the events: events keep the pipe, file descriptor 1 becomes the log.
    pipe = os.dup(sys.stdout.fileno())

    def emit(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):  # the sweep has ended: the end of the input says so too
            os.write(pipe, event_to_line(event))

    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        for line in iter(requests.get, None):
            _handle_request(line, emit)
        for number in (signal.SIGINT, signal.SIGTERM):  # the signal of `_read_requests` may come late
            signal.signal(number, signal.SIG_IGN)


def _read_requests(requests: queue.SimpleQueue[bytes | None]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    requests.put(None)


def _handle_request(line: bytes, emit: EmitEvent) -> None:
    try:
        request = RunRequest.from_line(line)
    except Exception as error:
        reason = f"{type(error).__name__}: {_last_line(error)}"
        emit(RunEnded("failed", f"its request cannot be read; affsup may have changed since the sweep began: {reason}"))
        return
    emit(execute_run(request, emit))


def execute_run(request: RunRequest, emit: EmitEvent) -> RunEnded:
    """Do one run, report its progress to `emit`, write its log, and return how it ended."""
    try:
        with _log(request.folder / LOG) as write:
            write(f"process {os.getpid()} begins")
            try:
                _run(request, emit)
            except (Exception, KeyboardInterrupt) as error:
                return _run_ended(error, write)
            return _run_ended(None, write)
    except OSError as error:  # the log itself
        return RunEnded("failed", str(error))


def _run_ended(error: BaseException | None, write: _Write) -> RunEnded:
    """Write to the log how a run has ended, and return it."""
    match error:
        case None:
            write("finished")
            return RunEnded("finished")
        case Stopped() | KeyboardInterrupt():
            write(str(error) or "stopped")
            return RunEnded("stopped")
        case RunInUse():
            write("another process does it")
            return RunEnded("busy")
        case AffsupError():
            write(f"failed: {error}")
            return RunEnded("failed", _last_line(error))
    write(f"failed:\n{''.join(traceback.format_exception(error))}")
    return RunEnded("failed", f"{type(error).__name__}: {_last_line(error)}")


def _run(request: RunRequest, emit: EmitEvent) -> None:
    with imports_uninterrupted():
        from affsup_cli.tasks.launch import measure_run, train_run

    run = RunFolder(request.folder)
    if request.baseline is None:
        train_run(
            request.recipe, request.data_dir, run, run.exists, partial(_event_observers, emit), request.pretrained
        )
    else:
        begun = time.monotonic()

        def turned(turn: int) -> None:
            left = (time.monotonic() - begun) / turn * (COST_ROUNDS - turn)
            emit(Progress(turn, COST_ROUNDS, 1, 1, {}, 0.0, left))

        measure_run(request.baseline, request.recipe, request.data_dir, run, COST_ROUNDS, turned)


class _EventObserver(Observer):
    def __init__(self, emit: EmitEvent) -> None:
        self._emit = emit

    def progressed(self, progress: Progress) -> None:
        self._emit(progress)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        self._emit(EpochEnded(record))


def _event_observers(emit: EmitEvent) -> list[Observer]:
    return [_EventObserver(emit)]


@contextlib.contextmanager
def _log(path: Path) -> Iterator[_Write]:
    """Append all output of this process to the file `path`; yields a function that writes a line with the time."""
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
