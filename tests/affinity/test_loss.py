from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from affsup_cli.affinity import (
    AffinityLoss,
    BatchAffinityLoss,
    affinity_loss,
    l2_affinity,
    same_category_target,
    target_mass,
)
from tests.affinity import oracle
from tests.affinity.graphs import FORMS, OPTIONS, properties, random_batch, square_graphs

every_option = pytest.mark.parametrize(("form", "softmax", "diagonal"), OPTIONS)
every_form = pytest.mark.parametrize("form", FORMS)


def supervised_graphs(target: Tensor, diagonal: str) -> int:
    valid = torch.from_numpy(oracle.valid_entries((target.shape[-2], target.shape[-1]), diagonal))
    return int((target & valid).flatten(1).any(dim=1).sum())


def backward(logits: Tensor, target: Tensor, *options: object, **named: object) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, neither of which passed through a NaN on its way."""
    leaf = logits.detach().clone().requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        loss = affinity_loss(leaf, target, *options, **named)
        loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def graph_of_log_odds(log_odds: float) -> tuple[Tensor, Tensor]:
    """Two entries, the first in the target, with the given `log M - log(1 - M)`."""
    return torch.tensor([[log_odds, 0.0]], dtype=torch.float64), torch.tensor([[True, False]])


@every_option
@pytest.mark.parametrize("gamma", [0, 1, 2.0, 5.0])
def test_affinity_loss_is_the_mean_of_the_equations_over_graphs_with_a_target(
    form: str, softmax: str, diagonal: str, gamma: float
) -> None:
    logits, target = random_batch()
    losses = [
        oracle.affinity_loss(w.numpy(), t.numpy(), form, gamma, softmax, diagonal)
        for w, t in zip(logits, target, strict=True)
    ]
    expected = sum(losses) / supervised_graphs(target, diagonal)
    loss = affinity_loss(logits, target, form, gamma, softmax, diagonal)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@every_form
def test_affinity_loss_of_one_graph_needs_no_leading_dimension(form: str) -> None:
    logits, target = random_batch()
    assert torch.equal(affinity_loss(logits[0], target[0], form), affinity_loss(logits[:1], target[:1], form))


def test_affinity_loss_of_rows_is_their_sum() -> None:
    logits = torch.zeros(3, 4, dtype=torch.float64)
    target = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    loss = affinity_loss(logits, target, "log", softmax="row")
    assert loss.item() == pytest.approx(math.log(4) + math.log(2))


def test_affinity_loss_defaults_are_the_papers_for_attention() -> None:
    logits, target = random_batch()
    assert torch.equal(affinity_loss(logits, target), affinity_loss(logits, target, "focal", 2.0, "matrix", "keep"))


@pytest.mark.parametrize("softmax", ["matrix", "row"])
def test_log_loss_is_focal_with_gamma_0(softmax: str) -> None:
    logits, target = random_batch()
    log, log_gradient = backward(logits, target, "log", 2.0, softmax)
    focal, focal_gradient = backward(logits, target, "focal", 0.0, softmax)
    assert torch.equal(log, focal)
    torch.testing.assert_close(log_gradient, focal_gradient)


@pytest.mark.parametrize("side", [-1e-9, 1e-9])
def test_smooth_l1_has_no_jump_at_one_half_where_its_slope_goes_from_1_to_1(side: float) -> None:
    loss, gradient = backward(*graph_of_log_odds(side), "smooth_l1")
    assert loss.item() == pytest.approx(0.25, abs=1e-8)
    # dx/d(log odds) is -M(1 - M), -1/4 here.
    assert gradient[0, 0].item() == pytest.approx(-0.25, abs=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 300.0, 5000.0])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_focal_loss_in_float32_is_accurate_at_any_scale(scale: float, gamma: float, seed: int) -> None:
    logits, target = random_batch(seed, graphs=4, scale=scale)
    logits, target = logits[0].float(), target[0]
    for mask in (target, ~target):
        log_mass, log_miss = oracle.stable_log_mass(logits.numpy(), mask.numpy())
        expected = float(np.exp(gamma * log_miss) * -log_mass)
        loss, gradient = backward(logits, mask, "focal", gamma)
        assert loss.item() == pytest.approx(expected, rel=5e-6, abs=1e-38)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("log_odds", [20.0, 60.0])
def test_losses_see_a_mass_that_rounds_to_1(log_odds: float) -> None:
    logits, target = graph_of_log_odds(log_odds)
    miss = math.exp(-log_odds)
    assert affinity_loss(logits.float(), target, "log").item() == pytest.approx(miss, rel=1e-5)
    assert affinity_loss(logits.float(), target, "focal", 1.0).item() == pytest.approx(miss**2, rel=1e-5, abs=1e-45)
    if log_odds < 40:
        assert affinity_loss(logits.float(), target, "l2").item() == pytest.approx(miss**2, rel=1e-5)


@pytest.mark.parametrize("offset", [5000.0, -5000.0])
def test_loss_ignores_a_large_offset_that_all_logits_share(offset: float) -> None:
    # Eighths survive the offset exactly, so that only the computation can lose them.
    logits = torch.randint(-40, 40, (6, 6), generator=torch.Generator().manual_seed(0)) / 8
    target = same_category_target(torch.arange(6) % 2)
    torch.testing.assert_close(affinity_loss(logits + offset, target), affinity_loss(logits, target))


@every_form
@pytest.mark.parametrize("log_odds", [5000.0, -5000.0])
def test_losses_and_gradients_are_finite_at_both_ends(form: str, log_odds: float) -> None:
    logits, target = graph_of_log_odds(log_odds)
    loss, gradient = backward(logits.float(), target, form)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_hopeless_mass_still_has_the_full_gradient_of_the_log() -> None:
    _, gradient = backward(*graph_of_log_odds(-5000.0), "focal", 4.0)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 1.0]], dtype=torch.float64))


@every_option
def test_affinity_loss_passes_gradcheck_with_mixed_empty_and_full_targets(
    form: str, softmax: str, diagonal: str
) -> None:
    logits, target = random_batch(size=3)
    assert torch.autograd.gradcheck(
        lambda w: affinity_loss(w, target, form, 2.0, softmax, diagonal), logits.requires_grad_()
    )


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 5.0])
def test_focal_loss_passes_gradcheck_for_every_gamma(gamma: float) -> None:
    logits, target = random_batch(size=3)
    assert torch.autograd.gradcheck(lambda w: affinity_loss(w, target, "focal", gamma), logits.requires_grad_())


@every_option
def test_graphs_without_a_target_contribute_exactly_nothing(form: str, softmax: str, diagonal: str) -> None:
    logits, target = random_batch()
    empty = torch.zeros_like(target)
    loss, gradient = backward(logits, target, form, 2.0, softmax, diagonal)
    padded, padded_gradient = backward(
        torch.cat([logits, logits]), torch.cat([target, empty]), form, 2.0, softmax, diagonal
    )
    torch.testing.assert_close(padded, loss)
    torch.testing.assert_close(padded_gradient, torch.cat([gradient, torch.zeros_like(gradient)]))


@every_option
@pytest.mark.parametrize("size", [0, 1, 2])
def test_loss_without_any_target_is_0_and_keeps_the_autograd_graph(
    form: str, softmax: str, diagonal: str, size: int
) -> None:
    logits = torch.randn(3, size, size)
    loss, gradient = backward(logits, torch.zeros(3, size, size, dtype=torch.bool), form, 2.0, softmax, diagonal)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(logits))


@every_option
def test_loss_of_no_graphs_is_0(form: str, softmax: str, diagonal: str) -> None:
    nothing = torch.zeros(0, 3, 3)
    loss, _ = backward(nothing, nothing > 0, form, 2.0, softmax, diagonal)
    assert loss.item() == 0.0


@every_form
def test_one_entity_without_its_diagonal_has_no_loss(form: str) -> None:
    loss, gradient = backward(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), form, diagonal="exclude")
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros(1, 1))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "bce"])
@pytest.mark.parametrize("softmax", ["matrix", "row"])
def test_mass_loss_of_a_full_target_is_0_without_gradient(form: str, softmax: str) -> None:
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    loss, gradient = backward(logits, torch.ones(2, 4, 4, dtype=torch.bool), form, 2.0, softmax)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(logits))


@every_form
def test_excluded_diagonal_gets_no_gradient_and_no_say(form: str) -> None:
    logits, target = random_batch()
    diagonal = torch.eye(6, dtype=torch.bool)
    loss, gradient = backward(logits, target, form, diagonal="exclude")
    changed, _ = backward(logits.masked_fill(diagonal, 99.0), target ^ diagonal, form, diagonal="exclude")
    assert torch.equal(gradient.diagonal(dim1=1, dim2=2), torch.zeros(5, 6, dtype=torch.float64))
    # The fourth target is all diagonal, and must not make its graph count.
    assert torch.equal(loss, changed)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@every_form
def test_logits_that_are_not_finite_show_in_the_loss(form: str, value: float) -> None:
    logits, target = graph_of_log_odds(0.0)
    logits[0, 1] = value
    assert not affinity_loss(logits, target, form).isfinite()


@every_option
@properties
@given(graph=square_graphs(limit=5000.0))
def test_loss_is_never_negative(form: str, softmax: str, diagonal: str, graph: tuple[Tensor, Tensor]) -> None:
    assert affinity_loss(*graph, form, 2.0, softmax, diagonal) >= 0


@pytest.mark.parametrize("form", [form for form in FORMS if form != "bce"])
@properties
@given(graph=square_graphs(), offset=st.floats(-100, 100))
def test_mass_losses_ignore_a_shift_of_all_logits(form: str, graph: tuple[Tensor, Tensor], offset: float) -> None:
    logits, target = graph
    torch.testing.assert_close(
        affinity_loss(logits + offset, target, form), affinity_loss(logits, target, form), rtol=1e-9, atol=1e-12
    )


@every_option
@properties
@given(graph=square_graphs(), data=st.data())
def test_loss_ignores_the_order_of_entities(
    form: str, softmax: str, diagonal: str, graph: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    logits, target = graph
    order = torch.tensor(data.draw(st.permutations(range(logits.shape[0]))))
    moved = affinity_loss(logits[order][:, order], target[order][:, order], form, 2.0, softmax, diagonal)
    torch.testing.assert_close(moved, affinity_loss(logits, target, form, 2.0, softmax, diagonal))


@every_form
@properties
@given(graph=square_graphs(limit=4.0))
def test_gradient_descent_raises_target_logits_and_lowers_the_others(form: str, graph: tuple[Tensor, Tensor]) -> None:
    logits, target = graph
    assume(target.any() and not target.all())
    loss, gradient = backward(logits, target, form)
    assert (gradient[target] < 0).all()
    assert (gradient[~target] > 0).all()
    step = logits - 0.1 * gradient
    assert affinity_loss(step, target, form) < loss
    assert target_mass(step, target) > target_mass(logits, target)


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_logits_are_computed_in_float32_and_get_their_gradient_in_kind(
    form: str, dtype: torch.dtype, autocast: bool
) -> None:
    logits, target = random_batch(scale=50.0)
    logits = logits.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, gradient = backward(logits, target, form)
    expected, expected_gradient = backward(logits.float(), target, form)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient.to(dtype))


class AutocastSeen(TorchFunctionMode):
    """Counts the calculations on tensors that run under autocast, and all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.under_autocast = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.total += 1
            self.under_autocast += torch.is_autocast_enabled("cpu")
        return result


