from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.models.detection.backbone import FrozenBatchNorm
from affsup_cli.models.detection.backbones import build_backbone
from affsup_cli.recipe import load_recipe
from data_prep.errors import AffsupError, UsageError

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_a_classifier_of_timm_gives_pooled_features_and_logits(name: str) -> None:
    features, logits = build_classifier(f"timm:{name}", 1, 7).eval()(torch.rand(2, 1, 64, 64))
    assert features.dim() == 2
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_a_backbone_of_timm_gives_two_maps_at_stride_16(name: str) -> None:
    backbone = build_backbone(f"timm:{name}", "none", "torchvision")
    maps = backbone(torch.rand(1, 3, 96, 64) * 255)
    assert [tuple(found.shape) for found in maps] == [(1, channels, 6, 4) for channels in backbone.channels]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_weights_in_a_file_are_loaded_with_frozen_norms_and_early_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet").eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    backbone = build_backbone("timm:test_resnet", str(tmp_path / "mine.safetensors"), "torchvision").train()
    images = torch.rand(1, 3, 64, 64) * 255
    expected = network.forward_intermediates(backbone.normalised(images), indices=[-2], intermediates_only=True)
    torch.testing.assert_close(backbone(images)[0], expected[0], rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, FrozenBatchNorm) for module in backbone.modules())
    trained = {name: parameter.requires_grad for name, parameter in backbone.late.named_parameters()}
    assert not any(value for name, value in trained.items() if name.startswith(("conv1", "layer1")))
    assert all(value for name, value in trained.items() if name.startswith(("layer2", "layer3", "layer4")))


def test_wrong_names_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean 'resnet18"):
        build_classifier("timm:resnet18x", 3, 2)
    with pytest.raises(AffsupError, match=r"no file absent\.pth"):
        build_backbone("timm:test_resnet", "absent.pth", "torchvision")
    (tmp_path / "torn.safetensors").write_bytes(b"x")
    with pytest.raises(AffsupError, match="timm cannot build test_resnet"):
        build_backbone("timm:test_resnet", str(tmp_path / "torn.safetensors"), "torchvision")
    original = builtins.__import__

    def without_timm(name: str, *rest: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(UsageError, match="needs timm"):
        build_classifier("timm:test_resnet", 3, 2)


def test_a_run_of_a_network_of_timm_has_a_name_for_a_folder() -> None:
    assert load_recipe("minibatch", {"model.arch": "timm:resnet18"}).label() == "minibatch-digits-timm-resnet18-focal"
