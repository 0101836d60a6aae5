from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from affsup_cli.metrics import RelationshipRecall
from affsup_cli.metrics.relationship import top_pairs

KS = (1, 2, 3, 5, 10, 40, 1000)
CELLS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])


def brute_overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def brute_ranking(affinity: torch.Tensor) -> list[tuple[int, int]]:
    weights = affinity.double().tolist()
    pairs = [(i, j) for i in range(len(weights)) for j in range(len(weights)) if i != j]
    return sorted(
        (pair for pair in pairs if math.isfinite(weights[pair[0]][pair[1]])), key=lambda p: -weights[p[0]][p[1]]
    )


def brute_found(
    boxes: torch.Tensor, affinity: torch.Tensor, gt_boxes: torch.Tensor, gt_pairs: torch.Tensor, k: int, iou: float
) -> tuple[int, int]:
    asked = {(s, o) for s, o in gt_pairs.tolist() if s != o}
    proposals, objects = boxes.double().tolist(), gt_boxes.double().tolist()
    found = set()
    for i, j in brute_ranking(affinity)[:k]:
        for s, o in asked:
            if brute_overlap(proposals[i], objects[s]) >= iou and brute_overlap(proposals[j], objects[o]) >= iou:
                found.add((s, o))
    return len(found), len(asked)


def recall(*image: torch.Tensor, ks: tuple[int, ...] = KS, iou: float = 0.5) -> dict[int, float]:
    metric = RelationshipRecall(ks, iou)
    metric.update(*image)
    return metric.compute()["micro"]


def scene(seed: int, proposals: int, objects: int, pairs: int, levels: int) -> tuple[torch.Tensor, ...]:
    random = np.random.default_rng(seed)
    corner, size = random.integers(0, 12, (proposals + objects, 2)), random.integers(0, 8, (proposals + objects, 2))
    boxes = torch.tensor(np.hstack((corner, corner + size)), dtype=torch.float32)
    # Few levels make ties.
    affinity = torch.tensor(random.integers(-levels, levels + 1, (proposals, proposals)) / 3, dtype=torch.float32)
    gt_pairs = random.integers(0, max(objects, 1), (pairs if objects else 0, 2))
    return boxes[:proposals], affinity, boxes[proposals:], torch.tensor(gt_pairs)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    proposals=st.integers(0, 12),
    objects=st.integers(0, 8),
    pairs=st.integers(0, 70),
    levels=st.sampled_from([0, 1, 3, 10**6]),
    iou=st.sampled_from([0.3, 0.5, 1.0]),
)
@example(seed=0, proposals=12, objects=8, pairs=70, levels=0, iou=0.3)
def test_recall_is_that_of_sorting_and_looping(
    seed: int, proposals: int, objects: int, pairs: int, levels: int, iou: float
) -> None:
    image = scene(seed, proposals, objects, pairs, levels)
    result = recall(*image, iou=iou)
    for k in KS:
        found, asked = brute_found(*image, k, iou)
        assert result[k] == pytest.approx(found / asked, abs=1e-12) if asked else math.isnan(result[k])


@pytest.mark.parametrize("levels", [0, 2, 10**9])
def test_recall_of_an_image_of_usual_size_is_that_of_sorting_and_looping(levels: int, device: torch.device) -> None:
    # Large enough for the sampled bound to be used, and more pairs than a word has bits.
    image = scene(1, 70, 12, 130, levels)
    result = recall(*(tensor.to(device) for tensor in image), iou=0.2)
    counts = {k: brute_found(*image, k, 0.2) for k in KS}
    assert result == {k: pytest.approx(found / asked) for k, (found, asked) in counts.items()}
    assert 0 < result[1000] < 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(0, 40),
    levels=st.sampled_from([0, 1, 5, 10**9]),
    k=st.integers(1, 2000),
)
@example(seed=3, size=40, levels=10**9, k=10)
def test_top_pairs_are_those_of_a_stable_sort(seed: int, size: int, levels: int, k: int) -> None:
    affinity = scene(seed, size, 0, 0, levels)[1]
    index, weight = top_pairs(affinity, k)
    expected = brute_ranking(affinity)[:k]
    assert [tuple(pair) for pair in index.tolist()] == expected
    assert weight.tolist() == [affinity[pair].item() for pair in expected]


