"""Backbones of the detectors: from images to a map for the RPN and a map for the heads, both at the same stride."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.ops import Conv2dNormActivation

from affsup_cli.models.detection.backbone import PIXELS, Backbone, FrozenBatchNorm, group_norm
from affsup_cli.models.detection.efficientnet_lite import EfficientNetLite0
from affsup_cli.models.detection.timm_backbone import TimmBackbone
from data_prep.errors import AffsupError, UsageError, did_you_mean

Norm = Callable[[int], nn.Module]


class _Parts(NamedTuple):
    """A network with the key names of its weight files, and the parts of it that a detector uses."""

    network: nn.Module
    early: nn.Module
    middle: nn.Module
    late: nn.Module
    channels: tuple[int, int]
    stride: int = 16


class _Architecture(NamedTuple):
    """How to build a network, and the properties of its weight files."""

    build: Callable[[Norm], _Parts]
    epsilon: float = 1e-5
    """eps of batch norm."""
    unused: tuple[str, ...] = ()
    """Prefixes of keys that a detector does not use."""
    torchvision: bool = True


def build_backbone(arch: str, weights: str, pixels: str, load: bool = True) -> Backbone:
    """Build a backbone.

    With weights, batch norm keeps their statistics and all layers up to stride 4 (conv1 and res2 of a ResNet) are
    frozen, as in Relation Networks' release. Without, group norm replaces batch norm, which needs more than two images,
    and all layers are trained. The last stage is dilated instead of strided, so both maps have stride 16 ("convnet":
    8).

    Args:
        arch: a key of `BACKBONES`, or "timm:NAME" for a network of timm.
        weights: "imagenet" for torchvision's (downloaded once), "none", or the path of a state dict in the layout of
            torchvision's network, or of the EfficientNet-Lite-PyTorch package for "efficientnet_lite0"; written by
            torch.save, or with the suffix .safetensors.
        pixels: a key of `PIXELS`, as in the training of the weights.
        load: read the weights; false if a state dict of the whole will be loaded.

    Raises:
        UsageError: a name is unknown, or there are no such weights for the architecture.
        AffsupError: the weights cannot be read or downloaded, or do not fit.
    """
    _check_name("model.pixels", pixels, PIXELS)
    if arch.startswith("timm:"):
        return TimmBackbone(arch.removeprefix("timm:"), weights, PIXELS[pixels], load)
    _check_name("model.arch", arch, BACKBONES)
    architecture = BACKBONES[arch]
    if arch == "convnet" and weights != "none":
        raise UsageError(f"model.weights = '{weights}': there are no pretrained weights of 'convnet', set it to 'none'")
    if weights == "imagenet" and not architecture.torchvision:
        raise UsageError(
            f"torchvision has no weights 'imagenet' of {arch} (model.weights): give the path of a file, or 'none'"
        )
    if weights == "none":
        parts = architecture.build(group_norm)
    else:
        parts = architecture.build(partial(FrozenBatchNorm, epsilon=architecture.epsilon))
        if load:
            _load(parts.network, arch, weights)
        parts.early.requires_grad_(False)
    return Backbone(parts.early, parts.middle, parts.late, parts.stride, parts.channels, PIXELS[pixels])


def _resnet(depth: int, channels: tuple[int, int], norm: Norm) -> _Parts:
    """torchvision's; res4 for the RPN, res5 for the heads."""
    network = get_model(f"resnet{depth}", weights=None, norm_layer=norm)
    early = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)
    return _Parts(network, early, nn.Sequential(network.layer2, network.layer3), _at_stride_1(network.layer4), channels)


def _mobilenet_v3_large(norm: Norm) -> _Parts:
    """torchvision's; the last block of stride 16 for the RPN, the last 1x1 convolution for the heads."""
    network = get_model("mobilenet_v3_large", weights=None, norm_layer=norm)
    layers = network.features
    return _Parts(network, layers[:4], layers[4:13], _at_stride_1(layers[13:]), (112, 960))


def _efficientnet_lite0(norm: Norm) -> _Parts:
    """The last block of stride 16 for the RPN, the last block of all for the heads."""
    network = EfficientNetLite0(norm)
    blocks = list(network.blocks)
    early = nn.Sequential(network.conv_stem, network.bn0, nn.ReLU6(), *blocks[:3])
    late = _at_stride_1(nn.Sequential(*blocks[11:]))
    return _Parts(network, early, nn.Sequential(*blocks[3:11]), late, (112, 320))


