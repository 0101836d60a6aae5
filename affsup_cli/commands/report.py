"""`affsup report`: tables and figures from the runs there are."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.commands.options import REPORTS_DIR, RUNS_DIR, OutDir, RunsDir

if TYPE_CHECKING:
    from affsup_cli.reporting.document import Report, Table


def report(
    names: Annotated[
        list[str],
        typer.Argument(metavar="TABLE|FIGURE|all", help="`affsup list tables` names them; all: those of the paper."),
    ],
    out: OutDir = REPORTS_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Print and write tables and figures.

    The paper's numbers and, beside them, those of the runs there are. A cell without runs is a dash. Runs that depart
    from a cell's recipe, such as a shorter schedule or a part of the data, fill it under a mark and a footnote. Runs
    that stand together differ in their seed only: faithful ones if there are any, else those that fill the most cells
    of a column, then the longest.

    \b
    affsup report table3
    affsup report table3 figure5 --out paper
    affsup report all
    """
    from affsup_cli.reporting.spec import load_spec, paper_names

    chosen = list(dict.fromkeys(name for given in names for name in (paper_names() if given == "all" else [given])))
    for name in chosen:
        load_spec(name)
    print_reports(chosen, runs, out)


def print_reports(names: list[str], runs: Path, out: Path) -> None:
    """Make reports of the runs in `runs`, print them and the paths of their files in `out`."""
    from affsup_cli.commands.console import console
    from affsup_cli.reporting.report import build_report
    from affsup_cli.reporting.runs import RunIndex

    index = RunIndex(runs)
    for name in names:
        with console.status(f"making {name}"):
            made = build_report(name, index, out)
        _print_report(made)
    for warning in index.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _print_report(made: Report) -> None:
    from affsup_cli.commands.console import console

    console.print(f"\n{made.title}", style="bold", markup=False)
    for table in made.tables:
        _print_table(table)
    for line in (made.caption, *made.footnotes):
        console.print(line, markup=False)
    for note in made.notes:
        console.print(f"- {note}", markup=False)
    for path in made.paths:
        console.print(f"written: {path}", style="green", markup=False)


def _print_table(table: Table) -> None:
    import rich.box
    import rich.table
    from rich.text import Text

    from affsup_cli.commands.console import console

    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for heading in table.header:
        shown.add_column(Text(heading), overflow="fold")
    for label, lines in itertools.groupby(table.rows, key=lambda line: line[0]):
        entries = [line[1:] for line in lines]
        for place, texts in enumerate(entries):
            last = place == len(entries) - 1 > 0
            shown.add_row(*(Text(text) for text in ("" if place else label, *texts)), end_section=last)
    console.print(shown, soft_wrap=False)
