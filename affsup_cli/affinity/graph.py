"""Affinity functions (eq. 1): from the features of N entities to the N x N matrix of affinity logits W."""

from __future__ import annotations

import math

from torch import Tensor

from affsup_cli.affinity.closed_form import L2Affinity
from affsup_cli.affinity.precision import at_least_float32, without_autocast, without_tf32


def l2_affinity(features: Tensor, references: Tensor | None = None) -> Tensor:
    """Negative half squared distance between every two entities, eq. 11: `W[m, n] = -||f_m - f_n||^2 / 2`.

    Computed in float32 or wider with autocast off, because it is a difference of large numbers. The result is
    never positive; without `references` it is symmetric and exactly 0 on the diagonal. Its gradient is finite where
    features coincide. TF32 is off.

    Args:
        features: `[..., N, d]`, floating point; the rows.
        references: `[..., K, d]`, floating point; the columns. Without, the features.

    Returns:
        `[..., N, K]`, float32 (float64 for float64 features).

    Raises:
        TypeError: an argument is not floating point.
        ValueError: `features` has fewer than two dimensions, or `references` another d.
    """
    if features.dim() < 2:
        raise ValueError(f"features must have the shape [..., N, d], found {list(features.shape)}")
    with without_autocast(features):
        rows = at_least_float32("features", features)
        if references is None:
            affinity: Tensor = L2Affinity.apply(rows)
            return affinity
        columns = at_least_float32("references", references)
        if columns.dim() < 2 or columns.shape[-1] != rows.shape[-1]:
            raise ValueError(f"references must be [..., K, {rows.shape[-1]}], found {list(references.shape)}")
        # A common offset changes no distance, but its square would cost precision.
        offset = columns.detach().mean(dim=-2, keepdim=True)
        rows, columns = rows - offset, columns - offset
        halves = rows.square().sum(-1, keepdim=True) / 2, columns.square().sum(-1).unsqueeze(-2) / 2
        with without_tf32(features):
            return (rows @ columns.mT - halves[0] - halves[1]).clamp(max=0)


def scaled_dot_affinity(queries: Tensor, keys: Tensor) -> Tensor:
    """Scaled dot products of queries with keys, eq. 9 before its softmax: `W[m, n] = <q_m, k_n> / sqrt(d)`.

    Rows are the reference entities (queries), columns the keys. Eq. 9 as printed normalises the
    other axis; aggregation (eq. 10) needs the weights of one reference to sum to 1. The product follows the caller's
    precision and autocast, as any layer does.

    Args:
        queries: `[..., N, d]`.
        keys: `[..., K, d]`, leading dimensions that broadcast with those of `queries`.

    Returns:
        `[..., N, K]`.

    Raises:
        ValueError: fewer than two dimensions, or different d.
    """
    if queries.dim() < 2 or keys.dim() < 2 or queries.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"queries [..., N, d] and keys [..., K, d] must share d, found {list(queries.shape)} and {list(keys.shape)}"
        )
    # Scaling before the product keeps float16 from overflowing in it.
    return (queries / math.sqrt(queries.shape[-1])) @ keys.mT
