"""The runs that tables and figures need, their kinds, and the time that a run takes at the speed of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import data_prep
from affsup_cli.recipe import DetectionRecipe, MinibatchRecipe, Recipe, SceneRecipe
from affsup_cli.reporting.select.experiments import Experiment, experiments
from affsup_cli.reporting.select.spec import load_spec
from affsup_cli.runs.index import training_key
from affsup_cli.sweeps.worker import COST_ROUNDS
from affsup_cli.training.cost import MIN_STEPS, ROUND_SECONDS, WARM_UP_STEPS
from data_prep.build_images import split_rows
from data_prep.errors import AffsupError
from data_prep.raw import ImageSet

RunKey = tuple[str, str]
"""Equal for experiments that need the same run."""


class RunKind(NamedTuple):
    """What the time of a step depends on; the form of L_G and, for scenes, all but the image size hardly matter."""

    task: str
    network: str
    data: str

    def __str__(self) -> str:
        return " ".join(self)


@dataclass(frozen=True)
class Speed:
    """The speed of a kind of run.

    Attributes:
        step_seconds: median time of a training step.
        steps: number of timed steps.
        image_seconds: time to evaluate one image, metrics included.
        images: number of timed images.
    """

    step_seconds: float
    steps: int
    image_seconds: float
    images: int


def needed_runs(table: str) -> dict[RunKey, Experiment]:
    """Return the runs of a table or figure, each once, including those that others are initialised from."""
    found: dict[RunKey, Experiment] = {}
    for experiment in experiments(load_spec(table)):
        found[experiment.kind, training_key(experiment.recipe)] = experiment
        before = experiment.recipe.prerequisite()
        if before is not None:
            found.setdefault(("train", training_key(before)), Experiment(experiment.keys, before))
    return found


def network_recipe(recipe: Recipe) -> DetectionRecipe | MinibatchRecipe:
    """Return the recipe of the network that takes the time: for scene categories that of part A."""
    if isinstance(recipe, SceneRecipe):
        return recipe.network
    if isinstance(recipe, DetectionRecipe | MinibatchRecipe):
        return recipe
    raise AssertionError(f"no speed is known for {type(recipe).__name__}")


def kind_of(recipe: Recipe) -> RunKind:
    """Return the kind of run of a recipe."""
    of_network = network_recipe(recipe)
    if isinstance(of_network, DetectionRecipe):
        data = f"{of_network.data.short_side}x{of_network.data.long_side}"
    else:
        data = of_network.data.name
    return RunKind(of_network.task, of_network.model.arch, data)


def seconds_of(experiment: Experiment, speeds: Mapping[RunKind, Speed]) -> float:
    """Return the seconds that a run on its whole data set takes, given the speeds of the kinds."""
    recipe = experiment.recipe
    speed = speeds[kind_of(recipe)]
    if experiment.baseline is not None:
        a_round = max(MIN_STEPS * speed.step_seconds, ROUND_SECONDS)
        return 2 * (COST_ROUNDS * a_round + (2 * WARM_UP_STEPS + MIN_STEPS) * speed.step_seconds)
    train, val, test = _image_counts(recipe)
    if isinstance(recipe, SceneRecipe):  # part A computes each image once; the time of the branch is negligible
        return (train + test) * speed.image_seconds
    epochs = recipe.train.epochs
    evaluated = test * (epochs + 1 if recipe.train.test_curve else 1)
    if recipe.train.select == "best":
        evaluated += val * (epochs + 1)  # once more at the end, with the model of the best epoch
    return epochs * -(-train // recipe.train.batch_size) * speed.step_seconds + evaluated * speed.image_seconds


def _image_counts(recipe: Recipe) -> tuple[int, int, int]:
    """Images of an epoch (mirror images included), of validation and of the test."""
    fields = recipe.flat()
    dataset = data_prep.get(fields["data.name"])
    train, test = dataset.official_counts["train"], dataset.official_counts["test"]
    if isinstance(dataset, ImageSet):
        kept, held_out = split_rows(train)
        return len(kept), len(held_out), test
    return train * (2 if fields["data.mirror"] else 1), 0, test


def kinds_of(runs: Sequence[Experiment]) -> dict[RunKind, Recipe]:
    """Return the kinds of some runs, each with a recipe, one with L_G if there is one."""
    found: dict[RunKind, Recipe] = {}
    for experiment in runs:
        recipe = network_recipe(experiment.recipe)
        kind = kind_of(recipe)
        if kind not in found or found[kind].flat().get("affinity.loss") == "none":
            found[kind] = recipe
    if not found:
        raise AffsupError("no runs to estimate")
    return found
