"""`affsup validate`: check recipe and table files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affsup_cli.options import expand_user


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", callback=expand_user, help="TOML files of recipes, tables and figures."),
    ],
) -> None:
    """Check files of recipes, tables and figures, and train nothing.

    A file with `kind` is a table or figure; each of its cells is resolved. Any other is a recipe. Exit code 1: a file
    has a mistake.

    \b
    affsup validate my-recipe.toml
    affsup validate my-table.toml my-recipe.toml
    """
    from affsup_cli.views.console import console
    from data_prep.errors import AffsupError

    invalid = 0
    for path in files:
        try:
            console.print(f"valid: {path}: {_summary(path)}", markup=False)
        except AffsupError as error:
            invalid += 1
            console.print(f"invalid: {error}", style="red", markup=False)
    if invalid:
        raise AffsupError(f"{invalid} of {len(files)} files invalid")


def _summary(path: Path) -> str:
    from affsup_cli.recipe import load_recipe, parse_toml
    from affsup_cli.reporting.select.experiments import experiments, spec_cells
    from affsup_cli.reporting.select.spec import read_spec
    from data_prep.errors import counted

    if "kind" in parse_toml(path):
        spec = read_spec(path)
        runs = f"{counted(len(spec_cells(spec)), 'cell')}, {counted(len(experiments(spec)), 'run')}"
        return f"{spec.kind}, {runs}"
    recipe = load_recipe(str(path))
    return f"recipe of {recipe.task} on {recipe.flat()['data.name']}"
