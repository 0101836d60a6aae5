from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from affsup_cli.models.detection.relpn import PairScorer, relative_boxes


def scorer(sampled: int = 1000) -> PairScorer:
    torch.manual_seed(0)
    return PairScorer(features=6, hidden=5, sampled=sampled)


def some_boxes(images: int, count: int) -> Tensor:
    corners = torch.rand(images, count, 2) * 50
    return torch.cat([corners, corners + 5 + torch.rand(images, count, 2) * 30], dim=2)


def place_oracle(subject: list[float], other: list[float]) -> np.ndarray:
    """Three encodings by torchvision's box coding, written out."""
    union = [*np.minimum(subject[:2], other[:2]), *np.maximum(subject[2:], other[2:])]
    seen = []
    for a, b in ((subject, other), (subject, union), (union, other)):
        (ax, ay, aw, ah), (bx, by, bw, bh) = (
            box_convert(torch.tensor(box).double(), "xyxy", "cxcywh").tolist() for box in (a, b)
        )
        seen += [(bx - ax) / aw, (by - ay) / ah, np.log(bw / aw), np.log(bh / ah)]
    return np.array(seen)


def test_places_tell_left_from_right_and_above_from_below() -> None:
    middle, left, below = [40.0, 40, 60, 60], [10.0, 40, 30, 60], [40.0, 70, 60, 90]
    places = relative_boxes(torch.tensor([[middle, left, below]]))[0]
    assert places[0, 1, 0] == -places[1, 0, 0] < 0
    assert places[0, 2, 1] == -places[2, 0, 1] > 0
    assert places.shape == (3, 3, 12)
    assert relative_boxes(torch.zeros(1, 2, 4)).isfinite().all()


def test_a_pairs_score_is_the_sum_of_its_visual_and_its_spatial_branch() -> None:
    model = scorer()
    features, boxes = torch.randn(2, 4, 6), some_boxes(2, 4)
    scores = model(features, boxes).detach().numpy()
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    for image in range(2):
        for i in range(4):
            for j in range(4):
                f_i, f_j = (features[image, k].double().numpy() for k in (i, j))
                seen = np.maximum(
                    weights["subject.weight"] @ f_i + weights["subject.bias"] + weights["object.weight"] @ f_j, 0
                )
                where = place_oracle(boxes[image, i].tolist(), boxes[image, j].tolist())
                placed = np.maximum(weights["place.weight"] @ where + weights["place.bias"], 0)
                visual = weights["visual_score.weight"][0] @ seen + weights["visual_score.bias"][0]
                spatial = weights["spatial_score.weight"][0] @ placed + weights["spatial_score.bias"][0]
                assert scores[image, i, j] == pytest.approx(visual + spatial, abs=1e-4)


def test_with_all_pairs_sampled_the_loss_is_the_mean_cross_entropy_of_real_pairs() -> None:
    scores = torch.randn(1, 4, 4)
    target = torch.zeros(1, 4, 4, dtype=torch.bool)
    target[0, 0, 1] = target[0, 1, 2] = target[0, 2, 2] = target[0, 3, 0] = True
    present = torch.tensor([[True, True, True, False]])
    pairs = present.unsqueeze(1) & present.unsqueeze(2)
    expected = []
    for i in range(3):
        for j in range(3):
            if i != j:
                p = 1 / (1 + np.exp(-float(scores[0, i, j])))
                expected.append(-np.log(p if target[0, i, j] else 1 - p))
    assert scorer().loss(scores, target, pairs).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_at_most_half_of_a_sample_is_annotated_pairs() -> None:
    scores = torch.zeros(1, 40, 40)
    target = torch.ones(1, 40, 40, dtype=torch.bool).triu(1)
    scores.masked_fill_(~target, 100.0)  # a pair that is not annotated costs 100, one that is log 2
    loss = scorer(sampled=20).loss(scores, target, torch.ones(1, 40, 40, dtype=torch.bool))
    assert loss.item() == pytest.approx((10 * 100 + 10 * np.log(2)) / 20, rel=1e-5)


def test_without_two_proposals_there_is_no_loss() -> None:
    scores = torch.randn(1, 3, 3, requires_grad=True)
    alone = torch.zeros(1, 3, 3, dtype=torch.bool)
    alone[0, 0, 0] = True
    loss = scorer().loss(scores, torch.zeros(1, 3, 3, dtype=torch.bool), alone)
    loss.backward()
    assert loss == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_no_gradient_reaches_pairs_of_padding() -> None:
    scores = torch.randn(1, 3, 3, requires_grad=True)
    pairs = torch.zeros(1, 3, 3, dtype=torch.bool)
    pairs[0, :2, :2] = True
    loss = scorer().loss(scores, torch.ones(1, 3, 3, dtype=torch.bool), pairs)
    loss.backward()
    assert scores.grad is not None
    assert {tuple(entry) for entry in scores.grad[0].nonzero().tolist()} == {(0, 1), (1, 0)}
