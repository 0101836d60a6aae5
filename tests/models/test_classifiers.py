from __future__ import annotations

import pytest
import torch
from torch import nn

from affsup_cli.models.classifiers.build import CLASSIFIERS, build_classifier
from data_prep.errors import UsageError


@pytest.mark.parametrize(("arch", "millions"), [("resnet20", 0.27), ("resnet56", 0.85), ("resnet110", 1.73)])
def test_cifar_networks_have_the_published_number_of_parameters(arch: str, millions: float) -> None:
    # He et al. 2016, table 6 (rounded there; 1.73 for the 110-layer network by their own count of 1.7M).
    network = build_classifier(arch, 3, 10)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(("arch", "layers"), [("resnet20", 20), ("resnet56", 56), ("resnet110", 110)])
def test_cifar_networks_have_as_many_layers_as_their_name_says(arch: str, layers: int) -> None:
    network = build_classifier(arch, 3, 10)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == layers


@pytest.mark.parametrize(
    ("arch", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet101", 44_549_160)]
)
def test_imagenet_networks_are_those_of_torchvision(arch: str, parameters: int) -> None:
    # Published counts for 1,000 classes and three channels, from torchvision's model page.
    network = build_classifier(arch, 3, 1000)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("arch", "channels", "side", "width"),
    [
        ("resnet20", 1, 8, 64),
        ("resnet20", 3, 32, 64),
        ("resnet56", 3, 32, 64),
        ("resnet18", 3, 64, 512),
        ("resnet50", 3, 64, 2048),
    ],
)
def test_features_and_logits_have_their_shapes_and_logits_come_from_features(
    arch: str, channels: int, side: int, width: int
) -> None:
    network = build_classifier(arch, channels, 7).eval()
    features, logits = network(torch.randn(2, channels, side, side))
    assert features.shape == (2, width)
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits, features @ network.head.weight.T + network.head.bias)


def test_option_a_shortcut_is_every_second_pixel_between_zero_channels() -> None:
    from affsup_cli.models.classifiers.cifar_resnet import BasicBlock

    block = BasicBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # nothing but the shortcut is left
    x = torch.rand(1, 2, 4, 4)
    expected = torch.zeros(1, 4, 2, 2)
    expected[:, 1:3] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def test_small_images_keep_their_resolution_in_the_first_stage() -> None:
    network = build_classifier("resnet20", 3, 10)
    seen = []
    for block in network.backbone.blocks:
        block.register_forward_hook(lambda *call: seen.append(tuple(call[-1].shape[1:])))
    network(torch.randn(1, 3, 32, 32))
    assert seen == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_convolutions_start_with_the_variance_of_he_et_al() -> None:
    # Delving Deep into Rectifiers, eq. 10: std = sqrt(2 / fan_in).
    torch.manual_seed(0)
    for module in build_classifier("resnet56", 3, 10).backbone.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            fan_in = module.in_channels * 9
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


def test_an_unknown_architecture_is_refused_with_those_known() -> None:
    with pytest.raises(UsageError, match=r"no architecture 'vgg16' \(model\.arch\).*resnet20"):
        build_classifier("vgg16", 3, 10)


def test_the_six_networks_of_table_3_are_included() -> None:
    assert set(CLASSIFIERS) >= {"resnet20", "resnet56", "resnet110", "resnet18", "resnet50", "resnet101"}
