"""Networks of timm (PyTorch Image Models) as backbones of detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from affsup_cli.models.detection.backbone import Backbone, FrozenBatchNorm, PixelNormalisation, group_norm
from affsup_cli.models.timm_networks import create_network
from data_prep.errors import AffsupError, UsageError

FROZEN_STRIDE = 4
STRIDE = 16


class TimmBackbone(Backbone):
    """The maps of timm's network `name` at stride 16: of its last stage but one, and of its last, which is dilated.

    With weights, all batch norms keep their statistics and the layers up to stride 4 are frozen. Without, group norm
    replaces batch norm.

    Args:
        name: of the network.
        weights: "imagenet" for timm's (downloaded once), "none", or the path of a file of timm's weights.
        pixels: the input normalisation.
        load: read the weights; false if a state dict of the whole will be loaded.

    Raises:
        UsageError: timm is not installed, has no such network, or cannot give two maps at stride 16.
        AffsupError: the weights cannot be read or downloaded, or do not fit.
    """

    def __init__(self, name: str, weights: str, pixels: PixelNormalisation, load: bool) -> None:
        options: dict[str, Any] = {"features_only": True, "out_indices": (-2, -1), "output_stride": STRIDE}
        if weights != "none" and load:
            options["pretrained"] = True
            if weights != "imagenet":
                if not Path(weights).is_file():
                    raise AffsupError(f"no file {weights} (model.weights): give 'imagenet', 'none' or a path")
                options["pretrained_cfg_overlay"] = {"file": weights}
        network = create_network(name, **options)
        strides, channels = network.feature_info.reduction(), network.feature_info.channels()
        if strides != [STRIDE, STRIDE]:
            raise UsageError(f"timm:{name} (model.arch) has maps of the strides {strides}: expected two of {STRIDE}")
        super().__init__(nn.Identity(), nn.Identity(), network, STRIDE, (channels[0], channels[1]), pixels)
        if weights == "none":
            _replace_batch_norm(network, frozen=False)
        else:
            _replace_batch_norm(network, frozen=True)
            _freeze(network)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps of RGB images `[B, 3, H, W]`, 0..255; see `Backbone.forward`."""
        low, high = self.late(self.normalised(images))
        return low, high


def _replace_batch_norm(network: nn.Module, frozen: bool) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm = _frozen(module) if frozen else group_norm(module.num_features)
            # timm's norms may contain the activation that follows.
            after = [part for part in (getattr(module, "drop", None), getattr(module, "act", None)) if part is not None]
            network.set_submodule(name, nn.Sequential(norm, *after) if after else norm)


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm:
    frozen = FrozenBatchNorm(norm.num_features, norm.eps)
    state = norm.state_dict()
    state.pop("num_batches_tracked", None)
    frozen.load_state_dict(frozen.state_dict() | state)
    return frozen


def _freeze(network: Any) -> None:
    """Freeze the parameters up to stride 4; parameters are in the order of the layers."""
    stages = [info["module"] for info in network.feature_info.info if info["reduction"] <= FROZEN_STRIDE]
    names = [name for name, _ in network.named_parameters()]
    inside = [index for index, name in enumerate(names) if name.replace("_", ".").startswith(f"{stages[-1]}.")]
    for parameter in list(network.parameters())[: inside[-1] + 1 if inside else 0]:
        parameter.requires_grad_(False)
