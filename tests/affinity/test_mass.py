from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from affsup_cli.affinity import target_mass
from tests.affinity import oracle
from tests.affinity.graphs import DIAGONALS, SOFTMAXES, properties, random_batch, square_graphs

anywhere = pytest.mark.parametrize("softmax", SOFTMAXES)
either_diagonal = pytest.mark.parametrize("diagonal", DIAGONALS)


@anywhere
@either_diagonal
def test_target_mass_is_equations_3_and_12_for_mixed_empty_and_full_targets(softmax: str, diagonal: str) -> None:
    logits, target = random_batch()
    expected = np.stack(
        [oracle.target_mass(w.numpy(), t.numpy(), softmax, diagonal) for w, t in zip(logits, target, strict=True)]
    )
    torch.testing.assert_close(target_mass(logits, target, softmax, diagonal), torch.from_numpy(expected))


@anywhere
def test_target_mass_of_a_rectangular_graph(softmax: str) -> None:
    logits, target = random_batch()
    logits, target = logits[0, :, :4], target[0, :, :4]
    expected = oracle.target_mass(logits.numpy(), target.numpy(), softmax, "keep")
    torch.testing.assert_close(target_mass(logits, target, softmax), torch.as_tensor(expected))


def test_target_mass_keeps_all_leading_dimensions() -> None:
    logits, target = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5, dtype=torch.bool)
    assert target_mass(logits, target).shape == (2, 3)
    assert target_mass(logits, target, "row").shape == (2, 3, 4)


def test_target_mass_of_rows_weighs_each_row_alone() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [1000.0, 1000.0]])
    target = torch.tensor([[False, True], [True, False]])
    torch.testing.assert_close(target_mass(logits, target, "row"), torch.tensor([0.75, 0.5]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 300.0, 5000.0])
@pytest.mark.parametrize("seed", range(4))
def test_target_mass_in_float32_is_accurate_at_any_scale(scale: float, seed: int) -> None:
    logits, target = random_batch(seed, graphs=4, scale=scale)
    logits, target = logits[0].float(), target[0]
    for mask in (target, ~target):
        expected = math.exp(oracle.stable_log_mass(logits.numpy(), mask.numpy())[0])
        assert target_mass(logits, mask).item() == pytest.approx(expected, rel=2e-6, abs=1e-38)


@anywhere
@either_diagonal
@properties
@given(graph=square_graphs(limit=5000.0))
def test_target_mass_lies_between_0_and_1(softmax: str, diagonal: str, graph: tuple[Tensor, Tensor]) -> None:
    mass = target_mass(*graph, softmax, diagonal)
    assert ((mass >= 0) & (mass <= 1)).all()


@anywhere
@either_diagonal
@properties
@given(graph=square_graphs(), offset=st.floats(-100, 100))
def test_target_mass_ignores_a_shift_of_all_logits(
    softmax: str, diagonal: str, graph: tuple[Tensor, Tensor], offset: float
) -> None:
    logits, target = graph
    shifted = target_mass(logits + offset, target, softmax, diagonal)
    torch.testing.assert_close(shifted, target_mass(logits, target, softmax, diagonal), rtol=1e-9, atol=1e-12)


