"""Data sets that ship with the install need no `affsup prepare` of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import data_prep
from affsup_cli.commands.console import console
from affsup_cli.recipe import Recipe


def prepare_embedded(recipes: Iterable[Recipe], data_dir: Path) -> None:
    """Prepare the data sets of `recipes` that take no files, and say so.

    Raises:
        UsageError: a recipe names a data set that does not exist.
    """
    for name in dict.fromkeys(recipe.flat()["data.name"] for recipe in recipes):
        dataset = data_prep.get(name)
        if dataset.embedded and not (data_dir / name).exists():
            data_prep.prepare(name, data_dir=data_dir)
            console.print(f"prepared {name} in {data_dir}: {dataset.summary}")
