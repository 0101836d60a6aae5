"""Which runs of a sweep train side by side in one process."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

from affsup_cli.recipe import MinibatchRecipe
from affsup_cli.sweeps.plan import Step

Pack = tuple[Step, ...]
"""Steps that one process does at the same time; of one alone."""


def alone(steps: Sequence[Step]) -> list[Pack]:
    """Return each step as a pack of its own."""
    return [(step,) for step in steps]


def packed(steps: Sequence[Step], most: int, places: int = 1) -> list[Pack]:
    """Put training runs together that differ in seed and L_G alone.

    Only image classification packs: other tasks fill a device by themselves. Runs that are alike are spread over the
    places that would be idle otherwise.

    Args:
        steps: in the order in which they should begin.
        most: runs of a pack.
        places: how many packs run at the same time.
    """
    groups: dict[str, list[Step]] = {}
    for number, step in enumerate(steps):
        groups.setdefault(_likeness(step) or str(number), []).append(step)
    for_all_places = math.ceil(places / max(1, len(groups)))
    packs: list[Pack] = []
    for group in groups.values():
        parts = min(max(for_all_places, math.ceil(len(group) / most)), len(group))
        starts = [len(group) * part // parts for part in range(parts + 1)]
        packs += [tuple(group[start:end]) for start, end in itertools.pairwise(starts)]
    return sorted(packs, key=lambda pack: steps.index(pack[0]))


def _likeness(step: Step) -> str | None:
    """Return what the steps of a pack have in common, None for one that packs with no other."""
    if not isinstance(step.recipe, MinibatchRecipe) or step.baseline is not None or step.state == "damaged":
        return None
    own = ("name", "seed")
    common = {
        key: value
        for key, value in step.recipe.identity().items()
        if key not in own and not key.startswith("affinity.")
    }
    return json.dumps(common, sort_keys=True)
