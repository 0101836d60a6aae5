"""A table of one metric in the paper's layout (table 3): the paper's numbers, ours, and the differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from affsup_cli.reporting.document import DASH, MINUS, Content, Footnotes, Table, csv_bytes
from affsup_cli.reporting.experiments import spec_cells
from affsup_cli.reporting.match import Group, select_runs
from affsup_cli.reporting.runs import RunIndex, TrainedRun
from affsup_cli.reporting.spec import GridBlock, GridColumn, GridSpec
from affsup_cli.reporting.statistics import PairedDifference, Summary, paired_difference, summarize

_NUMBERS = (
    *("block", "column", "row", "n", "mean", "std", "ci_low", "ci_high", "paper_mean", "paper_std"),
    *("seeds", "runs", "departures", "data_digest", "data_official"),
)

_CAPTION = (
    "Ours: mean ± sample standard deviation (runs); paired by seed: mean [95 % interval, from two pairs on] (pairs)."
)


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of a block and the one group of runs that fills all its rows, so that they compare."""

    spec: GridColumn
    group: Group | None
    marks: str
    values: dict[str, dict[int, float]]
    paired: PairedDifference | None

    def ours(self, row: str) -> Summary | None:
        values = self.values.get(row)
        return summarize(list(values.values())) if values else None


def build_grid(spec: GridSpec, runs: RunIndex) -> Content:
    """Work out a grid from the runs there are.

    `.csv` is the table as shown: `block, row, entry`, then a column for each network of any block (empty where the
    block has no such network, a dash where there is no number). `.cells.csv` holds the numbers in full precision, a
    line for each cell and one for each paired difference, whose row is `TREATMENT-BASELINE`.
    """
    cells = {cell.key: cell for cell in spec_cells(spec)}
    footnotes = Footnotes()
    tables: list[Table] = []
    shown: list[dict[str, str]] = []
    numbers: list[dict[str, Any]] = []
    used: list[TrainedRun] = []
    notes: list[str] = []
    for block in spec.blocks:
        columns = []
        for column in block.columns:
            place = f"{block.key}/{column.key}"
            rows = {row: cells[f"{place}/{row}"] for row in spec.rows}
            selection = select_runs(rows, runs.trained, _fault(spec.metric))
            notes += [f"{place}: {text}" for text in selection.left_out]
            used += selection.group.members if selection.group else []
            columns.append(_column(spec, column, selection.group, footnotes))
        lines = list(_lines(spec, columns))
        labels = [column.label for column in block.columns]
        tables.append(Table((block.label, "", *labels), tuple(lines)))
        for row, entry, *texts in lines:
            shown.append({"block": block.label, "row": row, "entry": entry, **dict(zip(labels, texts, strict=True))})
        numbers += [line for column in columns for line in _numbers(spec, block, column)]
    networks = dict.fromkeys(column.label for block in spec.blocks for column in block.columns)
    return Content(
        caption=f"{spec.caption} {_CAPTION}",
        tables=tuple(tables),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(used),
        files={
            ".csv": csv_bytes(shown, ("block", "row", "entry", *networks)),
            ".cells.csv": csv_bytes(numbers, _NUMBERS),
        },
    )


def _fault(metric: str) -> Callable[[TrainedRun], str | None]:
    def fault(run: TrainedRun) -> str | None:
        value = run.result.metrics.get(metric)
        return None if isinstance(value, int | float) and math.isfinite(value) else f"{metric} is {value}"

    return fault


def _column(spec: GridSpec, column: GridColumn, group: Group | None, footnotes: Footnotes) -> _Column:
    if group is None:
        return _Column(column, None, "", {}, None)
    values = {
        row: {seed: run.result.metrics[spec.metric] * spec.scale for seed, run in sorted(by_seed.items())}
        for row, by_seed in group.runs.items()
    }
    paired = paired_difference(values.get(spec.treatment, {}), values.get(spec.baseline, {}))
    return _Column(column, group, footnotes.mark_departures(group.departures, group.data), values, paired)


