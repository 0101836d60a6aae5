"""Overlap of host work and GPU work: a background thread and asynchronous copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from affsup_cli.runtime.threads import thread_pool

A = TypeVar("A")
B = TypeVar("B")

MAX_PENDING = 2  # items in the queue of the thread


def map_in_background(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """As `map`, in the same order, but in a background thread while the next items are produced."""
    with thread_pool(1, "background") as thread:
        pending: deque[Future[B]] = deque()
        for item in items:
            pending.append(thread.submit(function, item))
            if len(pending) > MAX_PENDING:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class HostCopy:
    """Copies tensors of one device to the host; copies from a GPU are asynchronous until `read`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        self._copied = None
        device = next(iter(tensors.values())).device
        if device.type == "cuda":
            self._copied = torch.cuda.current_stream(device).record_event()

    def read(self) -> dict[str, Tensor]:
        """Wait for the copies, and return the tensors on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copies
