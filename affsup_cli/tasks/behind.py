"""Work on the host that a thread does while a GPU is busy with what comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

A = TypeVar("A")
B = TypeVar("B")

MOST = 2  # items that wait for their work


def behind(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Do what `map` does, in the same order, in one thread while the items after it are being made."""
    with ThreadPoolExecutor(1, thread_name_prefix="behind") as thread:
        waiting: deque[Future[B]] = deque()
        for item in items:
            waiting.append(thread.submit(work, item))
            if len(waiting) > MOST:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class OnHost:
    """Tensors of one device on their way to the host; from a GPU the copies wait for nothing until they are read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        self._copied = None
        device = next(iter(tensors.values())).device
        if device.type == "cuda":
            self._copied = torch.cuda.current_stream(device).record_event()

    def read(self) -> dict[str, Tensor]:
        """Return the tensors on the host, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copies
