"""RoIAlign (He et al., Mask R-CNN, ICCV 2017) with a fast path for small maps on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from affsup_cli.affinity.precision import at_least_float32, without_autocast

LARGEST_SEPARABLE_MAP = {True: 2400, False: 256}
"""Largest map, in cells, for which matrix products are faster than torchvision: with and without a gradient.

Measured by `benchmarks/roi_align.py`.
"""


def roi_align(features: Tensor, boxes: Sequence[Tensor], size: int, scale: float, sampling: int = 2) -> Tensor:
    """The values and gradients of `torchvision.ops.roi_align` with `aligned=True`.

    On a CPU, maps of at most `LARGEST_SEPARABLE_MAP` cells use `separable_roi_align`, others torchvision's kernel. The
    two are equal up to rounding. Computed in float32 or wider.

    Args:
        features: `[B, C, H, W]`.
        boxes: of each image `[K_b, 4]` as x1, y1, x2, y2 in pixels; no gradient flows into them.
        size: cells of the result in height and width.
        scale: cells of the map for a pixel, 1 / stride.
        sampling: samples of a cell in each direction.

    Returns:
        `[K, C, size, size]` in the type of `features`, in the order of the images.
    """
    wide = at_least_float32("features", features)
    rows = [of_image.detach().to(wide.dtype) for of_image in boxes]
    differentiated = torch.is_grad_enabled() and features.requires_grad
    with without_autocast(features):
        if features.is_cpu and features.shape[2] * features.shape[3] <= LARGEST_SEPARABLE_MAP[differentiated]:
            pooled = torch.cat(
                [separable_roi_align(*of_image, size, scale, sampling) for of_image in zip(wide, rows, strict=True)]
            )
        else:
            pooled = torchvision_roi_align(wide, rows, size, scale, sampling, aligned=True)
    return pooled.to(features.dtype)


def separable_roi_align(features: Tensor, boxes: Tensor, size: int, scale: float, sampling: int) -> Tensor:
    """RoIAlign of one image as two matrix products for each region, one over rows and one over columns.

    The weight of a pixel in a bilinear sample is the product of a row weight and a column weight, also at the borders,
    where samples outside the map are zero. So the mean over the samples of a cell is separable, too.

    Args:
        features: `[C, H, W]`, float32 or float64.
        boxes: `[K, 4]`, of the same type.
        size: see `roi_align`.
        scale: see `roi_align`.
        sampling: see `roi_align`.

    Returns:
        `[K, C, size, size]`.
    """
    channels, height, width = features.shape
    left, top, right, bottom = (boxes * scale - 0.5).unbind(dim=1)
    column_weights = _cell_weights(left, right, size, sampling, width)
    row_weights = _cell_weights(top, bottom, size, sampling, height)
    # Channels last: no product has to copy the larger map.
    by_column = column_weights.reshape(-1, width) @ features.permute(2, 1, 0).reshape(width, -1)
    cells = row_weights.unsqueeze(1) @ by_column.view(-1, size, height, channels)
    return cells.permute(0, 3, 2, 1)


def _cell_weights(low: Tensor, high: Tensor, size: int, sampling: int, length: int) -> Tensor:
    """Weights `[K, size, length]` of `length` pixels in each of the `size` cells between `low` and `high` `[K]`."""
    steps = (torch.arange(size * sampling, dtype=low.dtype, device=low.device) + 0.5) / (size * sampling)
    positions = low.unsqueeze(1) + steps * (high - low).unsqueeze(1)
    inside = (positions >= -1) & (positions <= length)
    distances = (positions.clamp(0, length - 1).unsqueeze(2) - torch.arange(length, device=low.device)).abs()
    weights = (1 - distances).clamp(min=0) * inside.unsqueeze(2)
    return weights.view(-1, size, sampling, length).mean(dim=2)
