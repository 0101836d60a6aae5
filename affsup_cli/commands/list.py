"""`affsup list`: recipes, tables, data sets and runs."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.completion import complete_field
from affsup_cli.options import DataDir, RunsDir, RunState
from affsup_cli.resolve import DATA_DIR, RUNS_DIR
from data_prep.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType


class ListingKind(StrEnum):
    """Kinds of entries."""

    RECIPES = "recipes"
    TABLES = "tables"
    DATASETS = "datasets"
    RUNS = "runs"


def list_(
    kind: Annotated[ListingKind | None, typer.Argument(help="One kind only.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            autocompletion=complete_field,
            help="Only runs whose recipe has this value, such as data.name=voc07; * and ? are wildcards. Repeatable.",
        ),
    ] = None,
    state: Annotated[RunState | None, typer.Option(help="Only runs in this state.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Sort runs by name, started, seconds or a metric.  [default: name]"),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Sort runs from the largest.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of runs.")] = None,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """List recipes, tables and figures, data sets, runs.

    \b
    affsup list
    affsup list runs
    affsup list runs --where task=relnet --where affinity.gamma=2
    affsup list runs --sort test_map_50 --reverse --limit 10
    affsup list runs --state unfinished
    """
    given = {"--where": where, "--state": state, "--sort": sort, "--reverse": reverse, "--limit": limit}
    if kind != ListingKind.RUNS and (misplaced := [option for option, value in given.items() if value]):
        raise UsageError(f"{misplaced[0]} is an option of `affsup list runs`: affsup list runs {misplaced[0]} …")
    from affsup_cli.views import inventory
    from affsup_cli.views.console import console
    from affsup_cli.views.run_list import run_list

    listing: dict[ListingKind, Callable[[], RenderableType]] = {
        ListingKind.RECIPES: inventory.recipes,
        ListingKind.TABLES: inventory.tables,
        ListingKind.DATASETS: lambda: inventory.datasets(data),
        ListingKind.RUNS: lambda: run_list(runs, where or (), state, sort or "name", reverse, limit),
    }
    for each in [kind] if kind else list(ListingKind):
        console.print(listing[each]())