def test_where_most_weights_lie_between_those_of_the_sample_none_is_missed() -> None:
    affinity = torch.arange(1600.0).reshape(40, 40)
    affinity.view(-1)[::17] = 1e6  # as if the sample had been chosen to mislead
    index, _ = top_pairs(affinity, 200)
    assert [tuple(pair) for pair in index.tolist()] == brute_ranking(affinity)[:200]


def test_of_equal_weights_the_one_first_in_the_matrix_is_kept() -> None:
    affinity = torch.zeros(4, 4)
    index, _ = top_pairs(affinity, 5)
    assert index.tolist() == [[0, 1], [0, 2], [0, 3], [1, 0], [1, 2]]
    assert recall(CELLS, affinity, CELLS, torch.tensor([[1, 0]]), ks=(3, 4)) == {3: 0.0, 4: 1.0}


def test_a_negative_zero_is_the_equal_of_zero() -> None:
    index, _ = top_pairs(torch.tensor([[0.0, -0.0, 0.0], [0.0, 0.0, -0.0], [0.0, 0.0, 0.0]]), 3)
    assert index.tolist() == [[0, 1], [0, 2], [1, 0]]


def test_subject_and_object_are_not_exchanged() -> None:
    affinity = torch.zeros(4, 4)
    affinity[2, 1] = 1
    assert recall(CELLS, affinity, CELLS, torch.tensor([[2, 1]]), ks=(1,)) == {1: 1.0}
    assert recall(CELLS, affinity, CELLS, torch.tensor([[1, 2]]), ks=(1,)) == {1: 0.0}


def test_a_proposal_does_not_pair_with_itself() -> None:
    # One box overlaps both objects by half and is the only one.
    both = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 5, 10, 10]])
    image = both[:1], torch.ones(1, 1), both[1:], torch.tensor([[0, 1]])
    assert recall(*image, ks=(1,)) == {1: 0.0}
    twice = both[[0, 0]], torch.ones(2, 2), *image[2:]
    assert recall(*twice, ks=(1,)) == {1: 1.0}


def test_an_overlap_of_exactly_the_threshold_counts() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    halves = torch.tensor([[0.0, 0, 10, 5], [20, 0, 30, 5]])
    assert recall(halves, torch.ones(2, 2), objects, torch.tensor([[0, 1]]), ks=(1,)) == {1: 1.0}


def test_a_pair_annotated_twice_counts_once_and_one_with_itself_not_at_all() -> None:
    affinity = torch.zeros(4, 4)
    affinity[0, 1] = 1
    pairs = torch.tensor([[0, 1], [0, 1], [2, 3], [1, 1]])
    assert recall(CELLS, affinity, CELLS, pairs, ks=(1,)) == {1: 0.5}


def test_a_k_above_the_number_of_pairs_keeps_all() -> None:
    assert recall(CELLS, torch.zeros(4, 4), CELLS, torch.tensor([[3, 2]]), ks=(11, 12, 9999)) == {11: 0, 12: 1, 9999: 1}


@pytest.mark.parametrize("weight", [-math.inf, math.inf, math.nan])
def test_a_weight_that_is_not_finite_never_counts(weight: float) -> None:
    affinity = torch.zeros(4, 4)
    affinity[:, 3] = affinity[3, :] = weight
    index, _ = top_pairs(affinity, 100)
    assert index.tolist() == [[i, j] for i in range(3) for j in range(3) if i != j]
    pairs = torch.tensor([[0, 3], [3, 1], [2, 1]])
    assert recall(CELLS, affinity, CELLS, pairs, ks=(5, 6, 100)) == {
        5: 0,
        6: pytest.approx(1 / 3),
        100: pytest.approx(1 / 3),
    }


def test_a_padded_proposal_is_in_no_pair_however_many_are_asked_for() -> None:
    affinity = torch.full((60, 60), -math.inf)
    affinity[:20, :20] = scene(0, 20, 0, 0, 10**6)[1]
    index, weight = top_pairs(affinity, 1000)
    assert [tuple(pair) for pair in index.tolist()] == brute_ranking(affinity)
    assert len(weight) == 20 * 19


