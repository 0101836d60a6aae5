"""The runs that tables and figures need, of which kinds they are, and how long they take at a kind's speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import data_prep
from affsup_cli.engine.cost import LEAST_STEPS, ROUND_SECONDS, WARM_UP_STEPS
from affsup_cli.recipe import DetectionRecipe, MinibatchRecipe, Recipe, SceneRecipe
from affsup_cli.reporting.experiments import Experiment, experiments
from affsup_cli.reporting.runs import training_key
from affsup_cli.reporting.spec import load_spec
from affsup_cli.sweeps.worker import COST_ROUNDS
from data_prep.errors import AffsupError
from data_prep.labelled import split_rows
from data_prep.raw import ImageSet

RunKey = tuple[str, str]
"""Equal for experiments that one run serves."""


class Kind(NamedTuple):
    """What the time of a step depends on. The form of L_G, and of a set of scenes all but the size, hardly count."""

    task: str
    network: str
    data: str

    def __str__(self) -> str:
        return " ".join(self)


@dataclass(frozen=True)
class Speed:
    """How fast runs of a kind are.

    Attributes:
        step_seconds: median time of a training step.
        steps: how many were timed.
        image_seconds: time of evaluating one image, metrics included.
        images: how many were timed.
    """

    step_seconds: float
    steps: int
    image_seconds: float
    images: int


def needed_runs(table: str) -> dict[RunKey, Experiment]:
    """Return the runs of a table or figure, each once, those included that others build on."""
    found: dict[RunKey, Experiment] = {}
    for experiment in experiments(load_spec(table)):
        found[experiment.kind, training_key(experiment.recipe)] = experiment
        before = experiment.recipe.prerequisite()
        if before is not None:
            found.setdefault(("train", training_key(before)), Experiment(experiment.keys, before))
    return found


def network_recipe(recipe: Recipe) -> DetectionRecipe | MinibatchRecipe:
    """Return the recipe of the network that takes the time: of scene categories that of part A."""
    if isinstance(recipe, SceneRecipe):
        return recipe.network
    if isinstance(recipe, DetectionRecipe | MinibatchRecipe):
        return recipe
    raise AssertionError(f"no time is known of {type(recipe).__name__}")


def kind_of(recipe: Recipe) -> Kind:
    """Return what kind of run it is."""
    of_network = network_recipe(recipe)
    if isinstance(of_network, DetectionRecipe):
        data = f"{of_network.data.short_side}x{of_network.data.long_side}"
    else:
        data = of_network.data.name
    return Kind(of_network.task, of_network.model.arch, data)


def seconds_of(experiment: Experiment, speeds: Mapping[Kind, Speed]) -> float:
    """Return how long a run takes, on the whole of its data set, at the speeds of the kinds."""
    recipe = experiment.recipe
    speed = speeds[kind_of(recipe)]
    if experiment.baseline is not None:
        a_round = max(LEAST_STEPS * speed.step_seconds, ROUND_SECONDS)
        return 2 * (COST_ROUNDS * a_round + (2 * WARM_UP_STEPS + LEAST_STEPS) * speed.step_seconds)
    train, val, test = _image_counts(recipe)
    if isinstance(recipe, SceneRecipe):  # part A sees each image once; what learns from it takes next to nothing
        return (train + test) * speed.image_seconds
    epochs = recipe.train.epochs
    evaluated = test * (epochs + 1 if recipe.train.test_curve else 1)
    if recipe.train.select == "best":
        evaluated += val * (epochs + 1)  # at the end once more, with the best epoch's model
    return epochs * -(-train // recipe.train.batch_size) * speed.step_seconds + evaluated * speed.image_seconds


def _image_counts(recipe: Recipe) -> tuple[int, int, int]:
    """Images that an epoch passes, of validation and for testing, mirror images included."""
    fields = recipe.flat()
    dataset = data_prep.get(fields["data.name"])
    train, test = dataset.official_counts["train"], dataset.official_counts["test"]
    if isinstance(dataset, ImageSet):
        kept, held_out = split_rows(train)
        return len(kept), len(held_out), test
    return train * (2 if fields["data.mirror"] else 1), 0, test


def kinds_of(runs: Sequence[Experiment]) -> dict[Kind, Recipe]:
    """Return the kinds among some runs, each with a recipe of it: one with L_G where there is one."""
    found: dict[Kind, Recipe] = {}
    for experiment in runs:
        recipe = network_recipe(experiment.recipe)
        kind = kind_of(recipe)
        if kind not in found or found[kind].flat().get("affinity.loss") == "none":
            found[kind] = recipe
    if not found:
        raise AffsupError("no runs to estimate")
    return found
