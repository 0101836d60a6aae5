from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.subprocess_command import subprocess_command
from affsup_cli.sweeps.messages import EpochEnded, Event, RunEnded, RunRequest, event_from_line
from affsup_cli.training.observers import Progress

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

    def report(self, line: bytes) -> Event:
        """Send a line, and return the next that it reports."""
        requests = cast(IO[bytes], self.process.stdin)
        requests.write(line)
        requests.flush()
        return self.next_event()

    def next_event(self) -> Event:
        """Return the next event that it reports."""
        return event_from_line(cast(IO[bytes], self.process.stdout).readline())


@contextmanager
def hired() -> Iterator[Worker]:
    command, environment = subprocess_command("affsup_cli.sweeps.worker")
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Worker(process)
        cast(IO[bytes], process.stdin).close()
        assert process.wait() == 0


def request(folder: Path, data: Path) -> RunRequest:
    recipe = load_recipe("minibatch", {"data.name": "digits", "run.device": "cpu", "train.epochs": 1})
    return RunRequest(recipe, None, data, folder, None)


def test_an_order_that_cannot_be_read_has_failed_and_the_next_is_carried_out(tmp_path: Path) -> None:
    with hired() as worker:
        unreadable = [worker.report(line) for line in (b"nonsense\n", b"null\n", b"{}\n")]
        carried_out = worker.report(request(tmp_path / "run", tmp_path / "data").to_line())
    for ended in unreadable:
        assert isinstance(ended, RunEnded)
        assert ended.how == "failed"
        assert ended.reason.startswith("its request cannot be read; affsup may have changed since the sweep began: ")
    assert isinstance(carried_out, RunEnded)
    assert "run `affsup prepare digits" in carried_out.reason


def test_a_run_reports_its_progress_each_epoch_and_its_end(tmp_path: Path, digits: Path) -> None:
    recipe = load_recipe("minibatch", {"data.name": "digits", "run.device": "cpu", "train.epochs": 2})
    run = RunFolder(tmp_path / "run")
    requested = RunRequest(recipe, None, digits, run.path, None)
    with hired() as worker:
        events = [worker.report(requested.to_line())]
        while not isinstance(events[-1], RunEnded):
            events.append(worker.next_event())
    assert [event.record for event in events if isinstance(event, EpochEnded)] == run.metrics()
    assert any(isinstance(event, Progress) for event in events)
    assert events[-1] == RunEnded("finished")


def test_a_run_that_another_process_holds_is_busy_not_failed(tmp_path: Path, digits: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.lock(), hired() as worker:
        assert worker.report(request(run.path, digits).to_line()) == RunEnded("busy")
    assert "--name" not in (run.path / "log.txt").read_text()


def test_the_signal_that_ends_a_worker_may_come_late() -> None:
    _, environment = subprocess_command("affsup_cli.sweeps.worker")
    left = subprocess.run(
        [sys.executable, "-P", "-c", SLOW_SIGNAL], env=environment, input=b"", capture_output=True, check=False
    )
    assert (left.returncode, left.stderr) == (0, b"")
