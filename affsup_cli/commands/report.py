"""`affsup report`: tables and figures from the finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.completion import complete_table
from affsup_cli.options import OutDir, RunsDir
from affsup_cli.resolve import REPORTS_DIR, RUNS_DIR

if TYPE_CHECKING:
    from affsup_cli.reporting.render.document import Report, Table

# Limits where several reports are printed: the page of each has everything.
_NOTES_SHOWN = 4
_FOOTNOTE_SHOWN = 160  # characters


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TABLE|FIGURE|FILE.toml|all]...",
            show_default=False,
            help="A name of `affsup list tables`; all or nothing: those of the paper.",
            autocompletion=complete_table,
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="csv,md,tex", help="Formats of the tables, separated by commas.")
    ] = "csv,md",
    out: OutDir = REPORTS_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Print and write tables and figures, and index.html with all of them, their runs and curves.

    Tables show the paper's numbers and those of the finished runs. A cell without runs is a dash. Runs that depart
    from a cell's recipe, such as a shorter schedule or a part of the data, fill it with a mark and a footnote. The
    runs that are compared differ only in their seed: those that follow the recipe if there are any, else those that
    fill the most cells of a column, then the longest.

    \b
    affsup report
    affsup report table3 figure5 --out paper
    affsup report table3 --format csv,md,tex
    """
    from affsup_cli.reporting.report import read_formats
    from affsup_cli.reporting.select.spec import load_spec, paper_names

    asked = names or ["all"]
    chosen = list(dict.fromkeys(name for given in asked for name in (paper_names() if given == "all" else [given])))
    for name in chosen:
        load_spec(name)
    print_reports(chosen, runs, out, read_formats(formats))


def print_reports(names: list[str], runs: Path, out: Path, formats: tuple[str, ...] = ("csv", "md")) -> None:
    """Build reports of the runs in `runs`, print them and the paths of their files in `out`."""
    from affsup_cli.reporting.report import build_report, write_index
    from affsup_cli.runs.index import RunIndex
    from affsup_cli.views.console import console, print_warning

    index = RunIndex(runs)
    made = []
    for name in names:
        with console.status(f"building {name}"):
            made.append(build_report(name, index, out, formats))
        _print_report(made[-1], alone=len(names) == 1)
    with console.status("building the page"):
        page = write_index(made, index, out)
    console.print()
    for warning in index.warnings:
        print_warning(warning)
    console.print(f"all reports with their runs and curves: {page}", style="green", markup=False)


def _print_report(made: Report, *, alone: bool) -> None:
    """Print a report; one of several without provenance, and with shortened footnotes and notes."""
    import textwrap

    from affsup_cli.views.console import console

    console.print(f"\n{made.title}", style="bold", markup=False)
    for table in made.content.tables:
        _print_table(table)
    console.print(made.content.caption, markup=False)
    for line in made.content.footnotes:
        shown = line if alone else textwrap.shorten(line, _FOOTNOTE_SHOWN, placeholder=" …")
        console.print(shown, markup=False)
    notes = [*made.provenance, *made.notes] if alone else list(made.notes)
    if not alone and len(notes) > _NOTES_SHOWN:
        # The last note names the command that fills the table.
        left = len(notes) - _NOTES_SHOWN
        notes = [*notes[: _NOTES_SHOWN - 1], f"{left} more notes on its page", notes[-1]]
    for note in notes:
        console.print(f"- {note}", markup=False)
    if made.paths:
        first, *others = made.paths
        written = ", ".join([str(first), *(path.name for path in others)])
        console.print(f"written: {written}", style="green", markup=False)


def _print_table(table: Table) -> None:
    import rich.box
    import rich.table
    from rich.text import Text

    from affsup_cli.views.console import console

    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for heading, *fields in zip(table.header, *table.rows, strict=True):
        longest = max(len(word) for text in (heading, *fields) for word in [*text.split(), ""])
        shown.add_column(Text(heading), overflow="fold", min_width=longest)
    for rows in table.groups():
        for row in rows:
            label, *fields = table.rows[row]
            texts = [label if row == rows[0] else "", *fields]
            shown.add_row(*map(Text, texts), end_section=row == rows[-1] > rows[0])
    if not console.is_terminal:  # A file or pipe has no width limit.
        shown.width = console.measure(shown, options=console.options.update(max_width=10_000)).maximum
    console.print(shown, soft_wrap=False, crop=False)
