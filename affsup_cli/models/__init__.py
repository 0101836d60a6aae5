"""Networks by the names that the paper gives them."""

from __future__ import annotations

from collections.abc import Callable

from affsup_cli.models.classifiers import cifar_resnet, imagenet_resnet
from affsup_cli.models.classifiers.classifier import Classifier
from data_prep.errors import UsageError, did_you_mean

CLASSIFIERS: dict[str, Callable[[int, int], Classifier]] = {
    **cifar_resnet.ARCHITECTURES,
    **imagenet_resnet.ARCHITECTURES,
}


def build_classifier(arch: str, channels: int, classes: int) -> Classifier:
    """Build a freshly initialised image classifier.

    Args:
        arch: a key of `CLASSIFIERS`, for example "resnet20".
        channels: channels of the input images.
        classes: number of categories.

    Raises:
        UsageError: `arch` is unknown.
    """
    if arch not in CLASSIFIERS:
        hint = did_you_mean(arch, CLASSIFIERS)
        raise UsageError(f"no architecture '{arch}' (model.arch){hint}: known are {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[arch](channels, classes)
