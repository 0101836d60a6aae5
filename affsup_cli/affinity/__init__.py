"""Affinity graph supervision, the paper's method: affinities, targets, target mass and loss.

Needs torch alone; `match_proposals` takes the box overlap from torchvision.
"""

from affsup_cli.affinity.graph import l2_affinity, scaled_dot_affinity
from affsup_cli.affinity.loss import AffinityLoss, BatchAffinityLoss, LossForm, affinity_loss
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
    "LossForm",
    "SoftmaxKind",
    "affinity_loss",
    "category_pair_target",
    "different_category_target",
    "different_instance_target",
    "l2_affinity",
    "match_proposals",
    "relationship_target",
    "same_category_target",
    "scaled_dot_affinity",
    "target_mass",
]
