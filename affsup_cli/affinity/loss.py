"""The affinity mass loss L_G (eq. 5-7, 13-15), as a function and as a module."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affsup_cli.affinity.closed_form import (
    LossAndMass,
    MassLoss,
    detached_without_grad,
    reduced,
)
from affsup_cli.affinity.forms import FORMS
from affsup_cli.affinity.mass import (
    Entries,
    LogOdds,
    check_choice,
    check_graph,
    mass_log_odds,
    supervised_entries,
    target_mass,
)
from affsup_cli.affinity.options import AverageKind, DiagonalKind, LossForm, LossOptions, ReductionKind, SoftmaxKind
from affsup_cli.affinity.precision import at_least_float32, without_autocast


def affinity_loss(
    logits: Tensor,
    target: Tensor,
    form: LossForm = "focal",
    gamma: float = 2.0,
    softmax: SoftmaxKind = "matrix",
    diagonal: DiagonalKind = "keep",
    *,
    mask: Tensor | None = None,
    average: AverageKind = "with-target",
    row_average: bool = False,
    reduction: ReductionKind = "mean",
) -> Tensor:
    """Affinity mass loss L_G of graphs whose target affinity mass should grow.

    With `x = 1 - M` the forms are

    - "focal": `-x^gamma log M`, eq. 7 and 14
    - "log": focal with gamma 0
    - "l2": `x^2`, eq. 5
    - "smooth_l1": `x^2` for x < 0.5, else `x - 0.25`, eq. 6
    - "bce": binary cross-entropy of `sigmoid(W)` with T summed over the entries, eq. 15; it has no softmax

    With `softmax="row"` each row has its own M (eq. 12), and their losses are summed (eq. 13).

    The result is the mean over the graphs that have a target. A graph (or row) without one contributes exactly 0, of
    every form, with a gradient of 0. Computed in float32 or wider with autocast off, from log-odds: accurate at any
    scale of logits.

    Args:
        logits: affinities W `[..., N, K]`, finite; leading dimensions are graphs.
        target: bool, the shape of `logits`.
        form: one of the above.
        gamma: focal exponent, 0 or at least 1; other forms ignore it.
        softmax: over the whole matrix, or over the columns of each row.
        diagonal: "exclude" leaves the diagonal out of the target and of the softmax; it needs N == K.
        mask: bool, the shape of `logits`; entries where it is false are left out of the target and of the softmax.
        average: over the graphs "with-target", or over all of the "batch".
        row_average: with `softmax="row"`, the mean over a graph's rows with a target in place of their sum.
        reduction: "mean"; or "none" for the loss of each graph `[...]`, with `softmax="row"` of each row `[..., N]`.

    Returns:
        Scalar (or as `reduction` says), at least 0; it requires a gradient also when no graph has a target.

    Raises:
        TypeError: `logits` is not floating point, or `target` or `mask` not bool.
        ValueError: the shapes do not fit, an option is unknown, or `gamma` is refused.
    """
    options = checked_options(form, gamma, softmax, diagonal, average, row_average, reduction)
    return _bce(logits, target, mask, options) if form == "bce" else loss_and_mass(logits, target, options, mask).loss


def loss_and_mass(logits: Tensor, target: Tensor, options: LossOptions, mask: Tensor | None = None) -> LossAndMass:
    """`affinity_loss`, and M of each graph (eq. 3) without gradient, from one pass over the graphs.

    For "bce", which has no softmax, M is computed separately.
    """
    if options.form == "bce":
        mass = target_mass(logits.detach(), target, "matrix", options.diagonal, mask)
        return LossAndMass(_bce(logits, target, mask, options), mass)
    check_graph(logits, target, options.diagonal, mask)
    with without_autocast(logits):
        graphs = detached_without_grad(at_least_float32("logits", logits))

        def reference(logits: Tensor) -> Tensor:
            return differentiable_loss(logits, target, mask, options)

        return LossAndMass(*MassLoss.apply(graphs, target, mask, options, reference))


def differentiable_loss(logits: Tensor, target: Tensor, mask: Tensor | None, options: LossOptions) -> Tensor:
    """The same loss from differentiable operators, for second derivatives."""
    log_odds = mass_log_odds(supervised_entries(logits, target, options.diagonal, mask), options.softmax)
    return reduced(mass_losses(log_odds, options.form, options.gamma), ~log_odds.supervised, options)[0]


class AffinityLoss(nn.Module):
    """`affinity_loss` (eq. 5-7, 13-15) as a module; its options are checked in the constructor.

    Args:
        form: "focal", "log", "l2", "smooth_l1" or "bce".
        gamma: focal exponent, 0 or at least 1.
        softmax: "matrix" or "row".
        diagonal: "keep" or "exclude".
        average: "with-target" or "batch".
        row_average: with `softmax="row"`, the mean over the rows with a target in place of their sum.
        reduction: "mean" or "none".

    Raises:
        ValueError: an option is unknown, or `gamma` is refused.
    """

    def __init__(
        self,
        form: LossForm = "focal",
        gamma: float = 2.0,
        softmax: SoftmaxKind = "matrix",
        diagonal: DiagonalKind = "keep",
        average: AverageKind = "with-target",
        row_average: bool = False,
        reduction: ReductionKind = "mean",
    ) -> None:
        super().__init__()
        self.options = checked_options(form, gamma, softmax, diagonal, average, row_average, reduction)

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of affinities `[..., N, K]`, a bool target and perhaps a mask of that shape, eq. 5-7 and 13-15."""
        return self.loss_and_mass(logits, target, mask).loss

    def loss_and_mass(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> LossAndMass:
        """The loss, and M of the whole matrix of each graph (eq. 3), from one pass over the graphs."""
        return loss_and_mass(logits, target, self.options, mask)

    def mass(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The target affinity mass that this loss increases, eq. 3 or 12; see `target_mass`."""
        return target_mass(logits, target, self.options.softmax, self.options.diagonal, mask)

    def extra_repr(self) -> str:
        """The options that `repr` shows."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.options).items())


def mass_losses(log_odds: LogOdds, form: LossForm, gamma: float) -> Tensor:
    """Loss of each mass from its log-odds, eq. 5, 6, 7; 0 where there is no target."""
    value = log_odds.value.masked_fill(~log_odds.supervised, 0)
    losses, _ = FORMS[form](value, gamma)
    return losses.masked_fill(~log_odds.supervised, 0)


def _bce(logits: Tensor, target: Tensor, mask: Tensor | None, options: LossOptions) -> Tensor:
    with without_autocast(logits):
        losses, supervised = _cross_entropy(supervised_entries(logits, target, options.diagonal, mask))
        return reduced(losses.masked_fill(~supervised, 0), ~supervised, options)[0]


def _cross_entropy(entries: Entries) -> tuple[Tensor, Tensor]:
    """Summed loss of each graph, eq. 15, and whether it has a target."""
    logits, target, rest = entries
    # log(1 - sigmoid(w)) is logsigmoid(-w); an entry in neither part gets a logit with loss 0.
    signed = torch.where(target, logits, -logits).masked_fill(~(target | rest), torch.inf)
    return -F.logsigmoid(signed).sum(dim=(-2, -1)), target.flatten(-2).any(dim=-1)


def checked_options(
    form: LossForm,
    gamma: float,
    softmax: SoftmaxKind,
    diagonal: DiagonalKind,
    average: AverageKind = "with-target",
    row_average: bool = False,
    reduction: ReductionKind = "mean",
) -> LossOptions:
    """Return the options, or raise a ValueError if one is unknown or `gamma` is out of range."""
    check_choice("form", form, get_args(LossForm))
    check_choice("softmax", softmax, get_args(SoftmaxKind))
    check_choice("diagonal", diagonal, get_args(DiagonalKind))
    check_choice("average", average, get_args(AverageKind))
    check_choice("reduction", reduction, get_args(ReductionKind))
    if not (gamma == 0 or 1 <= gamma < math.inf):
        raise ValueError(
            f"gamma must be 0 or a finite number of at least 1, found {gamma}: "
            "between 0 and 1 the gradient of the loss is infinite at M = 1"
        )
    return LossOptions(form, gamma, softmax, diagonal, average, row_average, reduction)