@pytest.mark.parametrize("compute", [target_mass, affinity_loss])
def test_nothing_is_computed_under_autocast(compute) -> None:
    graph = random_batch()
    with torch.autocast("cpu", torch.bfloat16), AutocastSeen() as seen:
        compute(*graph)
    assert seen.total > 5
    assert seen.under_autocast == 0


@every_option
def test_loss_and_gradient_are_the_same_compiled_whole(form: str, softmax: str, diagonal: str) -> None:
    logits, target = random_batch()
    logits.requires_grad_()
    # The compiler counts the modules of other options as recompilations of this one, and gives up after a few.
    torch.compiler.reset()
    module = AffinityLoss(form, 2.0, softmax, diagonal)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(logits, target), module(logits, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


@every_option
def test_loss_is_computed_without_reading_values_on_the_host(form: str, softmax: str, diagonal: str) -> None:
    logits = torch.zeros(2, 3, 3, device="meta")
    assert affinity_loss(logits, logits > 0, form, 2.0, softmax, diagonal).shape == ()


@pytest.mark.parametrize("gamma", [0.5, 0.999, -1.0, math.inf, math.nan])
def test_gamma_is_refused_where_the_gradient_would_not_be_finite(gamma: float) -> None:
    with pytest.raises(ValueError, match=rf"gamma must be 0 or a finite number of at least 1, found {gamma}: .*M = 1"):
        affinity_loss(*random_batch(), gamma=gamma)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"form": "l1"}, "form must be one of focal, log, l2, smooth_l1, bce; found 'l1'"),
        ({"softmax": "column"}, "softmax must be one of matrix, row; found 'column'"),
        ({"diagonal": "drop"}, "diagonal must be one of keep, exclude; found 'drop'"),
        ({"gamma": 0.5}, "gamma must be 0 or"),
    ],
)
@pytest.mark.parametrize("make", [AffinityLoss, BatchAffinityLoss])
def test_modules_refuse_wrong_options_when_they_are_made(make, option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**option)