def _convnet(norm: Norm) -> _Parts:
    """0.3 million parameters, for generated scenes and tests; stride 8, receptive fields of 47 and 63 pixels."""
    layer = partial(Conv2dNormActivation, kernel_size=3, norm_layer=norm)
    early = nn.Sequential(layer(3, 32, stride=2), layer(32, 48, stride=2))
    middle = nn.Sequential(layer(48, 96, stride=2), layer(96, 96), layer(96, 96))
    late = layer(96, 96)
    return _Parts(nn.Sequential(early, middle, late), early, middle, late, (96, 96), 8)


BACKBONES: dict[str, _Architecture] = {
    "resnet18": _Architecture(partial(_resnet, 18, (256, 512)), unused=("fc.",)),
    "resnet50": _Architecture(partial(_resnet, 50, (1024, 2048)), unused=("fc.",)),
    "resnet101": _Architecture(partial(_resnet, 101, (1024, 2048)), unused=("fc.",)),
    "mobilenet_v3_large": _Architecture(_mobilenet_v3_large, epsilon=1e-3, unused=("classifier.",)),
    "efficientnet_lite0": _Architecture(
        _efficientnet_lite0, epsilon=1e-3, unused=("conv_head.", "bn1.", "fc."), torchvision=False
    ),
    "convnet": _Architecture(_convnet, torchvision=False),
}


def _at_stride_1(stage: nn.Module) -> nn.Module:
    """Replace the stride of a stage by dilation 2 of its later convolutions.

    Every second pixel of the new map is the old map, so that weights trained with the stride stay valid. (torchvision
    does the same for two of its ResNets, and also dilates MobileNet's first convolution.)
    """
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            if module.stride == (2, 2):
                module.stride = (1, 1)
            elif module.kernel_size != (1, 1):
                module.dilation = (2, 2)
                module.padding = (module.kernel_size[0] - 1, module.kernel_size[1] - 1)
    return stage


def _check_name(field: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise UsageError(f"{field} = '{name}' is unknown{did_you_mean(name, known)}: known are {', '.join(known)}")


def _load(network: nn.Module, arch: str, weights: str) -> None:
    """Load "imagenet" or a file into a network with the same key names."""
    source, state = _imagenet(arch) if weights == "imagenet" else (weights, _read(Path(weights).expanduser()))
    expected = _used(arch, network.state_dict())
    found = _used(arch, state)
    missing = [key for key in expected if key not in found]
    if missing:
        raise AffsupError(f"{source} does not fit {arch}: '{missing[0]}' is missing. Is it a file of another network?")
    for key, value in found.items():
        if key not in expected or value.shape != expected[key].shape:
            wanted = f"the shape {list(expected[key].shape)}" if key in expected else "no such entry"
            raise AffsupError(
                f"{source} does not fit {arch}: it has '{key}' of the shape {list(value.shape)}, "
                f"the network has {wanted}. Is it a file of another network?"
            )
    network.load_state_dict(found, strict=False)


def _used(arch: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that a detector uses, without the leading underscores of the EfficientNet-Lite package."""
    plain = {".".join(part.removeprefix("_") for part in key.split(".")): value for key, value in state.items()}
    unused = BACKBONES[arch].unused
    return {
        key: value
        for key, value in plain.items()
        if not key.startswith(unused) and not key.endswith(".num_batches_tracked")
    }


def _imagenet(arch: str) -> tuple[str, dict[str, Tensor]]:
    """Torchvision's first ImageNet weights (trained like those of He et al.), and their URL."""
    weights = get_model_weights(arch).IMAGENET1K_V1
    try:
        return weights.url, weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise AffsupError(
            f"cannot download {weights.url}: {error}. Fetch that file elsewhere and give its path as model.weights"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors by its suffix, else of torch.save."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise AffsupError(
            f"{path} cannot be read (model.weights): {error.strerror}. Give 'imagenet', 'none' or the path of a file"
        ) from error
    except Exception as error:  # a damaged file can raise zip, pickle, key and runtime errors
        raise AffsupError(
            f"{path} is no file of weights (model.weights, {type(error).__name__}): "
            "expected a state dict that torch.save or safetensors wrote"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise AffsupError(
            f"{path} holds more than a state dict (model.weights): expected a dict of names and tensors; "
            "save its state dict alone"
        )
    # DataParallel and DistributedDataParallel put "module." before each name.
    return {str(name).removeprefix("module."): value for name, value in state.items()}
