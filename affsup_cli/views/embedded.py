"""Automatic preparation of the data sets that need no files: digits and the generated scenes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import data_prep
from affsup_cli.recipe import Recipe, SceneRecipe, SceneSetRecipe
from affsup_cli.views.console import console
from data_prep.errors import UsageError
from data_prep.raw import SceneSet


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
    if isinstance(dataset, SceneSet) != isinstance(recipe, SceneSetRecipe):
        held = "scenes" if isinstance(dataset, SceneSet) else "labelled images"
    elif isinstance(dataset, SceneSet) and isinstance(recipe, SceneRecipe) and not dataset.categories:
        held = "scenes without categories"
    else:
        return
    raise UsageError(f"data set '{name}' holds {held}, which {recipe.name} cannot be trained on: take another")
