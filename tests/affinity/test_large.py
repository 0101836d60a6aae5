from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from affsup_cli.affinity import (
    BatchAffinityLoss,
    LossAndMass,
    affinity_loss,
    l2_affinity,
    l2_loss_and_mass,
    same_category_target,
    scaled_dot_affinity,
    scaled_dot_loss_and_mass,
    target_mass,
    tiles,
)
from affsup_cli.affinity.batch import LARGEST_MATRIX
from tests.affinity.graphs import DIAGONALS, SOFTMAXES, properties

AFFINITIES = ("l2", "dot")
TARGETS = ("labels", "edges")
GRAPHS = tuple(product(AFFINITIES, TARGETS, SOFTMAXES, DIAGONALS))
every_graph = pytest.mark.parametrize(("affinity", "kind", "softmax", "diagonal"), GRAPHS)
SIZE = 13


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nodes(affinity: str, size: int = SIZE, seed: int = 0) -> tuple[Tensor, ...]:
    """Leaves: features, or queries and keys."""
    count = 1 if affinity == "l2" else 2
    return tuple(randn(size, 5, seed=10 * seed + i).requires_grad_() for i in range(count))


def target_of(kind: str, size: int = SIZE, seed: int = 0) -> dict[str, Tensor]:
    """Labels out of order, one of them alone; or directed edges: some with their mirror, loops, and duplicates."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "labels":
        labels = torch.randint(-2, 3, (size,), generator=generator)
        labels[0] = 99
        return {"labels": labels}
    edges = torch.randint(0, size, (3 * size, 2), generator=generator)
    edges[edges[:, 0] == 1] = 0
    return {"edges": torch.cat([edges, edges[:5], edges[5:9].flip(1)])}


def matrix_target(target: dict[str, Tensor], size: int = SIZE) -> Tensor:
    if "labels" in target:
        return same_category_target(target["labels"])
    matrix = torch.zeros(size, size, dtype=torch.bool)
    for row, column in target["edges"].tolist():
        matrix[row, column] = True
    return matrix


def plain(leaves: tuple[Tensor, ...], target: dict[str, Tensor], temperature: float = 1.0, **options) -> LossAndMass:
    """The same through the matrix."""
    logits = l2_affinity(*leaves) / temperature if len(leaves) == 1 else scaled_dot_affinity(*leaves)
    matrix = matrix_target(target, len(leaves[0]))
    mass = target_mass(logits.detach(), matrix, "matrix", options.get("diagonal", "keep"))
    return LossAndMass(affinity_loss(logits, matrix, **options), mass)


def tiled(leaves: tuple[Tensor, ...], target: dict[str, Tensor], **options) -> LossAndMass:
    return (l2_loss_and_mass if len(leaves) == 1 else scaled_dot_loss_and_mass)(*leaves, **target, **options)


def assert_the_same(leaves: tuple[Tensor, ...], target: dict[str, Tensor], tile: int | None, **options) -> None:
    """Loss, M and all gradients, in and out of tiles."""
    found, expected = tiled(leaves, target, tile=tile, **options), plain(leaves, target, **options)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.loss, leaves), torch.autograd.grad(expected.loss, leaves))


@every_graph
@pytest.mark.parametrize("form", ["focal", "log", "l2", "smooth_l1"])
@pytest.mark.parametrize("tile", [4, None])
def test_tiles_give_the_loss_the_mass_and_the_gradient_of_the_matrix(
    affinity: str, kind: str, softmax: str, diagonal: str, form: str, tile: int | None
) -> None:
    assert_the_same(nodes(affinity), target_of(kind), tile, form=form, gamma=3.0, softmax=softmax, diagonal=diagonal)


@every_graph
@settings(properties, max_examples=20)
@given(size=st.integers(1, 9), tile=st.integers(1, 10), classes=st.integers(1, 9), seed=st.integers(0, 99))
def test_tiles_give_the_numbers_of_the_matrix_for_any_graph(
    affinity: str, kind: str, softmax: str, diagonal: str, size: int, tile: int, classes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    if kind == "labels":
        target = {"labels": torch.randint(0, classes, (size,), generator=generator)}
    else:
        target = {"edges": torch.randint(0, size, (classes - 1, 2), generator=generator)}
    leaves = tuple(3 * leaf.detach() for leaf in nodes(affinity, size, seed))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    assert_the_same(leaves, target, tile, softmax=softmax, diagonal=diagonal)


@every_graph
@settings(properties, max_examples=10)
@given(data=st.data())
def test_tiles_ignore_the_order_of_entities(
    affinity: str, kind: str, softmax: str, diagonal: str, data: st.DataObject
) -> None:
    leaves, target = nodes(affinity), target_of(kind)
    order = torch.tensor(data.draw(st.permutations(range(SIZE))))
    moved = {"labels": target["labels"][order]} if kind == "labels" else {"edges": order.argsort()[target["edges"]]}
    options = {"softmax": softmax, "diagonal": diagonal, "tile": 4}
    torch.testing.assert_close(
        tiled(tuple(leaf[order] for leaf in leaves), moved, **options), tiled(leaves, target, **options)
    )


@every_graph
def test_a_graph_without_a_target_has_loss_0_and_keeps_the_autograd_graph(
    affinity: str, kind: str, softmax: str, diagonal: str
) -> None:
    leaves = nodes(affinity)
    if kind == "edges":
        target = {"edges": torch.arange(SIZE if diagonal == "exclude" else 0).repeat(2, 1).mT}
    elif diagonal == "exclude":
        target = {"labels": torch.arange(SIZE)}
    else:
        leaves, target = nodes(affinity, 0), {"labels": torch.arange(0)}
    loss, mass = tiled(leaves, target, softmax=softmax, diagonal=diagonal, tile=3)
    loss.backward()
    assert loss.item() == mass.item() == 0.0
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@every_graph
def test_a_target_of_everything_has_loss_0_mass_1_and_no_gradient(
    affinity: str, kind: str, softmax: str, diagonal: str
) -> None:
    leaves = nodes(affinity)
    everything = torch.ones(SIZE, SIZE).nonzero()
    target = {"labels": torch.full((SIZE,), 3)} if kind == "labels" else {"edges": everything}
    loss, mass = tiled(leaves, target, softmax=softmax, diagonal=diagonal, tile=4)
    loss.backward()
    assert (loss.item(), mass.item()) == (0.0, 1.0)
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@every_graph
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_float32_in_tiles_is_finite_and_right_at_any_scale(
    affinity: str, kind: str, softmax: str, diagonal: str, scale: float
) -> None:
    # Eighths and their products with the scale are exact, so that only the computation can lose them.
    leaves = tuple((8 * leaf.detach()).round() / 8 * scale for leaf in nodes(affinity))
    exact = tuple(leaf.float().double().requires_grad_() for leaf in leaves)
    single = tuple(leaf.detach().float().requires_grad_() for leaf in exact)
    options = {"form": "log", "softmax": softmax, "diagonal": diagonal}
    found, expected = tiled(single, target_of(kind), tile=4, **options), plain(exact, target_of(kind), **options)
    torch.testing.assert_close(found.loss.double(), expected.loss, rtol=2e-5, atol=1e-7)
    gradients = torch.autograd.grad(found.loss, single)
    for gradient, right in zip(gradients, torch.autograd.grad(expected.loss, exact), strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))


def test_a_far_smaller_target_is_seen_beside_a_large_rest() -> None:
    features = torch.tensor([[0.0], [60.0], [0.5], [60.5]]).requires_grad_()
    loss, _ = l2_loss_and_mass(features, labels=torch.tensor([0, 0, 1, 1]), form="log", diagonal="exclude", tile=1)
    loss.backward()
    assert loss.item() == pytest.approx(1800 - 0.125, rel=1e-5)
    assert features.grad is not None
    torch.testing.assert_close(features.grad, torch.tensor([[-15.0], [15.5], [-15.5], [15.0]]).mul(2), rtol=0.2, atol=1)


@every_graph
def test_tiles_pass_gradcheck(affinity: str, kind: str, softmax: str, diagonal: str) -> None:
    options = {"softmax": softmax, "diagonal": diagonal, "tile": 2}
    assert torch.autograd.gradcheck(
        lambda *leaves: tiled(leaves, target_of(kind, 5), **options).loss, nodes(affinity, 5)
    )


@pytest.mark.parametrize(("affinity", "softmax"), tuple(product(AFFINITIES, SOFTMAXES)))
@pytest.mark.parametrize("kind", TARGETS)
def test_tiles_are_the_same_compiled_whole(affinity: str, kind: str, softmax: str) -> None:
    torch.compiler.reset()
    leaves, target = nodes(affinity), target_of(kind)

    def compute(*leaves: Tensor) -> LossAndMass:
        return tiled(leaves, target, softmax=softmax, diagonal="exclude", tile=4)

    found = torch.compile(compute, fullgraph=True, backend="aot_eager")(*leaves)
    expected = compute(*leaves)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.loss, leaves), torch.autograd.grad(expected.loss, leaves))


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_second_derivatives_are_refused(affinity: str, softmax: str) -> None:
    leaves = nodes(affinity)
    loss = tiled(leaves, target_of("labels"), softmax=softmax).loss
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        sum(gradient.sum() for gradient in gradients).backward()


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast_too(
    affinity: str, softmax: str, dtype: torch.dtype
) -> None:
    half = tuple(leaf.detach().to(dtype).requires_grad_() for leaf in nodes(affinity))
    single = tuple(leaf.detach().float().requires_grad_() for leaf in half)
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled(half, target_of("edges"), softmax=softmax)
        gradients = torch.autograd.grad(found.loss, half)
    expected = tiled(single, target_of("edges"), softmax=softmax)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    right = torch.autograd.grad(expected.loss, single)
    assert [gradient.dtype for gradient in gradients] == [dtype] * len(half)
    for a, b in zip(gradients, right, strict=True):
        assert torch.equal(a, b.to(dtype))


def largest_allocation(compute: Callable[[], object]) -> int:
    """Bytes, seen by the profiler, which also looks inside operators."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        compute()
    return max(event.self_cpu_memory_usage for event in profiled.events())


