"""Messages between a sweep and its worker processes: one line of JSON each."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from affsup_cli.recipe import RECIPE_OF_TASK, Recipe
from affsup_cli.training.observers import Progress


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """A request to do one run.

    Attributes:
        recipe: what to train.
        baseline: of a cost comparison, the recipe measured in alternation with `recipe`; None for a training run.
        data_dir: the folder of the prepared data sets.
        folder: the run folder.
        pretrained: folder of the finished run that this one builds on, if any.
    """

    recipe: Recipe
    baseline: Recipe | None
    data_dir: Path
    folder: Path
    pretrained: Path | None

    def to_line(self) -> bytes:
        """Return the line that `from_line` reads; recipes are in it as TOML."""
        fields = {
            "recipe": self.recipe.to_toml(),
            "baseline": self.baseline.to_toml() if self.baseline else None,
            "data_dir": str(self.data_dir),
            "folder": str(self.folder),
            "pretrained": str(self.pretrained) if self.pretrained else None,
        }
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> RunRequest:
        """Read a line of `to_line`."""
        fields = json.loads(line)
        baseline, pretrained = fields["baseline"], fields["pretrained"]
        return cls(
            _recipe(fields["recipe"]),
            _recipe(baseline) if baseline else None,
            Path(fields["data_dir"]),
            Path(fields["folder"]),
            Path(pretrained) if pretrained else None,
        )


@dataclasses.dataclass(frozen=True)
class EpochEnded:
    """An epoch has ended; `record` is its line of metrics.jsonl."""

    record: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunEnded:
    """A run has ended: `reason` says why if it has failed; it is "busy" if another process is doing it."""

    how: Literal["finished", "stopped", "failed", "busy"]
    reason: str = ""


Event = Progress | EpochEnded | RunEnded
_EVENTS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Progress, EpochEnded, RunEnded)}


def event_to_line(event: Event) -> bytes:
    """Return the line that `event_from_line` reads."""
    return json.dumps([type(event).__name__, dataclasses.asdict(event)]).encode() + b"\n"


def event_from_line(line: bytes) -> Event:
    """Read a line of `event_to_line`."""
    name, fields = json.loads(line)
    return _EVENTS[name](**fields)


def _recipe(text: str) -> Recipe:
    fields = tomllib.loads(text)
    return RECIPE_OF_TASK[fields["task"]].model_validate(fields)
