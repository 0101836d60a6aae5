"""Start one command as several processes of a process group on this machine (`affsup train --gpus`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO, cast

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from affsup_cli.runtime.devices import describe_gpus, gpus
from affsup_cli.runtime.subprocess_command import subprocess_command
from data_prep.errors import AffsupError, UsageError

MAX_ON_FEW_CORES = 4  # processes that a CPU of fewer cores may run
POLL_SECONDS = 0.05
GRACE_SECONDS = 4.0  # for the others to exit, once one has failed, and again once they got SIGTERM
_LIFELINE = "AFFSUP_LIFELINE"  # set where the standard input closes when the parent process ends


def run_processes(count: int, device: str, arguments: Sequence[str]) -> int:
    """Run `python -m affsup_cli ARGUMENTS` as `count` processes of one process group (`init_distributed`).

    If one process fails, the others lose the connection and exit. Processes that do not exit receive SIGTERM, then
    SIGKILL. Ctrl-C and SIGTERM reach all of them. If this process is killed, they save and exit (`stop_with_parent`).

    Args:
        count: how many, at least 2.
        device: "cpu", or auto or cuda for a GPU each.
        arguments: of the command.

    Returns:
        The exit code of the first process, or that of the one that failed.

    Raises:
        UsageError: this machine has fewer GPUs, or far fewer cores.
        AffsupError: a process was killed.
        KeyboardInterrupt: Ctrl-C or SIGTERM came before training had begun.
    """
    cores = os.cpu_count() or 1
    if device == "cpu" and count > max(MAX_ON_FEW_CORES, cores):
        raise UsageError(f"--gpus {count} --device cpu: each process wants a core, and this machine has {cores}")
    if device != "cpu" and count > gpus():
        raise UsageError(
            f"--gpus {count}: this machine has {describe_gpus()}; --device cpu runs as many processes on the CPU"
        )
    # Hosted here, the store outlives each of the processes; torch's own variable keeps rank 0 from opening one.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    command, environment = subprocess_command("affsup_cli")
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **environment, _LIFELINE: "1"}
    running: list[subprocess.Popen[bytes]] = []
    with _signals_passed_on(running) as passed_on:
        try:
            for rank in range(count):
                if passed_on:
                    raise KeyboardInterrupt
                process = subprocess.Popen(  # noqa: S603
                    [*command, *arguments],
                    env={**threads, **address, "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE,
                )
                running.append(process)
            while not any(process.poll() for process in running) and any(process.poll() is None for process in running):
                _wait(running)
            codes = [process.poll() or 0 for process in running]  # before the others are told to exit
        finally:
            _end(running)
    killed = next((rank for rank, code in enumerate(codes) if code < 0), None)
    if killed is not None:
        by = signal.Signals(-codes[killed])
        if passed_on and by in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        raise AffsupError(f"process {killed + 1} of {count} was killed ({by.name}), and the others have exited")
    return next((code for code in codes if code), 0)


def stop_with_parent() -> None:
    """Send SIGTERM to this process when the parent that started it by `run_processes` has ended."""
    if _LIFELINE in os.environ:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()


def _stop_at_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read: its lock, held at Python's shutdown, is fatal
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait `POLL_SECONDS`, or until the first process that is still running has ended."""
    alive = next((process for process in running if process.poll() is None), None)
    if alive:
        with contextlib.suppress(subprocess.TimeoutExpired):
            alive.wait(POLL_SECONDS)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the running processes to exit, then send SIGTERM, then SIGKILL: one may wait for an ended process."""
    for send in (lambda _: None, subprocess.Popen.terminate, subprocess.Popen.kill):
        alive = [process for process in running if process.poll() is None]
        for process in alive:
            send(process)
        until = time.monotonic() + GRACE_SECONDS
        for process in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
    for process in running:
        cast(IO[bytes], process.stdin).close()


@contextlib.contextmanager
def _signals_passed_on(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass Ctrl-C and SIGTERM on to the processes as SIGTERM; a terminal's Ctrl-C reaches them anyway.

    Yields:
        The list of signal numbers received so far.
    """
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
