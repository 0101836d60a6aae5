from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from affsup_cli.affinity import (
    GroundTruth,
    TargetKind,
    category_pair_target,
    different_category_target,
    different_instance_target,
    match_proposals,
    proposal_target,
    relationship_target,
    same_category_target,
)
from tests.affinity.graphs import properties

PERSON, DOG, CAR = 1, 0, 2
# Objects 0..3 are a person, a person, a dog and a car; seven proposals, two of the first object, two of none.
GT_LABELS = torch.tensor([PERSON, PERSON, DOG, CAR])
MATCH = torch.tensor([0, 0, 1, -1, 2, 3, -1])
NO_MATCH = torch.full((3,), -1)
NO_LABELS = torch.empty(0, dtype=torch.int64)


def box_iou_oracle(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def match_oracle(boxes: Tensor, gt_boxes: Tensor) -> list[int]:
    matches = []
    for box in boxes.tolist():
        overlaps = [box_iou_oracle(box, gt) for gt in gt_boxes.tolist()]
        best = max(overlaps, default=0.0)
        matches.append(overlaps.index(best) if best > 0.5 else -1)
    return matches


def pairs(target: Tensor) -> set[tuple[int, int]]:
    return {(a, b) for a, b in target.nonzero().tolist()}


def pairs_where(match: Tensor, holds) -> set[tuple[int, int]]:
    """Proposal pairs whose objects both exist, differ, and satisfy `holds(alpha, beta)`."""
    objects = match.tolist()
    return {
        (a, b)
        for a, alpha in enumerate(objects)
        for b, beta in enumerate(objects)
        if alpha >= 0 and beta >= 0 and alpha != beta and holds(alpha, beta)
    }


@properties
@given(st.lists(st.integers(0, 3), max_size=7))
def test_same_category_target_is_true_where_labels_are_equal(labels: list[int]) -> None:
    target = same_category_target(torch.tensor(labels, dtype=torch.int64))
    assert target.dtype == torch.bool
    assert target.shape == (len(labels), len(labels))
    assert pairs(target) == {(a, b) for a, x in enumerate(labels) for b, y in enumerate(labels) if x == y}


def test_same_category_target_refuses_class_scores() -> None:
    with pytest.raises(ValueError, match=r"labels must have the shape \[N\], found \[4, 10\]"):
        same_category_target(torch.ones(4, 10, dtype=torch.int64))


@pytest.mark.parametrize("labels", [torch.ones(4), torch.ones(4, dtype=torch.bool)])
def test_same_category_target_refuses_labels_that_are_not_integers(labels: Tensor) -> None:
    with pytest.raises(TypeError, match=r"labels must be an integer tensor"):
        same_category_target(labels)


@pytest.mark.parametrize("seed", range(5))
def test_match_proposals_takes_the_object_of_largest_overlap(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 6, (46, 2), generator=generator)
    sizes = torch.randint(0, 6, (46, 2), generator=generator)
    boxes, gt_boxes = torch.cat([corners, corners + sizes], dim=1).float().split([40, 6])
    match = match_proposals(boxes, gt_boxes)
    assert match.dtype == torch.int64
    assert match.tolist() == match_oracle(boxes, gt_boxes)
    assert {-1} < set(match.tolist())


def test_match_proposals_takes_the_first_of_equal_overlaps() -> None:
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert match_proposals(box, box.repeat(3, 1)).tolist() == [0]


def test_match_proposals_must_exceed_the_threshold() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 5.1]])
    assert match_proposals(boxes, torch.tensor([[0.0, 0.0, 10.0, 10.0]])).tolist() == [-1, 0]


def test_match_proposals_uses_the_threshold_that_is_given() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 3.0]])
    gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert match_proposals(boxes, gt_boxes, iou=0.25).tolist() == [0]


def test_match_proposals_gives_empty_boxes_no_object() -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert match_proposals(point, point, iou=0.0).tolist() == [-1]


def test_match_proposals_skips_an_empty_object_for_a_real_one() -> None:
    gt_boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 4.0]])
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 4.0]])
    assert match_proposals(boxes, gt_boxes).tolist() == [-1, 1]


@pytest.mark.parametrize(("proposals", "objects"), [(3, 0), (0, 2), (0, 0)])
def test_match_proposals_takes_no_objects_and_no_proposals(proposals: int, objects: int) -> None:
    match = match_proposals(torch.ones(proposals, 4), torch.ones(objects, 4))
    assert match.dtype == torch.int64
    assert match.tolist() == [-1] * proposals


