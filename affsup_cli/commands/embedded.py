"""Data sets that ship with the install need no `affsup prepare` of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import data_prep
from affsup_cli.commands.console import console
from affsup_cli.errors import UsageError
from affsup_cli.recipe import Recipe, SceneSetRecipe
from data_prep.official import SceneSet


def prepare_embedded(recipes: Iterable[Recipe], data_dir: Path) -> None:
    """Prepare the data sets of `recipes` that take no files, and say so.

    Raises:
        UsageError: a recipe names a data set that does not exist, or that is not of its kind.
    """
    kinds = {recipe.flat()["data.name"]: isinstance(recipe, SceneSetRecipe) for recipe in recipes}
    for name, needs_scenes in kinds.items():
        dataset = data_prep.get(name)
        if isinstance(dataset, SceneSet) != needs_scenes:
            held = "scenes" if not needs_scenes else "labelled images"
            raise UsageError(f"data set '{name}' holds {held}, which this recipe cannot be trained on: take another")
        if dataset.embedded and not (data_dir / name).exists():
            data_prep.prepare(name, data_dir=data_dir)
            console.print(f"prepared {name} in {data_dir}: {dataset.summary}")
