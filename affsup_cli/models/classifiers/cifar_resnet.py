"""ResNet-20, -56 and -110 for small images: He et al., Deep Residual Learning, CVPR 2016, section 4.2.

A 3x3 convolution, three stages of n blocks with 16, 32 and 64 channels, global average pooling; depth = 6n + 2.
Shortcuts across stages have no parameters (option A: every second pixel, zeros for the new channels), so ResNet-20,
-56 and -110 have 0.27, 0.85 and 1.73 million parameters on 10 classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from affsup_cli.models.classifiers.classifier import Classifier, GlobalAverage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an option-A shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels_in, H, W]` -> `[N, channels, H / stride, W / stride]`."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """Images `[N, channels, H, W]` -> pooled features `[N, 64]`."""

    width = 64

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages: list[nn.Module] = []
        channels_in = 16
        for stage, width in enumerate((16, 32, 64)):
            for block in range(blocks):
                stages.append(BasicBlock(channels_in, width, 2 if stage > 0 and block == 0 else 1))
                channels_in = width
        self.blocks = nn.Sequential(*stages)
        self.pool = GlobalAverage()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the global average of the last stage."""
        maps: Tensor = self.blocks(F.relu(self.bn1(self.conv1(images)), inplace=True))
        pooled: Tensor = self.pool(maps)
        return pooled


def cifar_resnet(depth: int, channels: int, classes: int) -> Classifier:
    """Build the network of `depth` = 6n + 2 layers."""
    return Classifier(CifarResNet(channels, (depth - 2) // 6), CifarResNet.width, classes)
