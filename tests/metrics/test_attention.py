from __future__ import annotations

import math

import pytest
import torch

from affsup_cli.metrics.attention import AttentionShares

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
GT_BOXES, GT_LABELS = BOXES[[0, 2, 3]], torch.tensor([7, 7, 8])


def test_the_shares_are_those_of_the_kinds_of_partners() -> None:
    weights = torch.full((5, 5), 1e-6)
    weights[0] = torch.tensor([9.0, 0.1, 0.2, 0.3, 0.4])  # the entry of the proposal itself does not count
    shares = AttentionShares()
    shares.update(BOXES, weights.log(), GT_BOXES, GT_LABELS)
    assert shares.objects == 1  # the rows of the others hold less mass than an even share
    assert shares.compute() == pytest.approx(
        {
            "attention_same_object": 0.1,
            "attention_same_class": 0.2,
            "attention_other_class": 0.3,
            "attention_background": 0.4,
        }
    )


def test_an_even_graph_counts_every_object_that_a_proposal_covers() -> None:
    shares = AttentionShares()
    missed = torch.tensor([[80.0, 0, 90, 10]])
    shares.update(BOXES, torch.zeros(5, 5), torch.cat([GT_BOXES, missed]), torch.tensor([7, 7, 8, 7]))
    assert shares.objects == 3
    found = shares.compute()
    assert sum(found.values()) == pytest.approx(1)
    # Of four other proposals each: object 0 has (1, 1, 1, 1), object 1 (0, 2, 1, 1), object 2 (0, 0, 3, 1).
    assert found["attention_other_class"] == pytest.approx(5 / 12)


def test_parts_of_a_split_are_merged() -> None:
    generator = torch.Generator().manual_seed(0)
    graphs = [torch.randn(5, 5, generator=generator) for _ in range(4)]
    whole, *parts = (AttentionShares() for _ in range(3))
    for place, graph in enumerate(graphs):
        for shares in (whole, parts[place % 2]):
            shares.update(BOXES, graph, GT_BOXES, GT_LABELS)
    parts[0].merge(parts[1])
    assert parts[0].compute() == pytest.approx(whole.compute())


def test_without_objects_there_is_no_number() -> None:
    shares = AttentionShares()
    shares.update(BOXES, torch.zeros(5, 5), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    shares.update(BOXES[:1], torch.zeros(1, 1), GT_BOXES, GT_LABELS)
    assert all(map(math.isnan, shares.compute().values()))
