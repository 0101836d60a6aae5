"""Image classifiers by name: ours for small images, torchvision's ResNets, and timm's networks.

ResNet-18, -50 and -101 for Tiny ImageNet are torchvision's, with the original 7x7/2 stem and max-pool. At 64x64 pixels
the last map is 2x2. The paper's 48-52 % fit this stem ("exactly the same as those in the original ResNet paper"), not
the 3x3 stem that is common on small images. torchvision's ResNet-50 and -101 differ from that paper in one thing: a
block's stride is in its 3x3 convolution, not in the first 1x1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from affsup_cli.models.classifiers.cifar_resnet import cifar_resnet
from affsup_cli.models.classifiers.classifier import Classifier, GlobalAverage
from affsup_cli.models.timm_networks import create_network
from data_prep.errors import UsageError, did_you_mean


def build_classifier(arch: str, channels: int, classes: int) -> Classifier:
    """Build a freshly initialised image classifier.

    Args:
        arch: a key of `CLASSIFIERS`, for example "resnet20", or "timm:NAME" for a network of timm.
        channels: channels of the input images.
        classes: number of categories.

    Raises:
        UsageError: `arch` is unknown.
    """
    if arch.startswith("timm:"):
        return timm_classifier(arch.removeprefix("timm:"), channels, classes)
    if arch not in CLASSIFIERS:
        hint = did_you_mean(arch, CLASSIFIERS)
        raise UsageError(f"no architecture '{arch}' (model.arch){hint}: known are {', '.join(CLASSIFIERS)}, timm:NAME")
    return CLASSIFIERS[arch](channels, classes)


def imagenet_resnet(depth: int, channels: int, classes: int) -> Classifier:
    """Build torchvision's network of `depth` layers for `channels` input channels."""
    from torchvision.models import get_model  # takes two seconds, which the other networks do not need

    network = get_model(f"resnet{depth}", weights=None)
    width = network.fc.in_features
    network.avgpool, network.fc = GlobalAverage(), nn.Identity()
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(network, width, classes)


def timm_classifier(name: str, channels: int, classes: int) -> Classifier:
    """Build timm's network `name` without pretrained weights, with its pooled features in front of a linear layer.

    Raises:
        UsageError: timm is not installed, or has no such network.
    """
    network = create_network(name, num_classes=0, in_chans=channels)
    width = getattr(network, "head_hidden_size", None) or network.num_features
    return Classifier(network, int(width), classes)


CLASSIFIERS: dict[str, Callable[[int, int], Classifier]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 56, 110)},
    **{f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 50, 101)},
}
