"""The affinity mass loss L_G (eq. 5-7, 13-15), as a function, as a module, and ready for a classifier's batches."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affsup_cli.affinity.graph import l2_affinity
from affsup_cli.affinity.mass import (
    DiagonalKind,
    Entries,
    SoftmaxKind,
    check_choice,
    mass_log_odds,
    supervised_entries,
    target_mass,
)
from affsup_cli.affinity.precision import at_least_float32, without_autocast
from affsup_cli.affinity.target import same_category_target

LossForm = Literal["focal", "log", "l2", "smooth_l1", "bce"]


def affinity_loss(
    logits: Tensor,
    target: Tensor,
    form: LossForm = "focal",
    gamma: float = 2.0,
    softmax: SoftmaxKind = "matrix",
    diagonal: DiagonalKind = "keep",
) -> Tensor:
    """Affinity mass loss L_G of graphs whose target affinity mass should grow.

    With `x = 1 - M` the forms are

    - "focal": `-x^gamma log M`, eq. 7 and 14
    - "log": focal with gamma 0
    - "l2": `x^2`, eq. 5
    - "smooth_l1": `x^2` below 0.5, `x - 0.25` from there on, eq. 6
    - "bce": binary cross-entropy of `sigmoid(W)` with T summed over the entries, eq. 15; it has no softmax

    With `softmax="row"` each row has its own M (eq. 12), and their losses are summed (eq. 13).

    The result is the mean over the graphs that have a target. A graph (or row) without one contributes exactly 0, of
    every form, with a gradient of 0. Computed in float32 or wider with autocast off, from log-odds: accurate at any
    scale of logits.

    Args:
        logits: affinities W `[..., N, M]`, finite; leading dimensions are graphs.
        target: bool, the shape of `logits`.
        form: one of the above.
        gamma: focal exponent, 0 or at least 1; other forms ignore it.
        softmax: over the whole matrix, or over the columns of each row.
        diagonal: "exclude" leaves the diagonal out of the target and of the softmax; it needs N == M.

    Returns:
        Scalar, at least 0, part of the autograd graph even when no graph has a target.

    Raises:
        TypeError: `logits` is not floating point or `target` not bool.
        ValueError: the shapes do not fit, an option is unknown, or `gamma` is refused.
    """
    _check_options(form, gamma, softmax)
    with without_autocast(logits):
        entries = supervised_entries(logits, target, diagonal)
        if form == "bce":
            losses, supervised = _cross_entropy(entries)
        else:
            log_odds, supervised = mass_log_odds(entries, softmax)
            losses = _mass_loss(log_odds.masked_fill(~supervised, 0), form, gamma)
        losses = losses.masked_fill(~supervised, 0)
        if softmax == "row" and form != "bce":
            losses, supervised = losses.sum(dim=-1), supervised.any(dim=-1)
        return losses.sum() / supervised.sum().clamp(min=1)


class AffinityLoss(nn.Module):
    """`affinity_loss` (eq. 5-7, 13-15) with its options held, checked when it is made.

    Args:
        form: "focal", "log", "l2", "smooth_l1" or "bce".
        gamma: focal exponent, 0 or at least 1.
        softmax: "matrix" or "row".
        diagonal: "keep" or "exclude".

    Raises:
        ValueError: an option is unknown, or `gamma` is refused.
    """

    def __init__(
        self,
        form: LossForm = "focal",
        gamma: float = 2.0,
        softmax: SoftmaxKind = "matrix",
        diagonal: DiagonalKind = "keep",
    ) -> None:
        super().__init__()
        _check_options(form, gamma, softmax)
        check_choice("diagonal", diagonal, get_args(DiagonalKind))
        self.form: LossForm = form
        self.gamma = gamma
        self.softmax: SoftmaxKind = softmax
        self.diagonal: DiagonalKind = diagonal

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of affinities `[..., N, M]` and a bool target of that shape, eq. 5-7 and 13-15."""
        return affinity_loss(logits, target, self.form, self.gamma, self.softmax, self.diagonal)

    def mass(self, logits: Tensor, target: Tensor) -> Tensor:
        """The target affinity mass that this loss drives up, eq. 3 or 12; see `target_mass`."""
        return target_mass(logits, target, self.softmax, self.diagonal)

    def extra_repr(self) -> str:
        """What `repr` shows of the options."""
        return f"form={self.form!r}, gamma={self.gamma}, softmax={self.softmax!r}, diagonal={self.diagonal!r}"


