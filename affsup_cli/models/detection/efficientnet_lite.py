"""EfficientNet-Lite0 without its classifier.

EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6, compatible with the weights of
TensorFlow's `efficientnet_lite_builder.py`: convolutions pad like TensorFlow's "SAME", and names are those of the
EfficientNet-Lite-PyTorch package without their leading underscores. Stochastic depth is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

STEM_CHANNELS = 32


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: to ceil(size / stride), the odd pixel at the end."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels_in, channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels_in, H, W]` -> `[B, channels, ceil(H / stride), ceil(W / stride)]`."""
        vertical, horizontal = (
            max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            for size, kernel, stride, dilation in zip(
                x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        top, left = vertical // 2, horizontal // 2
        # The convolution itself can pad symmetrically, without a copy of the map.
        if (vertical, horizontal) == (2 * top, 2 * left):
            return F.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)
        x = F.pad(x, (left, horizontal - left, top, vertical - top))
        return F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)


class Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection; with a shortcut where the shape is unchanged."""

    def __init__(self, channels_in: int, stage: Stage, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        wide = channels_in * stage.expansion
        self.expand_conv: nn.Module | None = None
        if stage.expansion > 1:
            self.expand_conv, self.bn0 = SameConv2d(channels_in, wide, 1), norm(wide)
        self.depthwise_conv, self.bn1 = SameConv2d(wide, wide, stage.kernel, stride, groups=wide), norm(wide)
        self.project_conv, self.bn2 = SameConv2d(wide, stage.channels, 1), norm(stage.channels)
        self.shortcut = stride == 1 and channels_in == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels_in, H, W]` -> `[B, stage.channels, ceil(H / stride), ceil(W / stride)]`."""
        wide = x if self.expand_conv is None else F.relu6(self.bn0(self.expand_conv(x)))
        filtered = F.relu6(self.bn1(self.depthwise_conv(wide)))
        out: Tensor = self.bn2(self.project_conv(filtered))
        return out + x if self.shortcut else out


class EfficientNetLite0(nn.Module):
    """Stem and 16 blocks, with the names that files of weights have.

    Args:
        norm: creates the normalisation layer for a number of channels.
    """

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv2d(3, STEM_CHANNELS, 3, 2), norm(STEM_CHANNELS)
        self.blocks = nn.ModuleList()
        channels_in = STEM_CHANNELS
        for stage in STAGES:
            for block in range(stage.blocks):
                self.blocks.append(Block(channels_in, stage, stage.stride if block == 0 else 1, norm))
                channels_in = stage.channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
