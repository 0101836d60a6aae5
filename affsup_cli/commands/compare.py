"""`affsup compare`: a comparison of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.completion import complete_run
from affsup_cli.options import OutDir, RunsDir
from affsup_cli.resolve import REPORTS_DIR, RUNS_DIR, run_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import RenderableType

    from affsup_cli.reporting.compare import ComparedRun, Comparison


def compare(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or their names under --runs or the beginnings of these; two or more.",
            autocompletion=complete_run,
        ),
    ],
    out: OutDir = REPORTS_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Compare runs: differences of recipes and machines, metrics, curves.

    The best number is bold, the difference to the first run in brackets. Writes compare.png with the curves of all
    runs, and their numbers as compare.csv. Unfinished runs are shown up to their newest epoch.

    \b
    affsup compare runs/base runs/with-affinity
    affsup compare runs/one runs/two runs/three --out comparison
    """
    from affsup_cli.reporting.compare import compare_runs, write_curves
    from affsup_cli.runs.folder import RunFolder
    from affsup_cli.views.console import console

    comparison = compare_runs([RunFolder.open(run_path(name, runs)) for name in named])
    for number, run in enumerate(comparison.runs, start=1):
        console.print(f"[bold]{number}[/bold]  ", end="")
        console.print(f"{run.label}  {_state(run)}", markup=False)
    for part in (
        _differences("recipes", comparison.recipes, len(comparison.runs)),
        _differences("machines, code and data", comparison.environments, len(comparison.runs)),
        _metrics(comparison),
    ):
        console.print()
        console.print(part)
    console.print()
    for note in comparison.notes:
        console.print(note, markup=False)
    written = write_curves(comparison, out)
    if written:
        console.print(f"written: {', '.join(map(str, written))}", style="green", markup=False)
    else:
        console.print("no curves: these runs have none in common")


def _state(run: ComparedRun) -> str:
    return f"finished, {run.epochs} epochs" if run.finished else f"unfinished, {run.epochs} of {run.planned} epochs"


def _differences(title: str, rows: Mapping[str, tuple[Any, ...]], runs: int) -> RenderableType:
    from rich.markup import escape

    from affsup_cli.views.inventory import plain
    from affsup_cli.views.tables import FittingTable

    if not rows:
        return f"[bold]{title}[/bold]: no difference"
    shown = [(key, *(escape(_short(plain(value))) for value in row)) for key, row in rows.items()]
    return FittingTable(f"{title}: differences", ("", *map(str, range(1, runs + 1))), shown)


def _short(value: str) -> str:
    """Return a checksum or commit shortened to 12 digits."""
    return value[:12] if len(value) in (40, 64) and set(value) <= set("0123456789abcdef") else value


def _metrics(comparison: Comparison) -> RenderableType:
    from affsup_cli.reporting.compare import best_runs
    from affsup_cli.views.tables import FittingTable

    rows = []
    for metric, values in comparison.metrics.items():
        best = best_runs(comparison, metric)
        cells = [_number(metric, value, None if place == 0 else values[0]) for place, value in enumerate(values)]
        rows.append((metric, *(f"[bold]{cell}[/bold]" if place in best else cell for place, cell in enumerate(cells))))
    if not rows:
        return "[bold]numbers[/bold]: none in common"
    heads = tuple(str(number) for number in range(1, len(comparison.runs) + 1))
    return FittingTable("numbers (difference to 1)", ("", *heads), rows, right=heads)


def _number(metric: str, value: float | None, first: float | None) -> str:
    from affsup_cli.views.console import metric_text

    if value is None:
        return "–"
    text = metric_text(metric, value)
    if first is None:
        return text
    return f"{text} ({100 * (value - first):+z.2f})" if text.endswith("%") else f"{text} ({value - first:+z.4f})"