class BatchAffinityLoss(nn.Module):
    """Affinity supervision of mini-batches (section 5): draws features of the same class together, eq. 11 and 7.

    Nodes are the entries of a batch, affinities their negative half squared distances, and the target is the pairs of
    the same category. Add it to any classifier's loss, weighted by lambda (eq. 8; the paper's is 0.1)::

        affinity = BatchAffinityLoss(gamma=4.0)
        features = backbone(images)  # [N, d], for instance after global pooling
        loss = F.cross_entropy(classifier(features), labels) + 0.1 * affinity(features, labels)

    `graph` gives the affinities and the target once for both the loss and the mass, when that is to be logged::

        logits, target = affinity.graph(features, labels)
        loss, mass = affinity.loss(logits, target), affinity.loss.mass(logits.detach(), target)

    Args:
        gamma: focal exponent, 0 or at least 1.
        form: "focal", "log", "l2", "smooth_l1" or "bce".
        softmax: "matrix" or "row".
        diagonal: "exclude" by default: an entry's distance to itself is 0, so
            that kept in, it takes nearly all the mass once features spread.
        normalize: L2-normalise the features first.
        temperature: positive number that the affinities are divided by.

    Raises:
        ValueError: an option is unknown, or `gamma` or `temperature` is refused.
    """

    def __init__(
        self,
        gamma: float = 4.0,
        form: LossForm = "focal",
        softmax: SoftmaxKind = "matrix",
        diagonal: DiagonalKind = "exclude",
        normalize: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be a positive finite number, found {temperature}")
        self.loss = AffinityLoss(form, gamma, softmax, diagonal)
        self.normalize = normalize
        self.temperature = temperature

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of features `[N, d]` and integer class ids `[N]`, eq. 7 of eq. 11."""
        loss: Tensor = self.loss(*self.graph(features, labels))
        return loss

    def graph(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Affinities (eq. 11) and target (section 5.2) of a batch, `[N, N]` each.

        Raises:
            TypeError: `features` are not floating point or `labels` not integers.
            ValueError: `features` are not `[N, d]` or `labels` not `[N]`.
        """
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features must have the shape [N, d] and labels [N], "
                f"found {list(features.shape)} and {list(labels.shape)}"
            )
        features = at_least_float32("features", features)
        if self.normalize:
            features = F.normalize(features, dim=1)
        return l2_affinity(features) / self.temperature, same_category_target(labels)

    def extra_repr(self) -> str:
        """What `repr` shows of the options."""
        return f"normalize={self.normalize}, temperature={self.temperature}"


def _mass_loss(log_odds: Tensor, form: LossForm, gamma: float) -> Tensor:
    """Loss of each mass from its log-odds, eq. 5, 6, 7."""
    miss = torch.sigmoid(-log_odds)
    if form == "l2":
        return miss.square()
    if form == "smooth_l1":
        return torch.where(miss < 0.5, miss.square(), miss - 0.25)
    surprise = -F.logsigmoid(log_odds)
    return surprise if form == "log" else miss**gamma * surprise


def _cross_entropy(entries: Entries) -> tuple[Tensor, Tensor]:
    """Summed loss of each graph, eq. 15, and whether it has a target."""
    logits, target, rest = entries
    # log(1 - sigmoid(w)) is logsigmoid(-w); an entry in neither part gets the logit that costs nothing.
    signed = torch.where(target, logits, -logits).masked_fill(~(target | rest), torch.inf)
    return -F.logsigmoid(signed).sum(dim=(-2, -1)), target.flatten(-2).any(dim=-1)


def _check_options(form: str, gamma: float, softmax: str) -> None:
    check_choice("form", form, get_args(LossForm))
    check_choice("softmax", softmax, get_args(SoftmaxKind))
    if not (math.isfinite(gamma) and (gamma == 0 or gamma >= 1)):
        raise ValueError(
            f"gamma must be 0 or a finite number of at least 1, found {gamma}: "
            "between 0 and 1 the gradient of the loss is infinite at M = 1"
        )
