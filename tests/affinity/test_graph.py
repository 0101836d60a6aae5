from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from affsup_cli.affinity import l2_affinity, scaled_dot_affinity
from tests.affinity.graphs import properties


def l2_oracle(features: torch.Tensor) -> torch.Tensor:
    """Eq. 11, a pair at a time, in float64."""
    rows = features.detach().double().numpy()
    return torch.tensor([[-np.sum((a - b) ** 2) / 2 for b in rows] for a in rows], dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_l2_affinity_is_equation_11() -> None:
    features = randn(7, 5).double()
    torch.testing.assert_close(l2_affinity(features), l2_oracle(features))


def test_l2_affinity_treats_leading_dimensions_as_graphs() -> None:
    features = randn(2, 3, 4, 5)
    separate = torch.stack([torch.stack([l2_affinity(graph) for graph in row]) for row in features])
    torch.testing.assert_close(l2_affinity(features), separate)


@pytest.mark.parametrize(("size", "length"), [(1, 65), (2, 65), (3, 33), (7, 33), (31, 65), (128, 65)])
def test_l2_affinity_has_an_exactly_zero_diagonal_and_exact_symmetry(size: int, length: int) -> None:
    affinity = l2_affinity(10 * randn(size, length) + 3)
    assert torch.equal(affinity.diagonal(), torch.zeros(size))
    assert torch.equal(affinity, affinity.mT)


def test_l2_affinity_stays_accurate_beside_a_large_offset_of_each_feature() -> None:
    features = randn(32, 64) + 1e4 * randn(64, seed=1)
    torch.testing.assert_close(l2_affinity(features).double(), l2_oracle(features), rtol=1e-5, atol=1e-4)


def test_l2_affinity_of_coincident_features_is_zero_with_a_finite_gradient() -> None:
    features = randn(1, 8).repeat(5, 1).requires_grad_()
    affinity = l2_affinity(features)
    affinity.exp().sum().backward()
    assert torch.equal(affinity, torch.zeros(5, 5))
    assert features.grad is not None
    torch.testing.assert_close(features.grad, torch.zeros(5, 8))


def test_l2_affinity_is_never_positive_for_nearly_coincident_features() -> None:
    far = torch.full((1, 64), 1000.0)
    assert (l2_affinity(torch.cat([far, 1 + 1e-5 * randn(40, 64)])) <= 0).all()


def test_l2_affinity_passes_gradcheck() -> None:
    features = randn(2, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(l2_affinity, features)


@properties
@given(arrays(np.float64, (4, 3), elements=st.floats(-50, 50)), st.floats(-100, 100))
def test_l2_affinity_does_not_change_when_all_features_move(features: np.ndarray, offset: float) -> None:
    still = torch.from_numpy(features)
    torch.testing.assert_close(l2_affinity(still), l2_affinity(still + offset), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_l2_affinity_computes_half_precision_in_float32_and_returns_its_gradient_in_kind(dtype: torch.dtype) -> None:
    features = (20 * randn(6, 16)).to(dtype).requires_grad_()
    affinity = l2_affinity(features)
    affinity.sum().backward()
    torch.testing.assert_close(affinity, l2_oracle(features).float())
    assert features.grad is not None
    assert features.grad.dtype == dtype


def test_l2_affinity_ignores_autocast() -> None:
    features = randn(6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        affinity = l2_affinity(features)
    assert torch.equal(affinity, l2_affinity(features))


@pytest.mark.parametrize("size", [0, 1])
def test_l2_affinity_takes_graphs_of_no_and_one_entity(size: int) -> None:
    assert torch.equal(l2_affinity(torch.ones(size, 3)), torch.zeros(size, size))


def test_l2_affinity_compiles_whole() -> None:
    features = randn(6, 16)
    compiled = torch.compile(l2_affinity, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), l2_affinity(features))


def test_l2_affinity_refuses_integers() -> None:
    with pytest.raises(TypeError, match=r"features .* torch\.int64"):
        l2_affinity(torch.ones(3, 2, dtype=torch.int64))


def test_l2_affinity_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., N, d\], found \[3\]"):
        l2_affinity(torch.ones(3))


def test_scaled_dot_affinity_is_equation_9_with_references_in_rows() -> None:
    queries, keys = randn(2, 3, 5).double(), randn(2, 4, 5, seed=1).double()
    expected = torch.tensor(
        [[[float(q @ k) / 5**0.5 for k in ks] for q in qs] for qs, ks in zip(queries, keys, strict=True)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(scaled_dot_affinity(queries, keys), expected)


def test_scaled_dot_affinity_broadcasts_leading_dimensions() -> None:
    queries, keys = randn(6, 3, 5), randn(4, 5)
    assert scaled_dot_affinity(queries, keys).shape == (6, 3, 4)


def test_scaled_dot_affinity_does_not_overflow_float16_before_scaling() -> None:
    ones = torch.full((1, 1024), 20.0, dtype=torch.float16)
    torch.testing.assert_close(scaled_dot_affinity(ones, ones).float(), torch.tensor([[12800.0]]), rtol=1e-3, atol=0)


def test_scaled_dot_affinity_refuses_features_of_different_length() -> None:
    with pytest.raises(ValueError, match=r"share d, found \[3, 5\] and \[3, 6\]"):
        scaled_dot_affinity(torch.ones(3, 5), torch.ones(3, 6))
