"""ResNet-18, -50 and -101 for Tiny ImageNet: torchvision's, with the original 7x7/2 stem and max-pool.

At 64x64 pixels the last map is 2x2. The paper's 48-52 % fit this stem ("exactly the same as those in the original
ResNet paper"), not the 3x3 stem that is common on small images. torchvision's ResNet-50 and -101 differ from that paper
in one thing: a block's stride is in its 3x3 convolution, not in the first 1x1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from affsup_cli.models.classifiers.classifier import Classifier


def imagenet_resnet(depth: int, channels: int, classes: int) -> Classifier:
    """Build torchvision's network of `depth` layers around `channels` input channels."""
    from torchvision.models import get_model  # two seconds that the other networks need not wait for

    network = get_model(f"resnet{depth}", weights=None)
    width = network.fc.in_features
    network.fc = nn.Identity()
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(network, width, classes)


ARCHITECTURES: dict[str, Callable[[int, int], Classifier]] = {
    f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 50, 101)
}
