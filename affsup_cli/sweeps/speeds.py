"""How long runs take, told from epochs of others."""

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
        self._alike: dict[str, _Known] = {}
        self._akin: dict[str, _Known] = {}

    @classmethod
    def of_runs(cls, runs: RunIndex, devices: Collection[str]) -> Speeds:
        """Learn from the runs that ran on one of `devices` (names, as runs record them)."""
        speeds = cls()
        for run in (*runs.trained, *runs.unfinished):
            if run.environment.device_name in devices:
                seconds, epochs = _seconds_and_epochs(run)
                if epochs:
                    speeds.add(run.recipe, seconds, epochs)
        return speeds

    def add(self, recipe: Recipe, seconds: float, epochs: int = 1) -> None:
        """Learn that so many epochs of `recipe` took so long."""
        alike, akin = _keys(recipe)
        for known in (self._alike.setdefault(alike, _Known()), self._akin.setdefault(akin, _Known())):
            known.seconds += seconds
            known.epochs += epochs

    def epoch(self, recipe: Recipe) -> float | None:
        """Return the seconds that an epoch will take, None if nothing is known.

        What is known of the same recipe with any seed counts first, then of those that differ in L_G or in the length
        of the schedule.
        """
        alike, akin = _keys(recipe)
        known = self._alike.get(alike) or self._akin.get(akin)
        return known.seconds / known.epochs if known else None


@dataclasses.dataclass
class _Known:
    seconds: float = 0.0
    epochs: int = 0


@functools.cache  # the display asks for all that wait, again and again
def _keys(recipe: Recipe) -> tuple[str, str]:
    fields = {key: value for key, value in recipe.identity().items() if key not in ("name", "seed")}
    akin = {k: value for k, value in fields.items() if k not in _SCHEDULE and not k.startswith("affinity.")}
    return json.dumps(fields, sort_keys=True), json.dumps(akin, sort_keys=True)


def _seconds_and_epochs(run: Run) -> tuple[float, int]:
    try:
        if isinstance(run, TrainedRun):
            return float(run.folder.result()["seconds"]), run.result.epochs
        records = run.folder.metrics()
        return sum(float(record["seconds"]) for record in records), len(records)
    except (AffsupError, KeyError):  # an estimate does without a run that cannot be read
        return 0.0, 0
