"""RoIAlign (He et al., Mask R-CNN, ICCV 2017) that is quick on a CPU too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from affsup_cli.affinity.precision import at_least_float32, without_autocast

LARGEST_SEPARABLE_MAP = {True: 2400, False: 256}
"""Cells of the largest map whose regions are taken as matrix products, with a gradient and without.

torchvision's gradient is slow. Measured by `benchmarks/roi_align.py`.
"""


def roi_align(features: Tensor, boxes: Sequence[Tensor], size: int, scale: float, sampling: int = 2) -> Tensor:
    """The values and gradients of `torchvision.ops.roi_align` with `aligned=True`.

    On a CPU, maps of no more cells than `LARGEST_SEPARABLE_MAP` says are taken by `separable_roi_align`; others by
    torchvision's kernel. The two agree but for rounding. Computed in float32 or wider.

    Args:
        features: `[B, C, H, W]`.
        boxes: of each image `[K_b, 4]` as x1, y1, x2, y2 in pixels; no gradient flows into them.
        size: cells of the result in height and width.
        scale: cells of the map a pixel, one over its stride.
        sampling: samples of a cell in each direction.

    Returns:
        `[K, C, size, size]` in the type of `features`, the regions of the first image first.
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
    """RoIAlign of one image as two matrix products a region, along its rows and down its columns.

    The weights of a bilinear sample are products of a weight of its row and one of its column, also at the borders,
    where a sample outside the map is zero whichever way it left. So the mean over a cell's samples splits likewise.

    Args:
        features: `[C, H, W]`, float32 or float64.
        boxes: `[K, 4]`, alike.
        size: as of `roi_align`, like `scale` and `sampling`.
        scale: cells of the map a pixel.
        sampling: samples of a cell in each direction.

    Returns:
        `[K, C, size, size]`.
    """
    channels, height, width = features.shape
    left, top, right, bottom = (boxes * scale - 0.5).unbind(dim=1)
    across = _cell_weights(left, right, size, sampling, width)
    down = _cell_weights(top, bottom, size, sampling, height)
    # Channels last, so that neither product has to move the map's larger copy about.
    columns = across.reshape(-1, width) @ features.permute(2, 1, 0).reshape(width, -1)
    cells = down.unsqueeze(1) @ columns.view(-1, size, height, channels)
    return cells.permute(0, 3, 2, 1)


def _cell_weights(low: Tensor, high: Tensor, size: int, sampling: int, length: int) -> Tensor:
    """Weights `[K, size, length]` of `length` pixels in each of the `size` cells between `low` and `high` `[K]`."""
    steps = (torch.arange(size * sampling, dtype=low.dtype, device=low.device) + 0.5) / (size * sampling)
    places = low.unsqueeze(1) + steps * (high - low).unsqueeze(1)
    inside = (places >= -1) & (places <= length)
    distances = (places.clamp(0, length - 1).unsqueeze(2) - torch.arange(length, device=low.device)).abs()
    weights = (1 - distances).clamp(min=0) * inside.unsqueeze(2)
    return weights.view(-1, size, sampling, length).mean(dim=2)
