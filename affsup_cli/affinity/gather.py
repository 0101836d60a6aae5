"""Rows of a tensor from all processes of torch.distributed, with a gradient for those of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor, sizes: Sequence[int], gradient_scale: float = 1.0) -> Tensor:
    """Return the rows of all processes, `[sum(sizes), ...]`, by rank.

    Every process must compute the same function of them. The backward pass gives each process the gradient of its own
    rows alone, times `gradient_scale`: with 1 the sum of the gradients over processes is that of one process with all
    rows, with the number of processes their mean is.

    Args:
        rows: of this process, `[sizes[rank], ...]`.
        sizes: the number of rows of each process.
        gradient_scale: factor of the gradient.
    """
    gathered: Tensor = _GatherRows.apply(rows, tuple(sizes), gradient_scale)
    return gathered


def row_counts(rows: Tensor) -> list[int]:
    """Return the number of rows of each process; synchronises with the device."""
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    return [int(each) for each in torch.cat(counts).tolist()]


def world_size() -> int:
    """Return the number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], gradient_scale: float) -> Tensor:
        first = sum(sizes[: dist.get_rank()])
        ctx.own = slice(first, first + len(rows))
        ctx.gradient_scale = gradient_scale
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        own = gradients[0][ctx.own]
        return own if ctx.gradient_scale == 1 else own * ctx.gradient_scale, None, None
