from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from affsup_cli.models.detection import backbones
from affsup_cli.models.detection.backbone import PIXELS, Backbone
from affsup_cli.models.detection.backbones import BACKBONES, build_backbone
from affsup_cli.models.detection.efficientnet_lite import EfficientNetLite0, SameConv2d
from data_prep.errors import AffsupError, UsageError


def lived_in(network: nn.Module) -> nn.Module:
    """A network whose batch norms have seen something, as a trained one's have."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(lived_in(get_model("resnet18")).state_dict(), path)
    return path


def images(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize("size", [(32, 64), (49, 71)])
def test_both_maps_have_the_stride_and_the_channels_that_the_backbone_names(arch: str, size: tuple[int, int]) -> None:
    backbone = build_backbone(arch, "none", "torchvision")
    assert backbone.stride == (8 if arch == "convnet" else 16)
    with torch.no_grad():
        maps = backbone(images(*size))
    cells = [-(-side // backbone.stride) for side in size]
    assert [list(one.shape) for one in maps] == [[2, channels, *cells] for channels in backbone.channels]


@pytest.mark.parametrize("arch", BACKBONES)
def test_without_weights_images_do_not_share_statistics_and_everything_is_trained(arch: str) -> None:
    backbone = build_backbone(arch, "none", "torchvision")
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    both = images(32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(both)[1][:1], backbone(both[:1])[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnets_maps_are_res4_and_res5_of_torchvision_at_twice_the_resolution(depth: int, tmp_path: Path) -> None:
    network: Any = lived_in(get_model(f"resnet{depth}")).double()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(f"resnet{depth}", str(tmp_path / "weights.pth"), "torchvision").double()
    pixels = images(64, 96).double()
    normalised = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        stem = network.maxpool(network.relu(network.bn1(network.conv1(normalised))))
        res4 = network.layer3(network.layer2(network.layer1(stem)))
        res5 = network.layer4(res4)
        low, high = backbone(pixels)
    torch.testing.assert_close(low, res4, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(high[:, :, ::2, ::2], res5, atol=1e-4, rtol=1e-4)


def test_mobilenets_first_map_is_the_last_of_stride_16_in_torchvision(tmp_path: Path) -> None:
    network: Any = lived_in(get_model("mobilenet_v3_large"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone("mobilenet_v3_large", str(tmp_path / "weights.pth"), "signed")
    pixels = images(32, 64)
    with torch.no_grad():
        low, _ = backbone(pixels)
        torch.testing.assert_close(low, network.features[:13]((pixels - 127) / 128), atol=1e-4, rtol=1e-4)


def test_efficientnet_lites_maps_are_those_of_the_package_whose_weights_it_reads(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network: Any = lived_in(package.EfficientNet.from_name("efficientnet-lite0"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone("efficientnet_lite0", str(tmp_path / "weights.pth"), "signed")
    pixels = images(224, 224)  # the size that the package's padding is made for
    expected = []
    with torch.no_grad():
        x = F.relu6(network._bn0(network._conv_stem((pixels - 127) / 128)))
        for block in network._blocks:
            x = block(x)
            expected.append(x)
        low, high = backbone(pixels)
    torch.testing.assert_close(low, expected[10], atol=1e-4, rtol=1e-4)
    # TensorFlow pads an even map at its end only, so that a stride of 2 looks at the odd pixels.
    torch.testing.assert_close(high[:, :, 1::2, 1::2], expected[15], atol=1e-4, rtol=1e-4)


def test_efficientnet_lite_has_the_published_number_of_parameters() -> None:
    classifier = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    parameters = sum(p.numel() for p in EfficientNetLite0(nn.BatchNorm2d).parameters())
    assert (parameters + classifier) / 1e6 == pytest.approx(4.652, abs=0.0005)  # TensorFlow's model page


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "before", "after"),
    [
        (3, 1, 6, 1, 1),
        (5, 1, 6, 2, 2),
        (3, 2, 6, 0, 1),
        (5, 2, 6, 1, 2),
        (3, 2, 7, 1, 1),
        (5, 2, 7, 2, 2),
        (1, 2, 6, 0, 0),
    ],
)
def test_same_padding_is_tensorflows(kernel: int, stride: int, side: int, before: int, after: int) -> None:
    layer, x = SameConv2d(2, 3, kernel, stride), torch.randn(1, 2, side, 9)
    horizontal = (
        -(-9 // stride) * stride - stride + kernel - 9
    )  # nine columns, an odd number, need as much on both sides
    padded = F.pad(x, (max(horizontal, 0) // 2, max(horizontal, 0) // 2, before, after))
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.weight, stride=stride))


def test_the_small_network_has_a_third_of_a_million_parameters() -> None:
    parameters = sum(p.numel() for p in build_backbone("convnet", "none", "torchvision").parameters())
    assert parameters / 1e6 == pytest.approx(0.3, abs=0.05)


def test_with_weights_the_stem_the_first_stage_and_every_batch_norm_stay(resnet18_file: Path) -> None:
    backbone = build_backbone("resnet18", str(resnet18_file), "torchvision").train()
    parts = {name: list(getattr(backbone, name).parameters()) for name in ("early", "middle", "late")}
    assert len(parts["early"]) == 1 + 4, "conv1 and the convolutions of two blocks"
    assert not any(parameter.requires_grad for parameter in parts["early"])
    assert all(parameter.requires_grad for parameter in parts["middle"] + parts["late"])
    assert all(parameter.dim() == 4 for part in parts.values() for parameter in part), "convolutions alone"
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(images(32, 32))
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ("torchvision", [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225]),
        ("caffe", [50 - 103.06, 100 - 115.90, 200 - 123.15]),
        ("signed", [73 / 128, -27 / 128, -77 / 128]),
    ],
)
def test_images_become_what_the_weights_expect(pixels: str, expected: list[float]) -> None:
    backbone = Backbone(nn.Identity(), nn.Identity(), nn.Identity(), 1, (3, 3), PIXELS[pixels])
    found, _ = backbone(torch.tensor([200.0, 100.0, 50.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))


@pytest.mark.parametrize("pixels", PIXELS)
def test_the_mean_colour_becomes_zero(pixels: str) -> None:
    backbone = Backbone(nn.Identity(), nn.Identity(), nn.Identity(), 1, (3, 3), PIXELS[pixels])
    assert (backbone(backbone.mean.unsqueeze(0))[0] == 0).all()


def test_torchvisions_own_weights_are_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    state = lived_in(get_model("resnet18")).state_dict()
    first = SimpleNamespace(url="somewhere", get_state_dict=lambda **options: state)
    monkeypatch.setattr(backbones, "get_model_weights", lambda arch: SimpleNamespace(IMAGENET1K_V1=first))
    backbone = build_backbone("resnet18", "imagenet", "torchvision")
    torch.testing.assert_close(next(backbone.parameters()), state["conv1.weight"])


def test_weights_that_cannot_be_downloaded_are_asked_for_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**options: object) -> None:
        raise URLError("no network")

    first = SimpleNamespace(url="https://example.org/resnet18.pth", get_state_dict=offline)
    monkeypatch.setattr(backbones, "get_model_weights", lambda arch: SimpleNamespace(IMAGENET1K_V1=first))
    with pytest.raises(AffsupError, match=r"cannot download https://example.org/resnet18.pth: .*no network.*its path"):
        build_backbone("resnet18", "imagenet", "torchvision")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            ("resnet51", "none", "caffe"),
            r"model\.arch = 'resnet51' is unknown \(did you mean 'resnet\d+'",
        ),
        (("resnet18", "none", "cafe"), r"model\.pixels = 'cafe' is unknown \(did you mean 'caffe'\?\)"),
        (("efficientnet_lite0", "imagenet", "signed"), "torchvision has no weights 'imagenet' of efficientnet_lite0"),
        (("convnet", "imagenet", "torchvision"), "there are no pretrained weights of 'convnet', set it to 'none'"),
        (("convnet", "some.pth", "torchvision"), "there are no pretrained weights of 'convnet', set it to 'none'"),
    ],
)
def test_a_wrong_call_is_refused(call: tuple[str, str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_backbone(*call)


def test_a_file_of_another_network_is_refused_with_the_first_entry_that_does_not_fit(resnet18_file: Path) -> None:
    with pytest.raises(
        AffsupError, match=r"resnet18\.pth does not fit resnet50: 'layer1\.0\.conv3\.weight' is missing"
    ):
        build_backbone("resnet50", str(resnet18_file), "torchvision")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv1.weight", torch.zeros(64, 3, 3, 3), r"'conv1\.weight' of the shape \[64, 3, 3, 3\].*\[64, 3, 7, 7\]"),
        ("layer3.6.conv1.weight", torch.zeros(4), r"'layer3\.6\.conv1\.weight' .* the network has no such entry"),
    ],
)
def test_a_file_with_an_entry_that_does_not_fit_is_refused(
    name: str, value: Tensor, message: str, resnet18_file: Path, tmp_path: Path
) -> None:
    torch.save(torch.load(resnet18_file, weights_only=True) | {name: value}, tmp_path / "other.pth")
    with pytest.raises(AffsupError, match=message):
        build_backbone("resnet18", str(tmp_path / "other.pth"), "torchvision")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AffsupError, match=r"none\.pth cannot be read \(model\.weights\): No such file"):
        build_backbone("resnet18", str(tmp_path / "none.pth"), "torchvision")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"], ids=["empty", "text", "cut"])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(AffsupError, match=r"w\.pth is no file of weights \(model\.weights, "):
        build_backbone("resnet18", str(tmp_path / "w.pth"), "torchvision")


def test_a_checkpoint_with_more_than_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(AffsupError, match=r"w\.pth holds more than a state dict"):
        build_backbone("resnet18", str(tmp_path / "w.pth"), "torchvision")