@pytest.mark.parametrize("option", [{"form": "l1"}, {"softmax": "column"}, {"diagonal": "drop"}])
def test_affinity_loss_refuses_unknown_options(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        affinity_loss(*random_batch(), **option)


def test_affinity_loss_refuses_a_target_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"found \[3, 3\] and \[3, 4\]"):
        affinity_loss(torch.zeros(3, 3), torch.ones(3, 4, dtype=torch.bool))


@every_option
def test_affinity_loss_module_is_the_function_with_its_options(form: str, softmax: str, diagonal: str) -> None:
    logits, target = random_batch()
    module = AffinityLoss(form, 3.0, softmax, diagonal)
    assert torch.equal(module(logits, target), affinity_loss(logits, target, form, 3.0, softmax, diagonal))
    assert torch.equal(module.mass(logits, target), target_mass(logits, target, softmax, diagonal))


def test_affinity_loss_module_shows_its_options() -> None:
    assert repr(AffinityLoss("l2")).startswith("AffinityLoss(form='l2', gamma=2.0, softmax='matrix', diagonal='keep', ")


def test_modules_have_nothing_to_store() -> None:
    assert not BatchAffinityLoss().state_dict()


def features_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 5, generator=generator, dtype=torch.float64), torch.arange(12) % 3


