"""Estimates of a run's duration from the epochs of other runs."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection

from affsup_cli.recipe import Recipe
from affsup_cli.runs.index import Run, RunIndex, TrainedRun
from data_prep.errors import AffsupError

_SCHEDULE = ("train.epochs", "train.milestones")


class Speeds:
    """Seconds of an epoch's training steps, by recipe."""

    def __init__(self) -> None:
        self._same_recipe: dict[str, _Total] = {}
        self._similar: dict[str, _Total] = {}

    @classmethod
    def of_runs(cls, runs: RunIndex, devices: Collection[str]) -> Speeds:
        """Collect the runs on one of `devices` (names, as runs record them)."""
        speeds = cls()
        for run in (*runs.trained, *runs.unfinished):
            if run.environment.device_name in devices:
                seconds, epochs = _seconds_and_epochs(run)
                if epochs:
                    speeds.add(run.recipe, seconds, epochs)
        return speeds

    def add(self, recipe: Recipe, seconds: float, epochs: int = 1) -> None:
        """Add a measurement: `epochs` epochs of `recipe` took `seconds`."""
        same_recipe, similar = _keys(recipe)
        for total in (self._same_recipe.setdefault(same_recipe, _Total()), self._similar.setdefault(similar, _Total())):
            total.seconds += seconds
            total.epochs += epochs

    def epoch(self, recipe: Recipe) -> float | None:
        """Return the seconds that an epoch will take, None if nothing is known.

        What is known of the same recipe with any seed counts first, then of those that differ in L_G or in the length
        of the schedule.
        """
        same_recipe, similar = _keys(recipe)
        total = self._same_recipe.get(same_recipe) or self._similar.get(similar)
        return total.seconds / total.epochs if total else None


@dataclasses.dataclass
class _Total:
    seconds: float = 0.0
    epochs: int = 0


@functools.cache  # the live view asks for every waiting run at each refresh
def _keys(recipe: Recipe) -> tuple[str, str]:
    fields = {key: value for key, value in recipe.identity().items() if key not in ("name", "seed")}
    similar = {k: value for k, value in fields.items() if k not in _SCHEDULE and not k.startswith("affinity.")}
    return json.dumps(fields, sort_keys=True), json.dumps(similar, sort_keys=True)


def _seconds_and_epochs(run: Run) -> tuple[float, int]:
    try:
        if isinstance(run, TrainedRun):
            return float(run.folder.result()["seconds"]), run.result.epochs
        records = run.folder.metrics()
        return sum(float(record["seconds"]) for record in records), len(records)
    except (AffsupError, KeyError):  # an unreadable run is left out of the estimate
        return 0.0, 0
