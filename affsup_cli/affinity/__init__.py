"""Affinity graph supervision, the paper's method: affinities, targets, target mass and loss.

Needs torch alone; `match_proposals` takes the box overlap from torchvision. Names are imported when first used, so that
`affsup_cli.affinity.options` is read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affsup_cli.affinity.batch import BatchAffinityLoss
    from affsup_cli.affinity.closed_form import LossAndMass
    from affsup_cli.affinity.graph import l2_affinity, scaled_dot_affinity
    from affsup_cli.affinity.large import l2_loss_and_mass, scaled_dot_loss_and_mass
    from affsup_cli.affinity.loss import AffinityLoss, affinity_loss
    from affsup_cli.affinity.mass import target_mass
    from affsup_cli.affinity.options import (
        AverageKind,
        DiagonalKind,
        LossForm,
        MatchKind,
        ReductionKind,
        SoftmaxKind,
        TargetKind,
    )
    from affsup_cli.affinity.target import (
        GroundTruth,
        category_pair_target,
        different_category_target,
        different_instance_target,
        match_proposals,
        proposal_target,
        relationship_target,
        same_category_target,
    )

_MODULES = {
    "batch": ["BatchAffinityLoss"],
    "closed_form": ["LossAndMass"],
    "graph": ["l2_affinity", "scaled_dot_affinity"],
    "large": ["l2_loss_and_mass", "scaled_dot_loss_and_mass"],
    "loss": ["AffinityLoss", "affinity_loss"],
    "mass": ["target_mass"],
    "options": ["AverageKind", "DiagonalKind", "LossForm", "MatchKind", "ReductionKind", "SoftmaxKind", "TargetKind"],
    "target": [
        "GroundTruth",
        "category_pair_target",
        "different_category_target",
        "different_instance_target",
        "match_proposals",
        "proposal_target",
        "relationship_target",
        "same_category_target",
    ],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name`."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(_MODULE_OF)


__all__ = [
    "AffinityLoss",
    "AverageKind",
    "BatchAffinityLoss",
    "DiagonalKind",
    "GroundTruth",
    "LossAndMass",
    "LossForm",
    "MatchKind",
    "ReductionKind",
    "SoftmaxKind",
    "TargetKind",
    "affinity_loss",
    "category_pair_target",
    "different_category_target",
    "different_instance_target",
    "l2_affinity",
    "l2_loss_and_mass",
    "match_proposals",
    "proposal_target",
    "relationship_target",
    "same_category_target",
    "scaled_dot_affinity",
    "scaled_dot_loss_and_mass",
    "target_mass",
]
