"""The structure of all image classifiers: a backbone with one feature vector for each image, and a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GlobalAverage(nn.Module):
    """Global average pooling in float32 or wider, also of bfloat16 maps: L_G is computed on the result."""

    def forward(self, maps: Tensor) -> Tensor:
        """`[N, C, H, W]` -> `[N, C]`."""
        return maps.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


class Classifier(nn.Module):
    """A backbone and a linear layer.

    Args:
        backbone: images `[N, C, H, W]` -> features `[N, width]`.
        width: length of a feature vector.
        classes: number of categories.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled features `[N, width]`, which the affinity graph is built on, and logits `[N, classes]`."""
        features = self.backbone(images)
        return features, self.head(features)
