"""Automatic preparation of the data sets that need no files: digits and the generated scenes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import data_prep
from affsup_cli.recipe import RECIPE_OF_TASK, Recipe, SceneRecipe, SceneSetRecipe
from affsup_cli.views.console import console
from data_prep.errors import UsageError
from data_prep.raw import AnyDataSet, ImageSet, SceneSet


def prepare_embedded(recipes: Iterable[Recipe], data_dir: Path) -> None:
    """Prepare those data sets of `recipes` that need no files, and print a line for each.

    Raises:
        UsageError: a recipe, or that of the run which it builds on, names a data set that does not exist, or that is
            not of its kind.
    """
    asked = list(recipes)
    for recipe in asked:
        for each in (recipe, recipe.prerequisite()):
            if each is not None:
                _check_kind(each, data_dir)
    for name in dict.fromkeys(recipe.flat()["data.name"] for recipe in asked):
        dataset = data_prep.get(name, data_dir)
        if dataset.embedded and not (data_dir / name).exists():
            data_prep.prepare(name, data_dir=data_dir)
            console.print(f"prepared {name} in {data_dir}: {dataset.summary}")


def _check_kind(recipe: Recipe, data_dir: Path) -> None:
    name = recipe.flat()["data.name"]
    dataset = data_prep.get(name, data_dir)
    if _fits(dataset, type(recipe)):
        return
    held = "labelled images" if isinstance(dataset, ImageSet) else "scenes"
    if isinstance(dataset, SceneSet) and isinstance(recipe, SceneRecipe):
        held = "scenes without categories"
    fitting = [
        other
        for other, found in data_prep.datasets().items()
        if _fits(found, type(recipe)) and (isinstance(recipe, SceneRecipe) or not getattr(found, "categories", False))
    ]
    tasks = [task for task, kind in RECIPE_OF_TASK.items() if _fits(dataset, kind)]
    raise UsageError(
        f"data set '{name}' holds {held}, for {', '.join(tasks)}: {recipe.task} takes {', '.join(fitting)}"
    )


def _fits(dataset: AnyDataSet, kind: type[Recipe]) -> bool:
    """Return whether recipes of a kind can be trained on a data set."""
    if isinstance(dataset, ImageSet):
        return not issubclass(kind, SceneSetRecipe)
    return issubclass(kind, SceneSetRecipe) and (dataset.categories or not issubclass(kind, SceneRecipe))