def _lines(spec: GridSpec, columns: list[_Column]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a block as text: the row's label, what the line holds, and an entry a column."""
    with_paper = any(column.spec.paper for column in columns)
    for row, variant in spec.rows.items():
        if with_paper:
            yield variant.label, "paper", *(_paper_text(column, row) for column in columns)
        yield variant.label, "ours", *(_ours_text(column, row) for column in columns)
        if with_paper:
            yield variant.label, f"ours {MINUS} paper", *(_gap_text(column, row) for column in columns)
    label = f"{spec.rows[spec.treatment].label} {MINUS} {spec.rows[spec.baseline].label}"
    if with_paper:
        yield label, "paper", *(_paper_difference_text(spec, column) for column in columns)
    yield label, "ours, paired", *(_paired_text(column) for column in columns)


def _paper_text(column: _Column, row: str) -> str:
    if row not in column.spec.paper:
        return DASH
    mean, std = column.spec.paper[row]
    return f"{mean:.2f} ± {std:.2f}"


def _ours_text(column: _Column, row: str) -> str:
    ours = column.ours(row)
    if ours is None:
        return DASH
    spread = "" if ours.std is None else f" ± {ours.std:.2f}"
    return f"{ours.mean:.2f}{spread} ({ours.n}){column.marks}"


def _gap_text(column: _Column, row: str) -> str:
    ours = column.ours(row)
    if ours is None or row not in column.spec.paper:
        return DASH
    return f"{ours.mean - column.spec.paper[row][0]:+.2f}{column.marks}"


def _paper_difference_text(spec: GridSpec, column: _Column) -> str:
    paper = column.spec.paper
    if spec.treatment not in paper or spec.baseline not in paper:
        return DASH
    return f"{paper[spec.treatment][0] - paper[spec.baseline][0]:+.2f}"


def _paired_text(column: _Column) -> str:
    paired = column.paired
    if paired is None:
        return DASH
    interval = "" if paired.low is None else f" [{paired.low:+.2f}, {paired.high:+.2f}]"
    return f"{paired.mean:+.2f}{interval} ({len(paired.seeds)}){column.marks}"


def _numbers(spec: GridSpec, block: GridBlock, column: _Column) -> Iterator[dict[str, Any]]:
    """Yield the numbers of a column: a line a row, and one for the paired difference."""
    place = {"block": block.key, "column": column.spec.key}
    group = column.group
    for row in spec.rows:
        ours = column.ours(row)
        paper = column.spec.paper.get(row)
        line = {**place, "row": row, "n": ours.n if ours else 0}
        if ours and group:
            chosen = [run for _, run in sorted(group.runs[row].items())]
            line |= {"mean": ours.mean, "std": ours.std, **_origin(group, list(column.values[row]), chosen)}
        if paper:
            line |= {"paper_mean": paper[0], "paper_std": paper[1]}
        yield line
    paired = column.paired
    line = {**place, "row": f"{spec.treatment}-{spec.baseline}", "n": len(paired.seeds) if paired else 0}
    if paired and group:
        chosen = [group.runs[row][seed] for seed in paired.seeds for row in (spec.baseline, spec.treatment)]
        line |= {"mean": paired.mean, "ci_low": paired.low, "ci_high": paired.high}
        line |= _origin(group, list(paired.seeds), chosen)
    if spec.treatment in column.spec.paper and spec.baseline in column.spec.paper:
        line["paper_mean"] = column.spec.paper[spec.treatment][0] - column.spec.paper[spec.baseline][0]
    yield line


def _origin(group: Group, seeds: list[int], runs: list[TrainedRun]) -> dict[str, Any]:
    return {
        "seeds": " ".join(map(str, seeds)),
        "runs": " ".join(run.folder.name for run in runs),
        "departures": "; ".join(group.departures),
        "data_digest": group.data.digest,
        "data_official": group.data.official,
    }
