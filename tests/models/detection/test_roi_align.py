from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from affsup_cli.models.detection import roi_align as module
from affsup_cli.models.detection.roi_align import roi_align, separable_roi_align

SCALE = 1 / 16


def case(height: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    features = torch.randn(2, 5, height, width, dtype=dtype)
    boxes = []
    for count in (30, 11):
        corner = (torch.rand(count, 2, dtype=dtype) * 1.6 - 0.4) * torch.tensor([width, height]) / SCALE
        size = torch.rand(count, 2, dtype=dtype) * torch.tensor([width, height]) / SCALE
        boxes.append(torch.cat([corner, corner + size], dim=1))  # many of them reach over the borders, or lie outside
    boxes[0][0, 2:] = boxes[0][0, :2]
    boxes[0][1] = torch.tensor([0, 0, width, height], dtype=dtype) / SCALE
    return features, boxes


@pytest.mark.parametrize(("height", "width"), [(6, 9), (1, 1), (7, 3)])
@pytest.mark.parametrize(("size", "sampling"), [(7, 2), (3, 1), (2, 4)])
def test_two_products_are_the_samples_of_torchvision(height: int, width: int, size: int, sampling: int) -> None:
    features, boxes = case(height, width)
    expected = torchvision.ops.roi_align(features, boxes, size, SCALE, sampling, aligned=True)
    found = [separable_roi_align(*image, size, SCALE, sampling) for image in zip(features, boxes, strict=True)]
    torch.testing.assert_close(torch.cat(found), expected)


@pytest.mark.parametrize(("height", "width"), [(6, 9), (60, 61)], ids=["products", "kernel"])
def test_values_and_gradients_are_those_of_torchvision(height: int, width: int) -> None:
    features, boxes = case(height, width)
    features.requires_grad_()
    weights = torch.randn(41, 5, 7, 7).double()
    gradients = []
    for pooled in (
        roi_align(features, boxes, 7, SCALE),
        torchvision.ops.roi_align(features, boxes, 7, SCALE, 2, aligned=True),
    ):
        gradients.append((pooled, torch.autograd.grad((pooled * weights).sum(), features)[0]))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("side", "differentiable", "recorded", "products"),
    [
        (16, False, True, True),
        (17, False, True, False),
        (17, True, True, True),
        (17, True, False, False),
        (48, True, True, True),
        (49, True, True, False),
    ],
)
def test_small_maps_are_taken_as_products(
    side: int, differentiable: bool, recorded: bool, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(module, "separable_roi_align", lambda *call: taken.append(call) or separable_roi_align(*call))
    features, boxes = case(side, side, torch.float32)
    with torch.set_grad_enabled(recorded):
        roi_align(features.requires_grad_(differentiable), boxes, 7, SCALE)
    assert bool(taken) == products


def test_an_image_without_regions_gives_none() -> None:
    features, boxes = case(6, 9)
    pooled = roi_align(features, [boxes[0][:0], boxes[1]], 7, SCALE)
    torch.testing.assert_close(pooled, roi_align(features[1:], boxes[1:], 7, SCALE))


def test_half_precision_is_computed_in_float32_and_given_back_as_it_came() -> None:
    features, boxes = case(6, 9, torch.float32)
    features = features.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = roi_align(features, boxes, 7, SCALE)
    torch.testing.assert_close(pooled, roi_align(features.float(), boxes, 7, SCALE).bfloat16())
