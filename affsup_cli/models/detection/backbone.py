"""A detector's backbone as a module: its three parts, its input normalisation and its frozen batch norm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelNormalisation(NamedTuple):
    """Input normalisation of a network: `(image - mean) / std` of RGB 0..255, then reordered if `bgr`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


PIXELS = {
    # ImageNet's statistics, with which torchvision's weights were trained.
    "torchvision": PixelNormalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    # network.PIXEL_MEANS of Relation Networks' release, for the weights of He et al.; no scaling.
    "caffe": PixelNormalisation((123.15, 115.90, 103.06), (1.0, 1.0, 1.0), bgr=True),
    # MEAN_RGB and STDDEV_RGB of TensorFlow's efficientnet_lite_builder.py.
    "signed": PixelNormalisation((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


class Backbone(nn.Module):
    """A network in three parts, cut where a detector needs its maps.

    Args:
        early: images to stride 4; frozen if pretrained.
        middle: from there to the RPN's map.
        late: from there to the heads' map, at the same stride.
        stride: pixels between neighbours of either map.
        channels: channels of the two maps.
        pixels: the input normalisation.
    """

    mean: Tensor
    """`[3, 1, 1]` RGB: normalised to 0, so images are padded with it."""
    std: Tensor

    def __init__(
        self,
        early: nn.Module,
        middle: nn.Module,
        late: nn.Module,
        stride: int,
        channels: tuple[int, int],
        pixels: PixelNormalisation,
    ) -> None:
        super().__init__()
        self.early = early
        self.middle = middle
        self.late = late
        self.stride = stride
        self.channels = channels
        self.bgr = pixels.bgr
        for name, value in (("mean", pixels.mean), ("std", pixels.std)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the RPN's map and the heads' map of a batch.

        Args:
            images: float `[B, 3, H, W]`, RGB, 0..255.

        Returns:
            `[B, channels[0], H', W']` and `[B, channels[1], H', W']`, with H' = ceil(H / stride) and
            W' = ceil(W / stride).
        """
        low: Tensor = self.middle(self.early(self.normalised(images)))
        return low, self.late(low)

    def normalised(self, images: Tensor) -> Tensor:
        """Return RGB images, 0..255, as the network takes them."""
        images = (images - self.mean) / self.std
        return images.flip(1) if self.bgr else images


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant statistics, weight and bias: torchvision's FrozenBatchNorm2d as one operator.

    The result has the type of the input, also under autocast.

    Args:
        channels: number of channels.
        epsilon: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps `[B, channels, H, W]`."""
        return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.epsilon)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm (Wu and He, ECCV 2018) with groups of eight channels; of 4, 2 or 1 where 8 does not divide them."""
    return nn.GroupNorm(channels // math.gcd(channels, 8), channels)
