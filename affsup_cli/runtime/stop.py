"""Ctrl-C and SIGTERM as a stop request: the training loop finishes its step, saves and exits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from data_prep.errors import AffsupError


class Stopped(AffsupError):
    """The run was asked to stop, and has saved a checkpoint."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def imports_uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM: an interrupted import leaves half-initialised modules.

    Raises:
        KeyboardInterrupt: at the end, if one was received.
    """
    with StopRequest() as stop:
        yield
    if stop.requested:
        raise KeyboardInterrupt
