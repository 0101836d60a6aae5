"""Threads beside the one that trains."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch


def thread_pool(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of `count` threads on the GPU that is current here; left alone, a thread begins on the first."""
    selected = None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        selected = partial(torch.cuda.set_device, torch.cuda.current_device())
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=selected)