def test_micro_weighs_pairs_and_macro_images() -> None:
    affinity = torch.zeros(4, 4)
    affinity[0, 1] = 1
    metric = RelationshipRecall((1,))
    metric.update(CELLS, affinity, CELLS, torch.tensor([[0, 1]]))
    metric.update(CELLS, affinity, CELLS, torch.tensor([[0, 1], [1, 2], [2, 3]]))
    metric.update(CELLS, affinity, CELLS, torch.zeros(0, 2, dtype=torch.int64))
    assert metric.compute() == {"micro": {1: 2 / 4}, "macro": {1: pytest.approx((1 + 1 / 3) / 2)}}


def test_an_image_without_proposals_counts_its_pairs() -> None:
    empty = torch.zeros(0, 4), torch.zeros(0, 0)
    assert recall(*empty, CELLS, torch.tensor([[0, 1]]), ks=(7,)) == {7: 0.0}


def test_without_ground_truth_recall_is_nan() -> None:
    metric = RelationshipRecall((1, 2))
    metric.update(CELLS, torch.zeros(4, 4), torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64))
    assert all(math.isnan(value) for average in metric.compute().values() for value in average.values())


def test_parts_merge_into_the_whole() -> None:
    whole, first, second = (RelationshipRecall(KS, iou=0.1) for _ in range(3))
    for seed in range(6):
        image = scene(seed, 10, 5, 8, 10**6)
        whole.update(*image)
        (first if seed % 2 else second).update(*image)
    assert 0 < second.compute()["macro"][1000] != first.compute()["macro"][1000]
    first.merge(second)
    for average, values in whole.compute().items():
        assert first.compute()[average] == pytest.approx(values)
    with pytest.raises(ValueError, match="does not add to"):
        first.merge(RelationshipRecall((1,)))


def test_pairs_ranked_before_count_the_same_however_many_more_there_are() -> None:
    boxes, affinity, *annotated = scene(3, 20, 6, 9, 10**6)
    ranked, _ = top_pairs(affinity, 20 * 19)
    ks = (5, 40)
    metric = RelationshipRecall(ks, iou=0.1)
    metric.update_ranked(boxes, ranked, *annotated)
    expected = recall(boxes, affinity, *annotated, ks=ks, iou=0.1)
    assert 0 < expected[40] < recall(boxes, affinity, *annotated, ks=(380,), iou=0.1)[380]
    assert metric.compute()["micro"] == expected


def test_a_caller_s_tensors_are_left_as_they_were() -> None:
    boxes, affinity, gt_boxes, gt_pairs = scene(0, 10, 5, 8, 10)
    affinity[0, 1] = math.nan
    image = boxes.double(), affinity, gt_boxes.double(), gt_pairs
    before = [tensor.clone() for tensor in image]
    recall(*image)
    for tensor, copy in zip(image, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("place", "wrong", "said"),
    [
        (0, torch.zeros(4, 3), "boxes must have the shape"),
        (0, torch.zeros(3, 4), "for 3 boxes"),
        (1, torch.zeros(4, 3), "affinity must have the shape"),
        (2, torch.zeros(4), "gt_boxes must have the shape"),
        (3, torch.zeros(2, 3, dtype=torch.int64), "gt_pairs must have the shape"),
        (3, torch.tensor([[0, 4]]), "found 0 to 4"),
        (3, torch.tensor([[-1, 0]]), "found -1 to 0"),
    ],
)
def test_what_does_not_fit_is_named(place: int, wrong: torch.Tensor, said: str) -> None:
    image = [CELLS, torch.zeros(4, 4), CELLS, torch.tensor([[0, 1]])]
    image[place] = wrong
    with pytest.raises(ValueError, match=said):
        RelationshipRecall().update(*image)


@pytest.mark.parametrize(("ks", "iou"), [((), 0.5), ((0, 5), 0.5), ((5,), 0.0), ((5,), 1.5)])
def test_settings_without_a_meaning_are_refused(ks: tuple[int, ...], iou: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        RelationshipRecall(ks, iou)


def test_top_pairs_refuses_what_it_cannot_rank() -> None:
    with pytest.raises(ValueError, match="k must be"):
        top_pairs(torch.zeros(2, 2), 0)
    with pytest.raises(ValueError, match="affinity must have the shape"):
        top_pairs(torch.zeros(2, 3), 1)
