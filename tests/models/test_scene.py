from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affsup_cli.models.scene import SceneClassifier
from affsup_cli.recipe import SceneModel
from affsup_cli.tasks.detection.network import build_network
from tests.small_scenes import small

SIZE = (50, 70)  # on a canvas of 64 x 96, maps at stride 8


@pytest.fixture
def images() -> Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255


def build(features: str) -> SceneClassifier:
    torch.manual_seed(0)
    options = SceneModel(features=features, pretrained=True, channels=5)  # type: ignore[arg-type]
    return SceneClassifier(build_network(small(), classes=8).detector, options, categories=7)


def outputs(part_a: nn.Module, layer: str) -> list[Tensor]:
    """What a layer of part A gives whenever it is called."""
    seen: list[Tensor] = []
    module = part_a.get_submodule(layer)
    module.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen


def test_f_s_is_the_global_average_of_a_1x1_convolution_of_the_last_map(images: Tensor) -> None:
    model = build("scene")
    maps = outputs(model.part_a, "backbone.late")
    logits = model(model.part_a_features(images.clone(), SIZE)[None])
    of_image = maps[0][:, :, : math.ceil(50 / 8), : math.ceil(70 / 8)]
    convolved = F.conv2d(of_image, model.scene.weight[:, :, None, None], model.scene.bias)
    torch.testing.assert_close(logits, model.classifier(convolved.mean(dim=(2, 3))))


@pytest.mark.parametrize(("features", "layer"), [("rois", "head.layers.0"), ("attention", "head.relations.1")])
def test_the_maximum_over_the_proposals_stands_beside_f_s(images: Tensor, features: str, layer: str) -> None:
    model = build(features)
    found = outputs(model.part_a, layer)
    features = model.part_a_features(images.clone(), SIZE)
    regions, _ = model.part_a(images.clone(), [SIZE])
    there = found[0][0][: int(regions.present.sum())]
    assert features.shape == (96 + 32,)
    torch.testing.assert_close(features[96:], there.max(dim=0).values)


def test_f_c_is_what_the_last_module_gives_not_what_it_adds_to(images: Tensor) -> None:
    model = build("attention")
    nn.init.zeros_(model.part_a.head.relations[1].value.weight)
    nn.init.constant_(model.part_a.head.relations[1].value.bias, 3.0)
    torch.testing.assert_close(model.part_a_features(images, SIZE)[96:], torch.full((32,), 3.0))


def test_what_lies_outside_the_image_does_not_count(images: Tensor) -> None:
    model = build("attention")
    other = images.clone()
    other[..., SIZE[0] :, :] = 0
    other[..., SIZE[1] :] = 200
    torch.testing.assert_close(model.part_a_features(images, SIZE), model.part_a_features(other, SIZE))


def test_an_image_without_proposals_has_a_context_of_zero(images: Tensor) -> None:
    model = build("attention")
    model.part_a.proposals.min_size = 1e6
    features = model.part_a_features(images, SIZE)
    assert features[96:].abs().sum() == 0
    assert features[:96].abs().sum() > 0


def test_part_a_learns_nothing_and_stays_in_evaluation(images: Tensor) -> None:
    model = build("attention").train()
    assert model.training
    assert not any(module.training for module in model.part_a.modules())
    model(model.part_a_features(images, SIZE)[None]).sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"scene.weight", "scene.bias", "classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("features", ["scene", "rois", "attention"])
def test_layers_that_nothing_looks_at_are_not_kept(features: str) -> None:
    names = {key.removeprefix("part_a.") for key in build(features).state_dict() if key.startswith("part_a.")}
    assert not any(name.startswith(("head.classifier", "head.regressor")) for name in names)
    assert any(name.startswith("backbone.") for name in names)
    assert any(name.startswith(("head.", "proposals.")) for name in names) == (features != "scene")
