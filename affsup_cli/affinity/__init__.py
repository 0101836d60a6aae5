"""Affinity graph supervision, the paper's method: affinities, targets, target mass and loss.

Needs torch alone; `match_proposals` takes the box overlap from torchvision.
"""

from affsup_cli.affinity.batch import BatchAffinityLoss
from affsup_cli.affinity.closed_form import LossAndMass
from affsup_cli.affinity.graph import l2_affinity, scaled_dot_affinity
from affsup_cli.affinity.large import l2_loss_and_mass, scaled_dot_loss_and_mass
from affsup_cli.affinity.loss import AffinityLoss, LossForm, affinity_loss
from affsup_cli.affinity.mass import DiagonalKind, SoftmaxKind, target_mass
from affsup_cli.affinity.target import (
    category_pair_target,
    different_category_target,
    different_instance_target,
    match_proposals,
    relationship_target,
    same_category_target,
)

__all__ = [
    "AffinityLoss",
    "BatchAffinityLoss",
    "DiagonalKind",
    "LossAndMass",
    "LossForm",
    "SoftmaxKind",
    "affinity_loss",
    "category_pair_target",
    "different_category_target",
    "different_instance_target",
    "l2_affinity",
    "l2_loss_and_mass",
    "match_proposals",
    "relationship_target",
    "same_category_target",
    "scaled_dot_affinity",
    "scaled_dot_loss_and_mass",
    "target_mass",
]
