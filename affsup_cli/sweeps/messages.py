"""What a sweep and its worker processes say to each other, a line of JSON each."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from affsup_cli.engine.observer import Progress
from affsup_cli.recipe import RECIPE_OF_TASK, Recipe


@dataclasses.dataclass(frozen=True)
class Order:
    """One run to be done.

    Attributes:
        recipe: what to train.
        baseline: of a cost comparison, the recipe measured in turns with `recipe`; None for a training run.
        data_dir: where the data sets are prepared.
        folder: the run folder.
        pretrained: folder of the finished run that this one builds on, if any.
    """

    recipe: Recipe
    baseline: Recipe | None
    data_dir: Path
    folder: Path
    pretrained: Path | None

    @staticmethod
    def line_of(orders: Sequence[Order]) -> bytes:
        """Return the line that `several_from_line` reads: orders for one process to carry out at the same time.

        Recipes are in it as TOML.
        """
        return json.dumps([order._fields() for order in orders]).encode() + b"\n"

    @classmethod
    def several_from_line(cls, line: bytes) -> list[Order]:
        """Read a line of `line_of`."""
        return [cls._from_fields(fields) for fields in json.loads(line)]

    def _fields(self) -> dict[str, str | None]:
        return {
            "recipe": self.recipe.to_toml(),
            "baseline": self.baseline.to_toml() if self.baseline else None,
            "data_dir": str(self.data_dir),
            "folder": str(self.folder),
            "pretrained": str(self.pretrained) if self.pretrained else None,
        }

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> Order:
        baseline, pretrained = fields["baseline"], fields["pretrained"]
        return cls(
            _recipe(fields["recipe"]),
            _recipe(baseline) if baseline else None,
            Path(fields["data_dir"]),
            Path(fields["folder"]),
            Path(pretrained) if pretrained else None,
        )


@dataclasses.dataclass(frozen=True)
class Epoch:
    """An epoch has ended; `record` is its line of metrics.jsonl."""

    record: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A run goes on no longer: `reason` says why if it has failed; it is "busy" if another process does it."""

    how: Literal["finished", "stopped", "failed", "busy"]
    reason: str = ""


Event = Progress | Epoch | Ended
_EVENTS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Progress, Epoch, Ended)}


def event_to_line(place: int, event: Event) -> bytes:
    """Return the line that `event_from_line` reads; the event is of the order that stood at `place` among several."""
    return json.dumps([place, type(event).__name__, dataclasses.asdict(event)]).encode() + b"\n"


def event_from_line(line: bytes) -> tuple[int, Event]:
    """Read a line: the place of the order, and what is reported of it."""
    place, name, fields = json.loads(line)
    return place, _EVENTS[name](**fields)


def _recipe(text: str) -> Recipe:
    fields = tomllib.loads(text)
    return RECIPE_OF_TASK[fields["task"]].model_validate(fields)
