"""`affsup list`: what there is."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.commands.options import DATA_DIR, RUNS_DIR, DataDir, RunsDir

if TYPE_CHECKING:
    from rich.console import RenderableType


class Kind(StrEnum):
    """What can be listed."""

    RECIPES = "recipes"
    TABLES = "tables"
    DATASETS = "datasets"
    RUNS = "runs"


def list_(
    kind: Annotated[Kind | None, typer.Argument(help="One kind only.")] = None,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """List recipes, tables and figures, data sets, runs.

    \b
    affsup list
    affsup list runs
    """
    from affsup_cli.commands import inventory
    from affsup_cli.commands.console import console

    listing: dict[Kind, Callable[[], RenderableType]] = {
        Kind.RECIPES: inventory.recipes,
        Kind.TABLES: inventory.tables,
        Kind.DATASETS: lambda: inventory.datasets(data),
        Kind.RUNS: lambda: inventory.runs(runs),
    }
    for each in [kind] if kind else list(Kind):
        console.print(listing[each]())