@every_graph
def test_nothing_is_larger_than_a_tile_or_a_few_features(affinity: str, kind: str, softmax: str, diagonal: str) -> None:
    size, tile = 100, 16
    leaves, target = nodes(affinity, size), target_of(kind, size)
    largest = largest_allocation(
        lambda: tiled(leaves, target, softmax=softmax, diagonal=diagonal, tile=tile).loss.backward()
    )
    assert 0 < largest <= size * tile * 8


@every_graph
def test_tiles_where_the_host_does_not_look_into_the_labels_are_the_same(
    affinity: str, kind: str, softmax: str, diagonal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_same_category", lambda categories, start, stop: (0, len(categories)))
    assert_the_same(nodes(affinity), target_of(kind), 4, softmax=softmax, diagonal=diagonal)


def test_tiles_are_the_same_on_any_device(device: torch.device) -> None:
    for affinity, kind, softmax, diagonal in GRAPHS:
        leaves, target = nodes(affinity), target_of(kind)
        found = tiled(
            tuple(leaf.to(device) for leaf in leaves),
            {name: values.to(device) for name, values in target.items()},
            softmax=softmax,
            diagonal=diagonal,
            tile=4,
        )
        expected = plain(leaves, target, softmax=softmax, diagonal=diagonal)
        torch.testing.assert_close(found.loss.cpu(), expected.loss)
        torch.testing.assert_close(torch.autograd.grad(found.loss, leaves), torch.autograd.grad(expected.loss, leaves))


def test_labels_are_taken_without_reading_values_on_the_host() -> None:
    features, labels = torch.zeros(5, 3, device="meta"), torch.zeros(5, dtype=torch.int64, device="meta")
    for softmax in SOFTMAXES:
        assert l2_loss_and_mass(features, labels=labels, softmax=softmax).loss.shape == ()


def test_the_temperature_divides_affinities() -> None:
    assert_the_same(nodes("l2"), target_of("labels"), 4, temperature=7.0)


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_float32_features_far_from_the_origin_are_centred(softmax: str) -> None:
    exact = (8 * randn(SIZE, 3)).round() / 8
    near, far = (exact.float() + offset for offset in (0.0, 1024.0))
    labels = torch.arange(SIZE) % 3
    of_near, of_far = (l2_loss_and_mass(x, labels=labels, softmax=softmax, tile=4) for x in (near, far))  # type: ignore[arg-type]
    torch.testing.assert_close(of_far.loss, of_near.loss, rtol=1e-6, atol=1e-7)


def test_a_graph_without_keys_has_no_loss() -> None:
    queries = randn(3, 2).requires_grad_()
    loss, mass = scaled_dot_loss_and_mass(queries, randn(0, 2), edges=torch.zeros(0, 2, dtype=torch.int64))
    assert (loss.item(), mass.item()) == (0, 0)


def test_edges_may_lead_from_queries_to_other_keys() -> None:
    queries, keys = randn(4, 3), randn(6, 3, seed=1)
    edges = torch.tensor([[0, 5], [3, 0], [3, 1]])
    matrix = torch.zeros(4, 6, dtype=torch.bool)
    matrix[edges[:, 0], edges[:, 1]] = True
    logits = scaled_dot_affinity(queries, keys)
    for softmax in SOFTMAXES:
        found = scaled_dot_loss_and_mass(queries, keys, edges=edges, softmax=softmax, tile=3)
        torch.testing.assert_close(found.loss, affinity_loss(logits, matrix, softmax=softmax))
        torch.testing.assert_close(found.mass, target_mass(logits, matrix))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_features_that_are_not_finite_show_in_the_loss(value: float, softmax: str) -> None:
    features = nodes("l2")[0].detach()
    features[3, 2] = value
    assert not l2_loss_and_mass(features, labels=torch.arange(SIZE) % 3, softmax=softmax, tile=4).loss.isfinite()


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.zeros(2, 7, dtype=torch.int64), r"found \[2, 7\]: an edge index \[2, E\] is edges\.mT"),
        (torch.tensor([[0, SIZE]]), rf"within the graph of {SIZE} x {SIZE}, found indices from 0 to {SIZE}"),
        (torch.tensor([[-1, 2]]), "found indices from -1 to 2"),
    ],
)
def test_edges_that_do_not_fit_are_refused(edges: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        l2_loss_and_mass(*nodes("l2"), edges=edges)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_is_not_integers_is_refused(kind: str) -> None:
    target = {name: values.float() for name, values in target_of(kind).items()}
    with pytest.raises(TypeError, match=f"{kind} must be an integer tensor"):
        l2_loss_and_mass(*nodes("l2"), **target)


@pytest.mark.parametrize(
    ("target", "found"), [({}, "neither"), ({**target_of("labels"), **target_of("edges")}, "both")]
)
def test_the_target_must_be_one(target: dict[str, Tensor], found: str) -> None:
    with pytest.raises(ValueError, match=f"either labels or edges, found {found}"):
        l2_loss_and_mass(*nodes("l2"), **target)


def test_labels_of_a_rectangle_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found \[4\] for a graph of 4 x 6"):
        scaled_dot_loss_and_mass(randn(4, 3), randn(6, 3), labels=torch.arange(4))


def test_the_diagonal_of_a_rectangle_cannot_be_excluded() -> None:
    with pytest.raises(ValueError, match="square graph, found 4 x 6"):
        scaled_dot_loss_and_mass(randn(4, 3), randn(6, 3), edges=torch.zeros(1, 2).long(), diagonal="exclude")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"form": "bce"}, '"bce" is not computed in tiles: use affinity_loss'),
        ({"form": "l1"}, "form must be one of"),
        ({"gamma": 0.5}, "gamma must be 0 or"),
        ({"softmax": "column"}, "softmax must be one of"),
        ({"diagonal": "drop"}, "diagonal must be one of"),
        ({"tile": 0}, "tile must be at least 1 row, found 0"),
        ({"temperature": 0.0}, "temperature must be a positive finite number, found 0"),
    ],
)
def test_options_are_refused_as_everywhere(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        l2_loss_and_mass(*nodes("l2"), **target_of("labels"), **option)


def test_features_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, d\], found \[2, 3, 4\]"):
        l2_loss_and_mass(torch.zeros(2, 3, 4), labels=torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"share d, found \[2, 3\] and \[2, 4\]"):
        scaled_dot_loss_and_mass(torch.zeros(2, 3), torch.zeros(2, 4), labels=torch.zeros(2).long())


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("tile", [None, 5])
def test_batch_loss_and_its_mass_are_those_of_the_matrix(softmax: str, tile: int | None) -> None:
    features, target = nodes("l2")[0], target_of("labels")
    module = BatchAffinityLoss(softmax=softmax, normalize=True, temperature=0.3, tile=tile)
    logits, matrix = module.graph(features, target["labels"])
    loss, mass = module.loss_and_mass(features, target["labels"])
    torch.testing.assert_close(loss, module.loss(logits, matrix))
    torch.testing.assert_close(mass, target_mass(logits, matrix, "matrix", "exclude").detach())
    torch.testing.assert_close(module(features, target["labels"]), loss)
    assert not mass.requires_grad


def test_batch_loss_of_a_large_batch_makes_no_matrix() -> None:
    size = LARGEST_MATRIX + 1
    features, labels = randn(size, 2), torch.arange(size) % 10
    for count, in_tiles in ((size, True), (LARGEST_MATRIX, False)):
        largest = largest_allocation(lambda count=count: BatchAffinityLoss()(features[:count], labels[:count]))
        assert (largest < count * count * 8) == in_tiles, count


def test_batch_loss_refuses_tiles_that_it_cannot_make() -> None:
    with pytest.raises(ValueError, match="tile must be at least 1 row, found -3"):
        BatchAffinityLoss(tile=-3)
    with pytest.raises(ValueError, match='"bce" is not computed in tiles'):
        BatchAffinityLoss(form="bce", tile=64)


def test_bce_of_a_large_batch_stays_a_matrix() -> None:
    size = LARGEST_MATRIX + 1
    features, labels = randn(size, 2), torch.arange(size) % 10
    module = BatchAffinityLoss(form="bce")
    assert torch.equal(module(features, labels), module.loss(*module.graph(features, labels)))
