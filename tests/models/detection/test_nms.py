from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from affsup_cli.models.detection import nms as module
from affsup_cli.models.detection.nms import first_nms, soft_nms


def random_boxes(count: int, spread: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40 + 5], dim=1)


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def plain_soft_nms(
    boxes: list[list[float]], scores: list[list[float]], sigma: float, keep: int, least: float
) -> list[tuple[float, int, int]]:
    """Each class by itself to the end, as the release does; then the best of all."""
    found = []
    for label in range(len(scores[0])):
        left = {index: row[label] for index, row in enumerate(scores)}
        while left:
            best = max(left, key=lambda index: left[index])
            found.append((left.pop(best), best, label))
            for index in left:
                left[index] *= math.exp(-(overlap(boxes[best], boxes[index]) ** 2) / sigma)
    return [entry for entry in sorted(found, reverse=True) if entry[0] > least][:keep]


@pytest.mark.parametrize("spread", [10.0, 150.0, 1500.0], ids=["crowded", "usual", "sparse"])
@pytest.mark.parametrize("keep", [1, 7, 100, 5000])
def test_first_nms_keeps_what_torchvision_keeps_first(spread: float, keep: int) -> None:
    boxes = random_boxes(900, spread, seed=1)
    scores = torch.rand(900, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(first_nms(boxes, scores, 0.5, keep), nms(boxes, scores, 0.5)[:keep])


def test_first_nms_prefers_the_earlier_of_equals_as_torchvision_does() -> None:
    boxes = random_boxes(400, 60.0, seed=3)
    scores = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(4)) / 4
    torch.testing.assert_close(first_nms(boxes, scores, 0.3, 20), nms(boxes, scores, 0.3)[:20])


def test_first_nms_looks_at_no_more_boxes_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "nms", lambda boxes, *rest: asked.append(len(boxes)) or nms(boxes, *rest))
    first_nms(
        torch.cat([random_boxes(50, 1.0, seed=9), random_boxes(900, 1e6, seed=9)]), torch.arange(950, 0, -1.0), 0.1, 10
    )
    assert asked == [20, 40, 80]


def test_first_nms_of_no_boxes_keeps_none() -> None:
    kept = first_nms(torch.zeros(0, 4), torch.zeros(0), 0.7, 300)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize(("keep", "least"), [(20, 0.0), (1000, 0.0), (1000, 0.4)])
def test_soft_nms_is_the_plain_loop_over_classes(keep: int, least: float) -> None:
    boxes = random_boxes(40, 40.0, seed=5)
    scores = torch.rand(40, 3, generator=torch.Generator().manual_seed(6))
    expected = plain_soft_nms(boxes.tolist(), scores.tolist(), 0.6, keep, least)
    index, label, score = soft_nms(boxes, scores, 0.6, keep, least)
    assert list(zip(index.tolist(), label.tolist(), strict=True)) == [entry[1:] for entry in expected]
    torch.testing.assert_close(score, torch.tensor([entry[0] for entry in expected]))


def test_soft_nms_lets_a_wider_sigma_spare_neighbours() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])  # they overlap by a half
    _, _, score = soft_nms(boxes, torch.tensor([[0.9], [0.8]]), sigma=0.25)
    torch.testing.assert_close(score, torch.tensor([0.9, 0.8 * math.exp(-1)]))


def test_soft_nms_takes_of_equals_the_first_class_and_of_it_the_first_box() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    index, label, _ = soft_nms(boxes, torch.full((2, 2), 0.5))
    assert list(zip(label.tolist(), index.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_soft_nms_leaves_its_arguments_as_they_are() -> None:
    boxes, scores = random_boxes(10, 5.0, seed=7), torch.full((10, 1), 0.5)
    soft_nms(boxes, scores)
    assert (scores == 0.5).all()


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_soft_nms_of_nothing_finds_nothing(shape: tuple[int, int]) -> None:
    index, label, score = soft_nms(random_boxes(shape[0], 9.0, seed=8), torch.rand(shape))
    assert index.shape == label.shape == score.shape == (0,)


def test_soft_nms_takes_boxes_without_an_area() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]])
    _, _, score = soft_nms(boxes, torch.tensor([[0.9], [0.8]]))
    torch.testing.assert_close(score, torch.tensor([0.9, 0.8]))
