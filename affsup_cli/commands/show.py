"""`affsup show`: details of a recipe, table, data set or run."""

from __future__ import annotations

from typing import Annotated

import typer

from affsup_cli.completion import complete_anything
from affsup_cli.options import DataDir, RunsDir
from affsup_cli.resolve import DATA_DIR, RUNS_DIR


def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe, table, figure, data set or run; or a TOML file.", autocompletion=complete_anything
        ),
    ],
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Show the fields of a recipe, the cells of a table, the splits of a data set or the numbers of a run.

    \b
    affsup show minibatch
    affsup show table3
    affsup show cifar10
    """
    from affsup_cli.views import inventory
    from affsup_cli.views.console import console

    for part in inventory.describe(name, data, runs):
        console.print(part)
