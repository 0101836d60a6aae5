"""The runs under a folder, each read once and checked."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from affsup_cli.recipe import RECORDING_FIELDS, Recipe, trains_the_same
from affsup_cli.runs.folder import RunFolder, run_folders
from affsup_cli.runs.results import CostResult, TrainResult, first_fault, read_result
from data_prep.errors import AffsupError


class RunData(BaseModel):
    """A run's data set: `limit` of its training images if not all; `official` None where no checksum is known."""

    name: str
    digest: str
    limit: int | None
    complete: bool
    official: bool | None


class BaseNetwork(BaseModel):
    """The trained network of a scene run: its run, the digest of its weights, its data set."""

    run: str
    digest: str
    data: RunData


class Environment(BaseModel):
    """The content of environment.json."""

    affsup: str
    commit: str | None
    dirty: bool
    python: str
    torch: str
    device: str
    device_name: str
    threads: int
    started: str
    data: RunData
    weights: str | None = None
    network: BaseNetwork | None = None

    @property
    def code(self) -> str:
        """The version of affsup, and its commit."""
        if self.commit is None:
            return f"affsup {self.affsup}"
        return f"affsup {self.affsup}, commit {self.commit[:12]}{' and uncommitted changes' if self.dirty else ''}"


_OF_THE_LOSS = ("affinity.gamma", "affinity.lambda", "affinity.softmax", "affinity.average", "affinity.row_average")
_OF_THE_BACKBONE = ("network.model.arch", "network.model.weights", "network.model.pixels")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, its recipe and its environment."""

    folder: RunFolder
    recipe: Recipe
    environment: Environment

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The recipe's `comparable_settings`."""
        return comparable_settings(self.recipe)


@dataclasses.dataclass(frozen=True)
class TrainedRun(Run):
    """A finished training run."""

    result: TrainResult


@dataclasses.dataclass(frozen=True)
class MeasuredRun(Run):
    """A finished cost comparison; its recipe is that of the treatment."""

    result: CostResult


class RunIndex:
    """Every run under one folder.

    Attributes:
        root: the folder.
        trained: the finished training runs, by the time they started.
        measured: the finished cost comparisons, by the time they started.
        unfinished: the runs in progress and the stopped runs, by name.
        warnings: a sentence for each folder that could not be read; it is left out of everything else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trained: list[TrainedRun] = []
        self.measured: list[MeasuredRun] = []
        self.unfinished: list[Run] = []
        self.warnings: list[str] = []
        for folder in run_folders(root):
            try:
                self._add(folder)
            except AffsupError as error:
                self.warnings.append(f"run {folder.name} is left out: {error}")
        self.trained.sort(key=_by_start)
        self.measured.sort(key=_by_start)
        self._of_recipe: dict[tuple[str, str], list[Run]] = {}
        for kind, runs in (("train", (*self.trained, *self.unfinished)), ("cost", self.measured)):
            for run in runs:
                self._of_recipe.setdefault((kind, training_key(run.recipe)), []).append(run)

    def _add(self, folder: RunFolder) -> None:
        recipe = folder.recipe()
        try:
            environment = Environment.model_validate(folder.environment())
        except ValidationError as error:
            raise AffsupError(f"{folder.path / 'environment.json'} is damaged: {first_fault(error)}") from error
        if not folder.finished:
            self.unfinished.append(Run(folder, recipe, environment))
            return
        result = read_result(folder)
        if isinstance(result, TrainResult):
            self.trained.append(TrainedRun(folder, recipe, environment, result))
        else:
            self.measured.append(MeasuredRun(folder, recipe, environment, result))

    def find(
        self,
        recipe: Recipe,
        kind: Literal["train", "cost"] = "train",
        data: str | None = None,
        network_data: str | None = None,
    ) -> RunFolder | None:
        """Return the run of `recipe`; None if there is none.

        If there are several: the finished run that started first, else the first unfinished run by name.

        Args:
            recipe: the run trains as this says, and records at least what this asks for.
            kind: of cost comparisons only finished ones are known.
            data: digest of the data set that it must have run on; None for any.
            network_data: digest of the data set that the run which it builds on must have run on; None for any.
        """
        asked = {field for field in RECORDING_FIELDS if recipe.flat().get(field)}
        for run in self._of_recipe.get((kind, training_key(recipe)), []):
            recorded = {field for field in RECORDING_FIELDS if run.recipe.flat().get(field)}
            part_a = run.environment.network
            of_network = part_a.data.digest if part_a else None
            alike = data in (None, run.environment.data.digest) and network_data in (None, of_network)
            if alike and asked <= recorded:
                return run.folder
        return None


def _by_start(run: Run) -> tuple[str, str]:
    return run.environment.started, run.folder.name


def identity_key(recipe: Recipe) -> str:
    """Return a text that is equal for recipes of equal identity."""
    return json.dumps(recipe.identity(), sort_keys=True)


def training_key(recipe: Recipe) -> str:
    """Return a text that is equal for recipes that train the same, whatever they record."""
    fields = {key: value for key, value in recipe.identity().items() if not trains_the_same([key])}
    return json.dumps(fields, sort_keys=True)


def comparable_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that make runs comparable: not label and seed, and without L_G not the form of it.

    The fields of the graph count in a base network too: they say which M was measured. Of a network that is not trained
    only its backbone counts.
    """
    fields = {key: value for key, value in recipe.identity().items() if key not in ("name", "network.name", "seed")}
    for network in ("", "network."):
        if fields.get(f"{network}affinity.loss") == "none":
            fields = {key: value for key, value in fields.items() if key.removeprefix(network) not in _OF_THE_LOSS}
    if fields.get("model.pretrained", True):
        return fields
    return {key: fields[key] for key in fields if not key.startswith("network.") or key in _OF_THE_BACKBONE}