def test_match_proposals_refuses_what_is_not_boxes() -> None:
    with pytest.raises(ValueError, match=r"gt_boxes must have the shape \[..., \*, 4\] .* found \[2, 5\]"):
        match_proposals(torch.ones(3, 4), torch.ones(2, 5))


@pytest.mark.parametrize("iou", [-0.1, 1.0, 50.0, float("nan")])
def test_match_proposals_refuses_a_threshold_outside_the_unit_interval(iou: float) -> None:
    with pytest.raises(ValueError, match="iou must be at least 0 and below 1"):
        match_proposals(torch.ones(1, 4), torch.ones(1, 4), iou=iou)


def test_different_instance_target_pairs_proposals_of_different_objects() -> None:
    assert pairs(different_instance_target(MATCH)) == pairs_where(MATCH, lambda alpha, beta: True)


def test_different_category_target_pairs_proposals_of_objects_of_different_classes() -> None:
    expected = pairs_where(MATCH, lambda alpha, beta: GT_LABELS[alpha] != GT_LABELS[beta])
    assert pairs(different_category_target(MATCH, GT_LABELS)) == expected


def test_relationship_target_follows_annotations_from_subject_to_object() -> None:
    relations = torch.tensor([[0, 2], [2, 3], [0, 2], [3, 3]])
    expected = pairs_where(MATCH, lambda alpha, beta: (alpha, beta) in {(0, 2), (2, 3)})
    assert expected == {(0, 4), (1, 4), (4, 5)}
    assert pairs(relationship_target(MATCH, relations)) == expected


def test_relationship_target_ignores_a_relation_of_an_object_with_itself() -> None:
    assert not relationship_target(MATCH, torch.tensor([[0, 0]])).any()


def test_relationship_target_holds_under_autocast_with_many_duplicates() -> None:
    relations = torch.tensor([[0, 2]]).repeat(1000, 1)
    with torch.autocast("cpu", torch.bfloat16):
        target = relationship_target(MATCH, relations)
    assert pairs(target) == {(0, 4), (1, 4)}


@pytest.mark.parametrize("second", [None, PERSON, DOG, CAR])
def test_category_pair_target_goes_from_the_first_class_to_the_second(second: int | None) -> None:
    expected = pairs_where(
        MATCH, lambda alpha, beta: GT_LABELS[alpha] == PERSON and (second is None or GT_LABELS[beta] == second)
    )
    assert pairs(category_pair_target(MATCH, GT_LABELS, first=PERSON, second=second)) == expected


def test_category_pair_target_of_class_zero_leaves_out_unmatched_proposals() -> None:
    assert pairs(category_pair_target(MATCH, GT_LABELS, first=DOG, second=CAR)) == {(4, 5)}


@properties
@given(st.integers(0, 4).flatmap(lambda g: st.tuples(st.just(g), st.lists(st.integers(-1, g - 1), max_size=6))))
def test_targets_of_any_match_follow_their_definitions(drawn: tuple[int, list[int]]) -> None:
    objects, matches = drawn
    match = torch.tensor(matches, dtype=torch.int64)
    labels = torch.arange(objects) % 2
    relations = torch.tensor(np.argwhere(np.tri(objects, dtype=bool)), dtype=torch.int64).reshape(-1, 2)
    assert pairs(different_instance_target(match)) == pairs_where(match, lambda a, b: True)
    assert pairs(different_category_target(match, labels)) == pairs_where(match, lambda a, b: labels[a] != labels[b])
    assert pairs(relationship_target(match, relations)) == pairs_where(match, lambda a, b: a >= b)
    assert pairs(category_pair_target(match, labels, first=0)) == pairs_where(match, lambda a, b: labels[a] == 0)


@pytest.mark.parametrize("match", [NO_MATCH, NO_MATCH[:0]])
@pytest.mark.parametrize("labels", [GT_LABELS, NO_LABELS])
def test_targets_are_empty_without_matched_proposals(match: Tensor, labels: Tensor) -> None:
    size = match.shape[0]
    for target in (
        different_instance_target(match),
        different_category_target(match, labels),
        relationship_target(match, torch.tensor([[0, 1], [-1, 0]])),
        relationship_target(match, torch.empty(0, 2, dtype=torch.int64)),
        category_pair_target(match, labels, first=0),
    ):
        assert target.dtype == torch.bool
        assert torch.equal(target, torch.zeros(size, size, dtype=torch.bool))


