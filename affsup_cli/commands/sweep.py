"""`affsup sweep`: the runs that a table or figure needs and does not have yet."""

from __future__ import annotations

from typing import Annotated

import typer

from affsup_cli.commands.options import DATA_DIR, RUNS_DIR, DataDir, Device, RunsDir, Set


def sweep(
    table: Annotated[str, typer.Argument(help="Table or figure (`affsup list tables`).")],
    seeds: Annotated[int | None, typer.Option(help="Runs a cell, instead of the paper's number.")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only these cells: cifar10/resnet20, '*/base'.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and do nothing.")] = False,
    device: Device = None,
    settings: Set = None,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Run what a table or figure lacks, and only that.

    Stopped and called again, it goes on. The order is seed by seed, so that every cell has its first run early. Runs
    with --set depart from the recipe: the table marks them.

    \b
    affsup sweep table3 --dry-run
    affsup sweep table3 --only cifar10/resnet20 --seeds 3
    affsup sweep table3 --seeds 2 --set train.epochs=10
    affsup sweep table4
    """
    from affsup_cli.commands.console import console
    from affsup_cli.commands.embedded import prepare_embedded
    from affsup_cli.commands.sweeping import plan_sweep, run_sweep, wanted_experiments
    from affsup_cli.recipe import parse_override

    extra = dict(parse_override(text) for text in settings or [])
    if device is not None:
        extra["run.device"] = device
    wanted = wanted_experiments(table, seeds, only, extra)
    if not dry_run:
        prepare_embedded((experiment.recipe for experiment in wanted), data)
    plan = plan_sweep(table, wanted, data, runs)
    console.print(plan.table())
    if dry_run:
        console.print(plan.unprepared, style="yellow", markup=False)
        return
    run_sweep(plan, data, console)
    elsewhere = "" if runs == RUNS_DIR else f" --runs {runs}"
    console.print(f"all runs of this sweep are finished; `affsup report {table}{elsewhere}` shows them", markup=False)
