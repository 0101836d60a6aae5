"""What a batch may be: labels that are ignored or many, references, a mask; each row's loss; several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from affsup_cli.affinity import BatchAffinityLoss, affinity_loss, target_mass
from tests.affinity import gather_process

both_softmaxes = pytest.mark.parametrize("softmax", ["matrix", "row"])


def features(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator, dtype=torch.float64).requires_grad_()


def graph(rows: Tensor, columns: Tensor) -> Tensor:
    return -(rows[:, None] - columns[None]).square().sum(-1) / 2


def check(found: Any, expected: Tensor, mass: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.mass, mass)
    gradients = torch.autograd.grad(found.loss.sum(), leaves, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), leaves, retain_graph=True))


@both_softmaxes
@pytest.mark.parametrize("tile", [None, 4])
def test_ignored_entries_are_in_neither_graph_nor_target(softmax: Any, tile: int | None) -> None:
    nodes, labels = features(9), torch.tensor([0, -100, 1, 0, -100, 1, 2, -100, 0])
    kept = labels != -100
    loss = BatchAffinityLoss(softmax=softmax, tile=tile)
    found, expected = loss.loss_and_mass(nodes, labels), loss.loss_and_mass(nodes[kept], labels[kept])
    check(found, expected.loss, expected.mass, nodes)


def test_a_batch_of_three_labelled_entries_has_the_loss_of_these_three() -> None:
    torch.manual_seed(0)
    nodes, labels = torch.randn(6, 8), torch.tensor([0, 0, 1, -100, -100, -100])
    loss = BatchAffinityLoss()
    torch.testing.assert_close(loss(nodes, labels), loss(nodes[:3], labels[:3]))
    assert loss(nodes, labels).item() == pytest.approx(0, abs=1e-6)
    assert BatchAffinityLoss(ignore_index=None)(nodes, labels).item() == pytest.approx(1.2821, abs=1e-4)


def test_a_batch_without_labels_has_no_loss() -> None:
    nodes = features(4)
    for tile in (None, 2):
        loss, mass = BatchAffinityLoss(tile=tile).loss_and_mass(nodes, torch.full((4,), -100))
        assert (loss.item(), mass.item()) == (0, 0)


@both_softmaxes
def test_references_are_the_columns_of_the_graph(softmax: Any) -> None:
    nodes, references = features(5), features(7, seed=1)
    labels, ref_labels = torch.arange(5) % 3, torch.tensor([0, 1, 2, 0, -100, 1, 4])
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) > 0.2
    found = BatchAffinityLoss(softmax=softmax).loss_and_mass(nodes, labels, references, ref_labels, mask)
    logits, target = graph(nodes, references), labels[:, None] == ref_labels[None]
    valid = mask & (ref_labels != -100)
    expected = affinity_loss(logits, target, "focal", 4.0, softmax, mask=valid)
    check(found, expected, target_mass(logits.detach(), target, mask=valid), nodes, references)


def test_a_mask_leaves_pairs_out() -> None:
    nodes, labels = features(6), torch.arange(6) % 2
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(2)) > 0.3
    target = labels[:, None] == labels[None]
    logits = graph(nodes, nodes)
    entries = logits.masked_fill(~mask | torch.eye(6, dtype=torch.bool), -torch.inf)
    shares = entries.flatten().softmax(0).view(6, 6)
    mass = shares[target].sum()
    check(
        BatchAffinityLoss().loss_and_mass(nodes, labels, mask=mask),
        -((1 - mass) ** 4) * mass.log(),
        mass.detach(),
        nodes,
    )


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_one_hot_labels_are_class_ids(kind: torch.dtype) -> None:
    nodes, labels = features(6), torch.arange(6) % 3
    loss = BatchAffinityLoss()
    assert torch.equal(loss(nodes, F.one_hot(labels).to(kind)), loss(nodes, labels))


def test_multi_label_entries_are_of_one_category_if_they_share_a_label() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    _, target = BatchAffinityLoss(ignore_index=None).graph(features(4), labels)
    assert target.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]


def test_without_reduction_each_row_has_its_loss() -> None:
    nodes, labels = features(7), torch.tensor([0, 0, 1, 1, 2, 0, -100])
    rows = BatchAffinityLoss(softmax="row", reduction="none").loss_and_mass(nodes, labels)
    assert rows.loss.shape == (7,)
    assert (rows.loss[[4, 6]] == 0).all()
    whole = BatchAffinityLoss(softmax="row").loss_and_mass(nodes, labels)
    check(whole, rows.loss.sum(), rows.mass, nodes)
    weights = torch.arange(7, dtype=torch.float64)
    second = BatchAffinityLoss(softmax="row").loss_and_mass(nodes, labels)
    (gradient,) = torch.autograd.grad((rows.loss * weights).sum(), nodes)
    (of_sum,) = torch.autograd.grad(second.loss, nodes)
    assert not torch.allclose(gradient, of_sum)
    (checked,) = torch.autograd.grad(
        (
            affinity_loss(
                graph(nodes, nodes), labels[:, None] == labels[None], "focal", 4.0, "row", "exclude",
                mask=(labels != -100)[:, None] & (labels != -100)[None], reduction="none",
            )
            * weights
        ).sum(),
        nodes,
    )  # fmt: skip
    torch.testing.assert_close(gradient, checked)


@pytest.mark.parametrize("tile", [None, 3])
def test_the_average_of_rows_is_over_those_with_a_target(tile: int | None) -> None:
    nodes, labels = features(7), torch.tensor([0, 0, 1, 1, 2, 0, 3])
    total = BatchAffinityLoss(softmax="row", tile=tile).loss_and_mass(nodes, labels)
    found = BatchAffinityLoss(softmax="row", tile=tile, row_average=True).loss_and_mass(nodes, labels)
    check(found, total.loss / 5, total.mass, nodes)


def test_second_derivatives_of_a_batch_are_those_of_the_matrix() -> None:
    nodes, labels = features(5), torch.tensor([0, 0, 1, 1, -100])
    assert torch.autograd.gradgradcheck(lambda x: BatchAffinityLoss()(x, labels), nodes)


def test_the_average_of_a_batch_counts_graphs_without_a_target() -> None:
    logits = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(4, 3, 3, dtype=torch.bool)
    target[0, 0, 1] = target[2, 1, 0] = True
    for form in ("focal", "bce"):
        with_target = affinity_loss(logits, target, form)
        batch = affinity_loss(logits, target, form, average="batch")
        check(type("Found", (), {"loss": batch, "mass": logits.detach()}), with_target / 2, logits.detach(), logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"ref_features": features(3)}, "must be given together"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, r"mask must have the shape \[4, 4\]"),
        ({"mask": torch.ones(4, 4)}, "mask must be a bool tensor"),
        ({"ref_features": torch.ones(2, 3), "ref_labels": torch.ones(2, dtype=torch.int64)}, r"\[..., K, 4\]"),
        ({"ref_features": features(2), "ref_labels": torch.ones(2, 3)}, "both be class ids or both be multi-label"),
    ],
)
def test_a_wrong_batch_is_refused(call: dict[str, Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        BatchAffinityLoss()(features(4), torch.arange(4), **call)


@pytest.mark.parametrize(("count", "uneven"), [(2, True), (3, False)])
def test_gathered_batches_have_the_loss_and_the_gradient_of_one_process(
    count: int, uneven: bool, tmp_path: Path
) -> None:
    arguments = [str(count), "uneven" if uneven else "even", str(tmp_path)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.affinity.gather_process", str(rank), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(count)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * count
    expected = gather_process.result(gather_process.layer(), *gather_process.batch(), gather=False)
    for rank, name in product(range(count), expected):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt")[name], expected[name])


def test_gathering_one_process_is_the_batch_itself() -> None:
    nodes, labels = features(6), torch.arange(6) % 2
    assert torch.equal(BatchAffinityLoss(gather=True)(nodes, labels), BatchAffinityLoss()(nodes, labels))
