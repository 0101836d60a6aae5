"""The options of affinity supervision and their names: the one list that losses, recipes and `--help` share.

This module does not import torch, so that recipes can be read without it. Each loss form is a function of the same name
in `affsup_cli.affinity.forms`, each target kind a function in `affsup_cli.affinity.target`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossForm = Literal["focal", "log", "l2", "smooth_l1", "bce"]
"""Form of L_G: eq. 7 and 14, eq. 7 with gamma 0, eq. 5, eq. 6, eq. 15."""

TargetKind = Literal["different-category", "different-instance", "relationship", "category-pair"]
"""Which pairs of proposals should attend to each other: section 4.1, supplement E, section 6.5, supplement E."""

MatchKind = Literal["argmax", "any"]
"""The objects of a proposal: the one that it overlaps most, or every one, if the overlap is large enough."""

SoftmaxKind = Literal["matrix", "row"]
"""Softmax over the whole matrix (eq. 3), or over each row (eq. 12)."""

DiagonalKind = Literal["keep", "exclude"]
"""Whether an entity's affinity to itself counts."""

AverageKind = Literal["with-target", "batch"]
"""The graphs that L_G is averaged over: those with a target, or all."""

ReductionKind = Literal["mean", "none"]
"""One loss for all graphs, or one for each."""


@dataclass(frozen=True)
class LossOptions:
    """The options of L_G; see `affsup_cli.affinity.loss.affinity_loss`."""

    form: LossForm
    gamma: float
    softmax: SoftmaxKind
    diagonal: DiagonalKind
    average: AverageKind = "with-target"
    row_average: bool = False
    reduction: ReductionKind = "mean"
