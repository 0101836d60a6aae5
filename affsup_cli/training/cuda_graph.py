"""CUDA graphs: capture a callable as a graph of its kernels; return (replay, captured output).

A callable that can be captured reads and writes the same memory at each call, does not synchronize with the device, and
leaves nothing to the host that changes from call to call: a replay runs no Python. A replay costs the host some ten
microseconds, where launching the kernels of a small network's step one by one keeps the GPU waiting.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

from data_prep.errors import AffsupError

T = TypeVar("T")
Capture = Callable[[Callable[[], T]], tuple[Callable[[], None], T]]
"""Captures a callable without running its kernels; returns (replay, captured output)."""

WARM_UP_CALLS = 3


class CapturedCalls:
    """Calls functions by name: eagerly for `WARM_UP_CALLS` calls, then captured once and replayed.

    In the warm-up kernels are chosen and buffers are allocated.

    Args:
        capture: captures a callable; None: every call is eager.
    """

    def __init__(self, capture: Capture[Any] | None) -> None:
        self._capture = capture
        self._calls: dict[str, int] = {}
        self._captured: dict[str, tuple[Callable[[], None], Any]] = {}

    def __call__(self, name: str, function: Callable[[], T]) -> T:
        """Call `function`, which must do the same work at every call of this name; returns its (captured) output."""
        if name not in self._captured:
            calls = self._calls.get(name, 0)
            if self._capture is None or calls < WARM_UP_CALLS:
                self._calls[name] = calls + 1
                return function()
            self._captured[name] = self._capture(function)
        replay, output = self._captured[name]
        replay()
        return cast(T, output)


class CudaGraphCapture:
    """Captures the kernels that a callable launches on the current stream of `device`, a side stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One memory pool for all graphs: they are replayed one after the other, and none reads what another left there.
        self._pool: Any = None

    def __call__(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture `function` as a CUDA graph.

        Raises:
            AffsupError: CUDA refuses the capture.
        """
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        try:
            # Other threads, such as the one that writes checkpoints, may call what a capture forbids to its own thread.
            with (
                _gc_disabled(),
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                output = function()
        except RuntimeError as error:
            first = error.__context__ or error  # leaving a failed capture raises a second error
            if not isinstance(first, RuntimeError) or isinstance(first, torch.OutOfMemoryError):
                raise first from None
            reason = (str(first).splitlines() or [type(first).__name__])[0]
            raise AffsupError(
                f"the training step cannot be captured as a CUDA graph ({reason}): --set run.graph=off trains without"
            ) from first
        self._pool = graph.pool()
        return graph.replay, output


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Launch kernels on a side stream, as a capture requires; on a device without streams do nothing."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


@contextlib.contextmanager
def _gc_disabled() -> Iterator[None]:
    """Collect garbage now and not during the capture: freeing an old graph would make a capture fail."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