def batch_loss_oracle(features: Tensor, labels: Tensor, gamma: float, temperature: float = 1.0) -> float:
    """Section 5 as written, in loops: eq. 11, the target, eq. 3 without the diagonal, eq. 7."""
    rows, classes = features.numpy(), labels.tolist()
    weights = {
        (m, n): math.exp(-float(np.sum((rows[m] - rows[n]) ** 2)) / 2 / temperature)
        for m in range(len(rows))
        for n in range(len(rows))
        if m != n
    }
    mass = sum(w for (m, n), w in weights.items() if classes[m] == classes[n]) / sum(weights.values())
    return -((1 - mass) ** gamma) * math.log(mass)


def test_batch_loss_is_section_5_with_gamma_4_and_the_diagonal_excluded() -> None:
    features, labels = features_and_labels()
    expected = batch_loss_oracle(features, labels, gamma=4.0)
    assert BatchAffinityLoss()(features, labels).item() == pytest.approx(expected)


def test_batch_loss_divides_by_the_temperature() -> None:
    features, labels = features_and_labels()
    expected = batch_loss_oracle(features, labels, gamma=2.0, temperature=7.0)
    assert BatchAffinityLoss(gamma=2.0, temperature=7.0)(features, labels).item() == pytest.approx(expected)


def test_batch_loss_normalises_features() -> None:
    features, labels = features_and_labels()
    expected = batch_loss_oracle(features / features.norm(dim=1, keepdim=True), labels, gamma=4.0)
    assert BatchAffinityLoss(normalize=True)(features, labels).item() == pytest.approx(expected)


