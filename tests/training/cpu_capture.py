"""A capture on the CPU that is as strict as a CUDA graph: operators are recorded, and replayed in the same memory.

No Python of the work runs in a replay, so that all that the work leaves to the host keeps its value; what a graph
cannot hold is refused during the capture.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FROM_THE_HOST = {"aten::lift_fresh", "aten::lift_fresh_copy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class NotCapturableError(Exception):
    """The work waits for the device, takes something from the host, has sizes that depend on values, or draws."""


class Recording(TorchDispatchMode):
    """Records every operator, and refuses those that no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if refused(func, args):
            raise NotCapturableError(func.name())
        output = func(*args, **kwargs)
        self.operators.append((func, args, kwargs, output))
        return output

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, recorded in self.operators:
                given = {leaf.untyped_storage().data_ptr() for leaf in tensors((args, kwargs))}
                for mine, new in zip(tensors(recorded), tensors(func(*args, **kwargs)), strict=True):
                    if mine.untyped_storage().data_ptr() not in given:
                        mine.copy_(new)


def refused(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether no graph can hold an operator."""
    name, tags = func.name().partition(".")[0], func.tags
    waits = name == "aten::_local_scalar_dense" or torch.Tag.data_dependent_output in tags
    draws = torch.Tag.nondeterministic_seeded in tags
    sized_by_values = torch.Tag.dynamic_output_shape in tags
    if name in INDEXING:  # by integers it is as large as these
        sized_by_values = any(index.dtype == torch.bool for index in tensors(args[1]))
    return waits or draws or sized_by_values or name in FROM_THE_HOST


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def capture_on_cpu(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Capture `work`; unlike CUDA, a CPU runs it meanwhile, so that the first replay has nothing left to do."""
    with Recording() as recording:
        returned = work()
    turns = itertools.chain([lambda: None], itertools.repeat(recording.replay))
    return lambda: next(turns)(), returned
