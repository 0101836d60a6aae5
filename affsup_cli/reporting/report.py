"""Build the files of a table or figure by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from affsup_cli.reporting.render.document import Content, Report, csv_bytes
from affsup_cli.reporting.render.markdown import markdown
from affsup_cli.reporting.select.experiments import experiments, spec_cells
from affsup_cli.reporting.select.match import changed_fields
from affsup_cli.reporting.select.spec import (
    CostSpec,
    CurvesSpec,
    EmbeddingSpec,
    GridSpec,
    RecallSpec,
    RelationsSpec,
    Spec,
    TargetsSpec,
    load_spec,
    short_name,
)
from affsup_cli.runs.folder import write_out
from affsup_cli.runs.index import Run, RunIndex
from data_prep.errors import UsageError, printable, quote

FORMATS = ("csv", "md", "tex")
"""File formats of tables."""

INDEX = "index.html"


def read_formats(text: str) -> tuple[str, ...]:
    """Read formats after commas, such as "csv,md".

    Raises:
        UsageError: there is none, or one is unknown.
    """
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for each in formats:
        if each not in FORMATS:
            raise UsageError(f"--format {quote(text)}: no format {quote(each)}: known are {', '.join(FORMATS)}")
    return formats


def build_report(name: str, runs: RunIndex, out: Path, formats: Iterable[str] = ("csv", "md")) -> Report:
    """Write the files of a table or figure into `out` and return the report: the same runs always give the same bytes.

    Depending on `formats` these are the page `NAME.md`, numbers in `NAME.csv` and further CSV files, footnotes in
    `NAME.footnotes.csv`, and tables as LaTeX in `NAME.tex`; a figure has a `NAME.png` as well.

    Raises:
        UsageError: there is no such table or figure.
        AffsupError: `out` cannot be written to.
    """
    spec = load_spec(name)
    content = _build(spec, runs)
    missing = _missing(spec, runs)
    wanted = len(experiments(spec))
    notes = [*content.notes, *_unfinished(spec, runs)]
    if missing:
        lacking = f"{missing} of {wanted} runs exactly as in this recipe are missing"
        notes.append(f"{lacking}: `affsup sweep {name}` trains them")
    report = Report(short_name(name), spec.title, content, tuple(_provenance(content.used)), tuple(notes), missing)
    paths = []
    for ending, data in _files(report, formats).items():
        path = out / f"{short_name(name)}{ending}"
        write_out(path, data)
        paths.append(path)
    return dataclasses.replace(report, paths=tuple(paths))


def write_index(reports: Iterable[Report], runs: RunIndex, out: Path) -> Path:
    """Write the page of `reports` and their runs into `out`, and return its path.

    Raises:
        AffsupError: `out` cannot be written to.
    """
    from affsup_cli.reporting.render.page import index_page

    path = out / INDEX
    write_out(path, printable(index_page(list(reports), runs.warnings)).encode())
    return path


def _files(report: Report, formats: Iterable[str]) -> dict[str, bytes]:
    """Return the content of a report's files by file name suffix."""
    content = report.content
    files = {".md": printable(markdown(report)).encode()} if "md" in formats else {}
    files |= {ending: data for ending, data in content.files.items() if "csv" in formats or not ending.endswith(".csv")}
    if "csv" in formats and content.footnotes:
        lines = [dict(zip(("mark", "text"), line.split(" ", 1), strict=True)) for line in content.footnotes]
        files[".footnotes.csv"] = csv_bytes(lines, ("mark", "text"))
    if "tex" in formats and content.tables:
        from affsup_cli.reporting.render.latex import latex_tables

        files[".tex"] = printable(latex_tables(report)).encode()
    return files


def _build(spec: Spec, runs: RunIndex) -> Content:
    # Each kind imports its own large libraries: a table does not need matplotlib.
    match spec:
        case GridSpec():
            from affsup_cli.reporting.kinds.grid import build_grid

            return build_grid(spec, runs)
        case CostSpec():
            from affsup_cli.reporting.kinds.cost import build_cost

            return build_cost(spec, runs)
        case CurvesSpec():
            from affsup_cli.reporting.kinds.curves import build_curves

            return build_curves(spec, runs)
        case EmbeddingSpec():
            from affsup_cli.reporting.kinds.embedding import build_embedding

            return build_embedding(spec, runs)
        case RecallSpec():
            from affsup_cli.reporting.kinds.recall import build_recall

            return build_recall(spec, runs)
        case RelationsSpec():
            from affsup_cli.reporting.kinds.relations import build_relations

            return build_relations(spec, runs)
        case TargetsSpec():
            from affsup_cli.reporting.kinds.targets import build_targets

            return build_targets(spec, runs)


def _provenance(used: Iterable[Run]) -> list[str]:
    """Return lines with the machines, code versions and dates of the runs."""
    environments = [run.environment for run in used]
    if not environments:
        return []
    machines = {
        f"{ran.device_name} ({ran.device}, {ran.threads} threads), Python {ran.python}, torch {ran.torch}"
        for ran in environments
    }
    code = {ran.code for ran in environments}
    days = sorted({ran.started[:10] for ran in environments})
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [f"Machine: {'; '.join(sorted(machines))}", f"Code: {'; '.join(sorted(code))}", f"Runs started: {period}"]


def _unfinished(spec: Spec, runs: RunIndex) -> list[str]:
    """Return a line for each unfinished run of the report's cells, with the command that continues it."""
    if isinstance(spec, CostSpec):
        return []
    cells = spec_cells(spec)
    stopped = [run for run in runs.unfinished if any(changed_fields(cell, run) is not None for cell in cells)]
    return [
        f"Not finished: {run.folder.name}. Unless it is still running, continue it with "
        f"`affsup train {run.folder.path / 'recipe.toml'} --name {run.folder.name} --resume`"
        for run in stopped
    ]


def _missing(spec: Spec, runs: RunIndex) -> int:
    """Count the runs that the full table lacks."""
    found = [runs.find(experiment.recipe, experiment.kind) for experiment in experiments(spec)]
    return sum(folder is None or not folder.finished for folder in found)