def test_batch_loss_passes_its_options_on() -> None:
    features, labels = features_and_labels()
    loss = BatchAffinityLoss(gamma=3.0, form="l2", softmax="row", diagonal="keep")(features, labels)
    graph = l2_affinity(features), same_category_target(labels)
    assert torch.equal(loss, affinity_loss(*graph, "l2", 3.0, "row", "keep"))


def test_batch_graph_serves_both_the_loss_and_the_mass() -> None:
    features, labels = features_and_labels()
    module = BatchAffinityLoss()
    graph = module.graph(features, labels)
    assert torch.equal(module.loss(*graph), module(features, labels))
    assert torch.equal(module.loss.mass(*graph), target_mass(*graph, "matrix", "exclude"))


def test_batch_loss_draws_classes_together_in_a_training_loop() -> None:
    features, labels = features_and_labels()
    features.requires_grad_()
    module = BatchAffinityLoss()
    optimiser = torch.optim.SGD([features], lr=1.0)
    masses = []
    for _ in range(30):
        logits, target = module.graph(features, labels)
        masses.append(module.loss.mass(logits.detach(), target).item())
        optimiser.zero_grad()
        module.loss(logits, target).backward()
        optimiser.step()
    assert masses == sorted(masses)
    assert masses[-1] > masses[0] + 0.2


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batch_loss_under_autocast_is_float32_with_the_gradient_in_kind(normalize: bool, dtype: torch.dtype) -> None:
    features, labels = features_and_labels()
    features = features.to(dtype).requires_grad_()
    module = BatchAffinityLoss(normalize=normalize)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(features, labels)
    loss.backward()
    assert torch.equal(loss, module(features.float(), labels))
    assert features.grad is not None
    assert features.grad.dtype == dtype
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0, 1, 2], [0], []])
@pytest.mark.parametrize("normalize", [False, True])
def test_batch_without_two_of_a_class_has_no_loss(labels: list[int], normalize: bool) -> None:
    features = torch.ones(len(labels), 4, requires_grad=True)
    loss = BatchAffinityLoss(normalize=normalize)(features, torch.tensor(labels, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_batch_loss_is_the_same_compiled_whole() -> None:
    features, labels = features_and_labels()
    module = BatchAffinityLoss(normalize=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, labels), module(features, labels))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_batch_loss_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be a positive finite number, found {temperature}"):
        BatchAffinityLoss(temperature=temperature)


def test_batch_loss_refuses_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"found \[4, 3\] and \[5\]"):
        BatchAffinityLoss()(torch.ones(4, 3), torch.ones(5, dtype=torch.int64))


def test_batch_loss_refuses_feature_maps() -> None:
    with pytest.raises(ValueError, match=r"features must have the shape \[N, d\]"):
        BatchAffinityLoss()(torch.ones(4, 3, 2, 2), torch.ones(4, dtype=torch.int64))


def test_batch_loss_shows_its_options() -> None:
    shown = repr(BatchAffinityLoss())
    assert "normalize=False, temperature=1.0" in shown
    assert "gamma=4.0, softmax='matrix', diagonal='exclude'" in shown
