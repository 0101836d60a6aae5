"""Affinity graph supervision for visual recognition: the loss, and the experiments of its paper.

The names below are imported when first used, so that `import affsup_cli` takes no time.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data_prep.version import __version__

if TYPE_CHECKING:
    from affsup_cli.affinity import (
        AffinityLoss,
        BatchAffinityLoss,
        GroundTruth,
        LossAndMass,
        affinity_loss,
        category_pair_target,
        different_category_target,
        different_instance_target,
        l2_affinity,
        l2_loss_and_mass,
        match_proposals,
        proposal_target,
        relationship_target,
        same_category_target,
        scaled_dot_affinity,
        scaled_dot_loss_and_mass,
        target_mass,
    )
    from affsup_cli.library import LoadedModel, curves, load, runs, table
    from affsup_cli.metrics import RelationshipRecall
    from affsup_cli.recipe import load_recipe
    from data_prep.errors import AffsupError, UsageError

__all__ = [
    "AffinityLoss",
    "AffsupError",
    "BatchAffinityLoss",
    "GroundTruth",
    "LoadedModel",
    "LossAndMass",
    "RelationshipRecall",
    "UsageError",
    "__version__",
    "affinity_loss",
    "category_pair_target",
    "curves",
    "different_category_target",
    "different_instance_target",
    "l2_affinity",
    "l2_loss_and_mass",
    "load",
    "load_recipe",
    "match_proposals",
    "proposal_target",
    "relationship_target",
    "runs",
    "same_category_target",
    "scaled_dot_affinity",
    "scaled_dot_loss_and_mass",
    "table",
    "target_mass",
]

_MODULE_OF = {
    "AffsupError": "data_prep.errors",
    "RelationshipRecall": "affsup_cli.metrics",
    "UsageError": "data_prep.errors",
    "load_recipe": "affsup_cli.recipe",
    **dict.fromkeys(("LoadedModel", "curves", "load", "runs", "table"), "affsup_cli.library"),
}


def __getattr__(name: str) -> Any:
    """Import the module that defines `name`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF.get(name, "affsup_cli.affinity")), name)


class _Package(ModuleType):
    """This package, whose function `runs` has the name of a subpackage.

    When Python has imported a subpackage it sets it as an attribute of the package; here that would hide the function.
    """

    @property
    def runs(self) -> Any:
        """`affsup_cli.library.runs`."""
        return import_module("affsup_cli.library").runs

    @runs.setter
    def runs(self, subpackage: ModuleType) -> None:
        """Keep the function."""


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
