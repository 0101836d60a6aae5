"""Work that is the same every time, recorded once and then repeated: on CUDA a graph of its kernels.

Such work reads and writes the same memory each time, waits for no answer of the device, and leaves to the host nothing
that changes from one time to the next: a repetition runs no Python. It costs the host some ten microseconds, where
the kernels of a small network's step, asked for one by one, keep the GPU waiting.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

from data_prep.errors import AffsupError

T = TypeVar("T")
Recorder = Callable[[Callable[[], T]], tuple[Callable[[], None], T]]
"""Takes work down without doing it; returns what does it, and what the work has returned."""

WARM_UP = 3


class Repeated:
    """Does named work: `WARM_UP` times as it is, in which kernels are chosen and buffers come to be, then recorded.

    Args:
        record: takes it down; None: it is done as it is for ever.
    """

    def __init__(self, record: Recorder[Any] | None) -> None:
        self._record = record
        self._done: dict[str, int] = {}
        self._recorded: dict[str, tuple[Callable[[], None], Any]] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Do `work`, which is the same whenever it has this name; returns what it returned when it was last called."""
        if name not in self._recorded:
            done = self._done.get(name, 0)
            if self._record is None or done < WARM_UP:
                self._done[name] = done + 1
                return work()
            self._recorded[name] = self._record(work)
        repeat, returned = self._recorded[name]
        repeat()
        return cast(T, returned)


class CudaGraphs:
    """Records the kernels of the current stream, which must not be the default one, on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # one for all: they run one after the other, and none reads what another has left there

    def __call__(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Take the kernels of `work` down as a graph.

        Raises:
            AffsupError: CUDA refuses.
        """
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        try:
            # Other threads may ask CUDA for what a capture forbids: one of them writes checkpoints.
            with (
                _no_garbage_collected(),
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                returned = work()
        except RuntimeError as error:
            first = error.__context__ or error  # to leave a capture that has failed raises once more
            if not isinstance(first, RuntimeError) or isinstance(first, torch.OutOfMemoryError):
                raise first from None
            reason = (str(first).splitlines() or [type(first).__name__])[0]
            raise AffsupError(
                f"the training step cannot be recorded as a CUDA graph here ({reason}): "
                "--set run.graph=off does without"
            ) from first
        self._pool = graph.pool()
        return graph.replay, returned


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Collect it now: what it may hold, such as an old graph, cannot be let go of in the middle of a capture."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def finished(pieces: Generator[None, None, T]) -> T:
    """Do all pieces, and return what they come to."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return cast(T, end.value)


def each_within(
    pieces: Generator[None, None, T], turn: Callable[[], AbstractContextManager[object]]
) -> Generator[None, None, T]:
    """Yield as `pieces` does, each piece done within a context of `turn`, which nothing between two pieces sees."""
    with contextlib.closing(pieces):
        while True:
            with turn():
                try:
                    next(pieces)
                except StopIteration as end:
                    return cast(T, end.value)
            yield


def on_own_stream(pieces: Generator[None, None, T], device: torch.device) -> Generator[None, None, T]:
    """Yield as `pieces` does, with their kernels in a stream of their own, beside those of other streams."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        return (yield from each_within(pieces, lambda: torch.cuda.stream(stream)))
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