def test_targets_are_computed_without_reading_values_on_the_host() -> None:
    match = match_proposals(torch.ones(5, 4, device="meta"), torch.ones(3, 4, device="meta"))
    labels = torch.ones(3, dtype=torch.int64, device="meta")
    relations = torch.ones(2, 2, dtype=torch.int64, device="meta")
    for target in (
        same_category_target(match),
        different_category_target(match, labels),
        relationship_target(match, relations),
        category_pair_target(match, labels, first=0, second=1),
    ):
        assert target.shape == (5, 5)


def test_relationship_target_refuses_triples() -> None:
    with pytest.raises(ValueError, match=r"relations must have the shape \[..., R, 2\] .* found \[1, 3\]"):
        relationship_target(MATCH, torch.tensor([[0, 1, 2]]))


def test_targets_refuse_a_match_that_is_not_an_index() -> None:
    with pytest.raises(TypeError, match="match must be an integer tensor"):
        different_instance_target(MATCH >= 0)


def test_targets_of_several_images_are_those_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 3, 7, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, 3, 7, 2, generator=generator) * 10], dim=-1)
    gt_boxes = boxes[:, :, :4] + torch.rand(2, 3, 4, 4, generator=generator)
    gt_boxes[0, 1, 2:] = 0  # padding
    gt_labels = torch.randint(0, 3, (2, 3, 4), generator=generator)
    relations = torch.tensor([[0, 1], [2, 3], [-2, -2]]).expand(2, 3, 3, 2).clone()
    relations[1, 2] = -2
    match = match_proposals(boxes, gt_boxes)
    together = (
        different_instance_target(match),
        different_category_target(match, gt_labels),
        relationship_target(match, relations),
        category_pair_target(match, gt_labels, first=0, second=2),
    )
    for at in ((i, j) for i in range(2) for j in range(3)):
        alone = match_proposals(boxes[at], gt_boxes[at])
        assert torch.equal(match[at], alone)
        assert not (alone[None] >= 2).any() or at != (0, 1)
        expected = (
            different_instance_target(alone),
            different_category_target(alone, gt_labels[at]),
            relationship_target(alone, relations[at]),
            category_pair_target(alone, gt_labels[at], first=0, second=2),
        )
        for found, one in zip(together, expected, strict=True):
            assert torch.equal(found[at], one)
    assert together[2].any()
    assert not together[2][1, 2].any()


def test_match_proposals_refuses_a_list_with_the_cure() -> None:
    with pytest.raises(TypeError, match="boxes must be a tensor, found list: pad the images' boxes with zeros"):
        match_proposals([torch.zeros(3, 4)], [torch.zeros(1, 4)])  # type: ignore[arg-type]


def test_targets_refuse_what_is_of_different_images() -> None:
    match = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="are of different images"):
        different_category_target(match, torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="are of different images"):
        relationship_target(match, torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="are of different images"):
        match_proposals(torch.zeros(2, 5, 4), torch.zeros(3, 4))


@pytest.mark.parametrize("kind", ["different-category", "different-instance", "relationship", "category-pair"])
def test_a_proposal_on_several_objects_may_belong_to_all_of_them(kind: TargetKind) -> None:
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(2, 5, 2, generator=generator) * 4
    gt_boxes = torch.cat([low, low + 8], dim=-1)
    gt_boxes[1, 3:] = 0  # padding
    boxes = (gt_boxes[:, :1] + torch.rand(2, 9, 4, generator=generator) * 6).contiguous()
    labels = torch.randint(0, 2, (2, 5), generator=generator)
    relations = torch.tensor([[[0, 1], [4, 2]], [[1, 2], [-2, -2]]])
    truth = GroundTruth(boxes=gt_boxes, labels=labels, relations=relations, first=0, second=1)
    found = proposal_target(kind, boxes, truth, match="any")
    assert found.sum() > proposal_target(kind, boxes, truth).sum()

    def related(image: int, g: int, h: int) -> bool:
        if g == h:
            return False
        first, second = labels[image, g].item(), labels[image, h].item()
        return {
            "different-category": first != second,
            "different-instance": True,
            "relationship": [g, h] in relations[image].tolist(),
            "category-pair": (first, second) == (0, 1),
        }[kind]

    for image in range(2):
        covers = [
            [g for g, gt in enumerate(gt_boxes[image].tolist()) if box_iou_oracle(box, gt) > 0.5]
            for box in boxes[image].tolist()
        ]
        expected = [
            [a != b and any(related(image, g, h) for g in covers[a] for h in covers[b]) for b in range(9)]
            for a in range(9)
        ]
        assert found[image].tolist() == expected
