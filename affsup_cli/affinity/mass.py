"""The target affinity mass M (eq. 3, 12): how much of a graph's softmax lies on the target.

M is computed from its log-odds `log M - log(1 - M)`: the log-sum-exp over the entries in the target minus that over the
others. A softmax that is summed and then logged would be infinite at the logits of trained networks; the log-odds are
accurate also where M or 1 - M is far below the eps of the float type.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from affsup_cli.affinity.options import DiagonalKind, SoftmaxKind
from affsup_cli.affinity.precision import at_least_float32, without_autocast


def target_mass(
    logits: Tensor,
    target: Tensor,
    softmax: SoftmaxKind = "matrix",
    diagonal: DiagonalKind = "keep",
    mask: Tensor | None = None,
) -> Tensor:
    """Target affinity mass, eq. 3: `M = sum(softmax(W) * T)`; a row at a time, eq. 12, with `softmax="row"`.

    Computed in float32 or wider with autocast off.

    Args:
        logits: affinities W `[..., N, K]`, finite; leading dimensions are graphs.
        target: bool, the shape of `logits`.
        softmax: over the whole matrix, or over the columns of each row.
        diagonal: "exclude" leaves the diagonal out of the target and of the softmax; it needs N == K.
        mask: bool, the shape of `logits`; entries where it is false are left out of the target and of the softmax.

    Returns:
        M in [0, 1], `[...]` for the matrix, `[..., N]` for rows; 0 where the target is empty, 1 where it is all.

    Raises:
        TypeError: `logits` is not floating point, or `target` or `mask` not bool.
        ValueError: the shapes do not fit, or `softmax` or `diagonal` is unknown.
    """
    check_choice("softmax", softmax, get_args(SoftmaxKind))
    with without_autocast(logits):
        return torch.sigmoid(mass_log_odds(supervised_entries(logits, target, diagonal, mask), softmax).value)


class Entries(NamedTuple):
    """A graph's affinities `[..., N, K]` in full precision, and which entries are in the target or in the rest."""

    logits: Tensor
    target: Tensor
    rest: Tensor


class LogOdds(NamedTuple):
    """`log M - log(1 - M)` of each graph or row, and whether it has a target at all."""

    value: Tensor
    supervised: Tensor


def supervised_entries(logits: Tensor, target: Tensor, diagonal: DiagonalKind, mask: Tensor | None = None) -> Entries:
    """Check a graph and split its entries; an excluded diagonal and masked entries are in neither part."""
    check_graph(logits, target, diagonal, mask)
    logits = at_least_float32("logits", logits)
    rest = ~target
    if diagonal == "exclude":
        off_diagonal = ~torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        mask = off_diagonal if mask is None else mask & off_diagonal
    return Entries(logits, target, rest) if mask is None else Entries(logits, target & mask, rest & mask)


def check_graph(logits: Tensor, target: Tensor, diagonal: DiagonalKind, mask: Tensor | None = None) -> None:
    """Raise a TypeError or ValueError if logits, target and mask do not form a graph."""
    check_choice("diagonal", diagonal, get_args(DiagonalKind))
    if logits.dim() < 2 or logits.shape != target.shape:
        raise ValueError(
            f"logits and target must share one shape [..., N, K], "
            f"found {list(logits.shape)} and {list(target.shape)}: target.expand_as(logits) repeats a target, after "
            "target.unsqueeze(-3) for a dimension of heads"
        )
    if target.dtype != torch.bool:
        raise TypeError(f"target must be a bool tensor, found {target.dtype}: call target.bool()")
    if mask is not None:
        check_mask(mask, logits.shape)
    rows, columns = logits.shape[-2:]
    if diagonal == "exclude" and rows != columns:
        raise ValueError(f'diagonal="exclude" needs a square graph, found {rows} x {columns}: use diagonal="keep"')


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raise a TypeError or ValueError unless `mask` is a bool tensor of `shape`."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, found {mask.dtype}: call mask.bool()")
    if mask.shape != shape:
        raise ValueError(f"mask must have the shape {list(shape)} of the graph, found {list(mask.shape)}")


def mass_log_odds(entries: Entries, softmax: SoftmaxKind) -> LogOdds:
    """Log-odds of M: -inf without a target, inf with a target that covers everything."""
    if softmax == "matrix":
        entries = Entries(*(part.flatten(-2) for part in entries))
    logits, target, rest = entries
    target_peak, target_sum = _exp_sum(logits, target)
    rest_peak, rest_sum = _exp_sum(logits, rest)
    # The peaks are subtracted first: beside a peak of thousands, the logs would be rounded away.
    value = (target_peak - rest_peak) + (target_sum.log() - rest_sum.log())
    supervised = target.any(dim=-1)
    return LogOdds(value.masked_fill(~supervised, -torch.inf), supervised)


def check_choice(name: str, found: str, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the allowed values."""
    if found not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {found!r}")


def _exp_sum(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`peak, total` of the last dimension, where `sum(exp(logits[mask])) = total * exp(peak)`.

    Where the mask is empty, peak is -inf and total 1, so that the gradient stays finite.
    """
    masked = logits.detach().masked_fill(~mask, -torch.inf)
    # An empty dimension has no maximum; its value is not used.
    peak = masked.amax(dim=-1) if masked.shape[-1] else masked.sum(dim=-1)
    # Masked before exp, not after: an overflow there would turn the gradient into NaN.
    total = (logits - peak.unsqueeze(-1)).masked_fill(~mask, -torch.inf).exp().sum(dim=-1)
    return peak, total.masked_fill(~mask.any(dim=-1), 1)
