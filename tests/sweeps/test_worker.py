from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, cast

import pytest

from affsup_cli.engine.own_process import own_process
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps import worker
from affsup_cli.sweeps.messages import Ended, Event, Order, event_from_line
from affsup_cli.tasks import launch

SLOW_SIGNAL = """
import signal, threading
from affsup_cli.sweeps import worker

left = threading.Event()
kill = signal.pthread_kill
late = []

def send(*arguments):
    left.wait()
    kill(*arguments)

def slow(*arguments):
    late.append(threading.Thread(target=send, args=arguments))
    late[0].start()

signal.pthread_kill = slow
worker.main()
left.set()
late[0].join()
"""


class Worker:
    """A worker process as the sweep that has started it sees it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def report(self, line: bytes) -> tuple[int, Event]:
        """Send a line, and return the next that it reports."""
        orders = cast(IO[bytes], self.process.stdin)
        orders.write(line)
        orders.flush()
        return event_from_line(cast(IO[bytes], self.process.stdout).readline())


@contextmanager
def hired() -> Iterator[Worker]:
    command, environment = own_process("affsup_cli.sweeps.worker")
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Worker(process)
        cast(IO[bytes], process.stdin).close()
        assert process.wait() == 0


def order(folder: Path, data: Path) -> Order:
    recipe = load_recipe("minibatch", {"data.name": "digits", "run.device": "cpu", "train.epochs": 1})
    return Order(recipe, None, data, folder, None)


def test_an_order_that_cannot_be_read_has_failed_and_the_next_is_carried_out(tmp_path: Path) -> None:
    with hired() as worker:
        unreadable = [worker.report(line) for line in (b"nonsense\n", b"null\n", b"[{}]\n")]
        carried_out = worker.report(Order.line_of([order(tmp_path / "run", tmp_path / "data")]))
    for place, ended in unreadable:
        assert place == 0
        assert isinstance(ended, Ended)
        assert ended.how == "failed"
        assert ended.reason.startswith("its order cannot be read, as if affsup had changed meanwhile: ")
    place, ended = carried_out
    assert isinstance(ended, Ended)
    assert "run `affsup prepare digits" in ended.reason


def test_a_run_that_another_process_holds_is_busy_not_failed(tmp_path: Path, digits: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.lock(), hired() as worker:
        assert worker.report(Order.line_of([order(run.path, digits)])) == (0, Ended("busy"))
    assert "--name" not in (run.path / "log.txt").read_text()


def test_the_signal_that_ends_a_worker_may_come_late() -> None:
    _, environment = own_process("affsup_cli.sweeps.worker")
    left = subprocess.run(
        [sys.executable, "-P", "-c", SLOW_SIGNAL], env=environment, input=b"", capture_output=True, check=False
    )
    assert (left.returncode, left.stderr) == (0, b"")


def test_what_a_run_that_failed_held_is_let_go_of_before_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        """Held by a frame of the traceback."""

    def fail() -> Exception:
        model = Model()
        seen.append(weakref.ref(model))
        try:
            raise RuntimeError(model)
        except RuntimeError as error:
            return error

    def train_together(*_: object) -> Iterator[tuple[int, Exception | None]]:
        yield 0, fail()
        gone.append(seen[0]() is None)
        yield 1, None

    seen: list[weakref.ref[Model]] = []
    gone: list[bool] = []
    told: list[tuple[int, Event]] = []
    monkeypatch.setattr(worker, "_log", lambda _: nullcontext(lambda _: None))
    monkeypatch.setattr(launch, "train_together", train_together)
    order = Order(load_recipe("minibatch"), None, Path("data"), Path("runs"), None)
    worker.carry_out([order, order], lambda place, event: told.append((place, event)))
    assert gone == [True]
    assert [(place, event.how) for place, event in told if isinstance(event, Ended)] == [(0, "failed"), (1, "finished")]