@either_diagonal
@properties
@given(graph=square_graphs(), data=st.data())
def test_target_mass_ignores_the_order_of_entities(
    diagonal: str, graph: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    logits, target = graph
    order = torch.tensor(data.draw(st.permutations(range(logits.shape[0]))))
    moved = target_mass(logits[order][:, order], target[order][:, order], "matrix", diagonal)
    torch.testing.assert_close(moved, target_mass(logits, target, "matrix", diagonal))
    rows = target_mass(logits[order][:, order], target[order][:, order], "row", diagonal)
    torch.testing.assert_close(rows, target_mass(logits, target, "row", diagonal)[order])


@properties
@given(graph=square_graphs(limit=8.0), data=st.data())
def test_target_mass_grows_with_a_target_logit_and_falls_with_another(
    graph: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    logits, target = graph
    assume(target.any() and not target.all())
    row, column = (data.draw(st.integers(0, logits.shape[0] - 1)) for _ in range(2))
    raised = logits.clone()
    raised[row, column] += 1
    change = target_mass(raised, target) - target_mass(logits, target)
    assert change > 0 if target[row, column] else change < 0


@either_diagonal
def test_target_masses_of_a_partition_add_up_to_1_in_each_row(diagonal: str) -> None:
    logits, _ = random_batch(scale=10.0)
    part = torch.arange(6) % 3
    parts = [(part == k).expand(logits.shape) for k in range(3)]
    total = sum(target_mass(logits, target, "row", diagonal) for target in parts)
    torch.testing.assert_close(total, torch.ones(5, 6, dtype=torch.float64))


@anywhere
def test_target_mass_is_exactly_0_for_an_empty_and_1_for_a_full_target(softmax: str) -> None:
    logits = torch.randn(3, 3)
    empty = torch.zeros(3, 3, dtype=torch.bool)
    assert (target_mass(logits, empty, softmax) == 0).all()
    assert (target_mass(logits, ~empty, softmax) == 1).all()


@anywhere
@either_diagonal
@pytest.mark.parametrize("size", [0, 1])
def test_target_mass_takes_graphs_of_no_and_one_entity(softmax: str, diagonal: str, size: int) -> None:
    mass = target_mass(torch.zeros(2, size, size), torch.ones(2, size, size, dtype=torch.bool), softmax, diagonal)
    expected = 1.0 if size == 1 and diagonal == "keep" else 0.0
    assert torch.equal(mass, torch.full((2,) if softmax == "matrix" else (2, size), expected))


@anywhere
def test_target_mass_never_looks_at_an_excluded_diagonal(softmax: str) -> None:
    logits, target = random_batch()
    poisoned = logits.masked_fill(torch.eye(6, dtype=torch.bool), torch.nan)
    assert torch.equal(
        target_mass(poisoned, target, softmax, "exclude"), target_mass(logits, target, softmax, "exclude")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_target_mass_computes_half_precision_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    logits, target = random_batch()
    logits = logits.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mass = target_mass(logits, target)
    assert mass.dtype == torch.float32
    assert torch.equal(mass, target_mass(logits.float(), target))


@anywhere
@either_diagonal
def test_target_mass_passes_gradcheck(softmax: str, diagonal: str) -> None:
    logits, target = random_batch(size=3)
    assert torch.autograd.gradcheck(
        lambda w: target_mass(w, target, softmax, diagonal), logits.requires_grad_(), raise_exception=True
    )


@anywhere
@either_diagonal
def test_target_mass_compiles_whole(softmax: str, diagonal: str) -> None:
    logits, target = random_batch()
    compiled = torch.compile(target_mass, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(logits, target, softmax, diagonal), target_mass(logits, target, softmax, diagonal)
    )


def test_target_mass_is_computed_without_reading_values_on_the_host() -> None:
    logits = torch.zeros(2, 3, 3, device="meta")
    assert target_mass(logits, logits > 0, "row", "exclude").shape == (2, 3)


def test_target_mass_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"found \[2, 3, 3\] and \[3, 3\]: target\.expand_as"):
        target_mass(torch.zeros(2, 3, 3), torch.ones(3, 3, dtype=torch.bool))


def test_target_mass_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., N, K\]"):
        target_mass(torch.zeros(3), torch.ones(3, dtype=torch.bool))


def test_target_mass_refuses_a_target_of_numbers() -> None:
    with pytest.raises(TypeError, match=r"bool tensor, found torch\.float32: call target\.bool\(\)"):
        target_mass(torch.zeros(3, 3), torch.ones(3, 3))


def test_target_mass_refuses_integer_logits() -> None:
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, found torch\.int64"):
        target_mass(torch.zeros(3, 3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.bool))


def test_target_mass_refuses_to_exclude_the_diagonal_of_a_rectangle() -> None:
    with pytest.raises(ValueError, match=r"square graph, found 3 x 4"):
        target_mass(torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool), diagonal="exclude")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"softmax": "column"}, "softmax must be one of matrix, row; found 'column'"),
        ({"diagonal": "drop"}, "diagonal must be one of keep, exclude; found 'drop'"),
    ],
)
def test_target_mass_refuses_unknown_options(option: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_mass(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool), **option)
