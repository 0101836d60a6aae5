"""A table in the paper's layout (tables 1-3 and 5-7): the paper's numbers, ours, and the differences."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.render.document import DASH, MINUS, Content, Source, Table, csv_bytes
from affsup_cli.reporting.select.experiments import Cell, spec_cells
from affsup_cli.reporting.select.match import Group, select_runs
from affsup_cli.reporting.select.spec import GridBlock, GridColumn, GridEntry, GridSpec
from affsup_cli.reporting.select.statistics import PairedDifference, Summary, is_finite, paired_difference, summarize
from affsup_cli.runs.index import RunIndex, TrainedRun

_CSV_COLUMNS = (
    *(
        "block",
        "column",
        "row",
        "metric",
        "n",
        "mean",
        "std",
        "ci_low",
        "ci_high",
        "paper_mean",
        "paper_std",
        "elsewhere",
    ),
    *("seeds", "runs", "marks", "data_digest", "data_official"),
)

_CAPTION = (
    "Ours: mean ± sample standard deviation (runs); paired by seed: mean [95 % interval, from two pairs on] (pairs)."
)


@dataclasses.dataclass(frozen=True)
class _GridValue:
    """An entry with its values by seed, scaled; `group` is the group of runs of its column or block."""

    label: str
    entry: GridEntry
    group: Group | None
    marks: str
    values: dict[int, float]

    @property
    def ours(self) -> Summary | None:
        return summarize(list(self.values.values())) if self.values else None

    @property
    def source(self) -> Source | None:
        return Source(self.label, tuple(self.runs(self.values)), self.marks) if self.group else None

    def runs(self, seeds: Iterable[int]) -> list[TrainedRun]:
        return [self.group.runs[self.entry.cell][seed] for seed in seeds] if self.group else []


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two entries of one group, compared by seed."""

    treatment: _GridValue
    baseline: _GridValue

    @property
    def paired(self) -> PairedDifference | None:
        return paired_difference(self.treatment.values, self.baseline.values)

    @property
    def paper(self) -> float | None:
        treatment, baseline = self.treatment.entry.paper, self.baseline.entry.paper
        return treatment.mean - baseline.mean if treatment and baseline else None


def build_grid(spec: GridSpec, runs: RunIndex) -> Content:
    """Build a grid from the finished runs.

    `.csv` is the table as shown: `block, row, entry`, then every column of any block (empty where the block has no such
    column, a dash where there is no number). `.cells.csv` has the numbers in full precision: one line for each entry
    and each paired difference, whose row (or column, where columns are compared) is `TREATMENT-BASELINE`.
    """
    cells = {cell.key: cell for cell in spec_cells(spec)}
    footnotes = Footnotes()
    tables: list[Table] = []
    shown: list[dict[str, str]] = []
    numbers: list[dict[str, Any]] = []
    used: list[TrainedRun] = []
    notes: list[str] = []
    means: dict[tuple[int, int, int], float] = {}
    of_blocks: list[dict[tuple[str, str], _GridValue]] = []
    for block in spec.blocks:
        filled: dict[tuple[str, str], _GridValue] = {}
        for place, entries in _comparable_entries(spec, block):
            group, found, remarks = _fill_entries(spec, block, entries, cells, runs, footnotes)
            filled |= {(each.entry.column, each.entry.row): each for each in found}
            notes += [f"{place}: {remark}" for remark in [*remarks, *_missing_metrics(block, found)]]
            used += group.members if group else []
        of_blocks.append(filled)
    for number, (block, filled) in enumerate(zip(spec.blocks, of_blocks, strict=True)):
        places = itertools.product(enumerate(spec.rows), enumerate(block.columns))
        means |= {
            (number, row, column): summary.mean
            for (row, row_key), (column, heading) in places
            if (summary := filled[heading.key, row_key].ours)
        }
        lines = list(_lines(spec, block, filled, footnotes))
        labels = [column.label for column in block.columns]
        sources = {
            (row, column): source
            for row, line in enumerate(lines)
            for column, source in enumerate(line.sources, start=2)
            if source and source.runs
        }
        tables.append(
            Table((block.label, "", *labels), tuple((line.row, line.entry, *line.texts) for line in lines), sources)
        )
        for line in lines:
            row, entry, texts = line.row, line.entry, line.texts
            shown.append({"block": block.label, "row": row, "entry": entry, **dict(zip(labels, texts, strict=True))})
        numbers += _csv_rows(spec, block, filled)
    columns = dict.fromkeys(column.label for block in spec.blocks for column in block.columns)
    files = {
        ".csv": csv_bytes(shown, ("block", "row", "entry", *columns)),
        ".cells.csv": csv_bytes(numbers, _CSV_COLUMNS),
    }
    if spec.heat_map and means:
        from affsup_cli.reporting.render.heat_map import heat_map_png

        headings = [(block.label, [column.label for column in block.columns]) for block in spec.blocks]
        labels = [row.label for row in spec.rows.values()]
        files[".png"] = heat_map_png(spec.title, labels, headings, means, footnotes.lines())
    return Content(
        caption=f"{spec.caption} {_CAPTION}",
        tables=tuple(tables),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(used),
        files=files,
    )


def _comparable_entries(spec: GridSpec, block: GridBlock) -> Iterator[tuple[str, list[GridEntry]]]:
    """Yield the entries that one group of runs fills so that they are comparable, with a name for notes.

    These are the entries of a column where rows are compared and columns show different runs; else those of the block.
    """
    entries = spec.entries(block)
    if spec.compare == "rows" and spec.columns_differ_in_runs:
        for column, of_column in itertools.groupby(entries, key=lambda entry: entry.column):
            yield f"{block.key}/{column}", list(of_column)
    else:
        yield block.key, entries


def _runs_label(spec: GridSpec, block: GridBlock, entry: GridEntry) -> str:
    """Return the label of an entry's runs: block, column and row, as far as they distinguish runs."""
    parts = [block.label]
    parts += [_column_label(block, entry.column)] if spec.columns_differ_in_runs else []
    parts += [spec.rows[entry.row].label] if spec.rows_differ_in_runs else []
    return ", ".join(parts)


def _fill_entries(
    spec: GridSpec,
    block: GridBlock,
    entries: Sequence[GridEntry],
    cells: dict[str, Cell],
    runs: RunIndex,
    footnotes: Footnotes,
) -> tuple[Group | None, list[_GridValue], list[str]]:
    metrics = list(dict.fromkeys(entry.metric for entry in entries))
    selection = select_runs({entry.cell: cells[entry.cell] for entry in entries}, runs.trained, _metrics_fault(metrics))
    group = selection.group
    if group is None:
        empty = [_GridValue(_runs_label(spec, block, entry), entry, None, "", {}) for entry in entries]
        return None, empty, selection.remarks(footnotes)
    marks = footnotes.mark_departures(group.departures, group.data)
    filled = [
        _GridValue(
            _runs_label(spec, block, entry),
            entry,
            group,
            marks,
            {
                seed: run.result.metrics[entry.metric] * entry.scale
                for seed, run in sorted(group.runs.get(entry.cell, {}).items())
                if run.result.metrics.get(entry.metric) is not None
            },
        )
        for entry in entries
    ]
    return group, filled, selection.remarks(footnotes)


def _metrics_fault(metrics: Sequence[str]) -> Callable[[TrainedRun], str | None]:
    """Return the check of runs: every metric is finite, and at least one is present."""

    def fault(run: TrainedRun) -> str | None:
        found = {metric: run.result.metrics[metric] for metric in metrics if run.result.metrics.get(metric) is not None}
        for metric, value in found.items():
            if not is_finite(value):
                return f"{metric} is {value}"
        return None if found else f"no {' or '.join(metrics)}"

    return fault


def _missing_metrics(block: GridBlock, filled: Iterable[_GridValue]) -> Iterator[str]:
    """Yield notes on runs without a metric that the paper prints, or any metric of a column without paper numbers."""
    paper = {column.key: column.paper for column in block.columns}
    for each in filled:
        entry = each.entry
        if each.group and (entry.paper or not paper[entry.column]):
            of_cell = each.group.runs.get(entry.cell, {})
            if names := [run.folder.name for seed, run in sorted(of_cell.items()) if seed not in each.values]:
                yield f"no {entry.metric} in {', '.join(names)}"


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of a block as text: label of the row, kind of entry, and one text with its source per column."""

    row: str
    entry: str
    texts: tuple[str, ...]
    sources: tuple[Source | None, ...] = ()


def _lines(
    spec: GridSpec, block: GridBlock, filled: dict[tuple[str, str], _GridValue], footnotes: Footnotes
) -> Iterator[_Line]:
    """Yield the lines of a block."""
    with_paper = any(column.paper for column in block.columns)
    keys = [column.key for column in block.columns]
    for row, variant in spec.rows.items():
        line = [filled[key, row] for key in keys]
        sources = tuple(each.source for each in line)
        if with_paper:
            yield _Line(variant.label, "paper", tuple(map(_paper_text, line)))
        if any(each.entry.elsewhere is not None for each in line):
            mark = footnotes.mark(f"elsewhere: {block.elsewhere}")
            yield _Line(variant.label, "elsewhere", tuple(_elsewhere_text(each, mark) for each in line))
        yield _Line(variant.label, "ours", tuple(map(_ours_text, line)), sources)
        if with_paper:
            yield _Line(variant.label, f"ours {MINUS} paper", tuple(map(_deviation_text, line)), sources)
        if spec.compare == "columns":
            pairs = [
                _Pair(filled[key, row], filled[spec.baseline, row]) if key in spec.treatments else None for key in keys
            ]
            yield from _difference_lines(
                f"{variant.label} {MINUS} {_column_label(block, spec.baseline)}", pairs, with_paper
            )
    if spec.compare == "rows":
        for treatment in spec.treatments:
            label = f"{spec.rows[treatment].label} {MINUS} {spec.rows[spec.baseline].label}"
            yield from _difference_lines(
                label, [_Pair(filled[key, treatment], filled[key, spec.baseline]) for key in keys], with_paper
            )


def _column_label(block: GridBlock, key: str) -> str:
    return next(column.label for column in block.columns if column.key == key)


def _difference_lines(label: str, pairs: Sequence[_Pair | None], with_paper: bool) -> Iterator[_Line]:
    """Yield the lines of paired differences; empty text in columns that are not compared."""
    if with_paper:
        yield _Line(label, "paper", tuple(_paper_difference_text(pair) if pair else "" for pair in pairs))
    sources = tuple(pair.treatment.source if pair else None for pair in pairs)
    yield _Line(label, "ours, paired", tuple(_paired_text(pair) if pair else "" for pair in pairs), sources)


def _paper_text(filled: _GridValue) -> str:
    paper, digits = filled.entry.paper, filled.entry.digits
    if paper is None:
        return DASH
    return f"{paper.mean:.{digits}f}" + ("" if paper.std is None else f" ± {paper.std:.{digits}f}")


def _elsewhere_text(filled: _GridValue, mark: str) -> str:
    value = filled.entry.elsewhere
    return DASH if value is None else f"{value:.{filled.entry.digits}f} {mark}"


def _ours_text(filled: _GridValue) -> str:
    ours, digits = filled.ours, filled.entry.digits
    if ours is None:
        return DASH
    spread = "" if ours.std is None else f" ± {ours.std:.{digits}f}"
    return f"{ours.mean:.{digits}f}{spread} ({ours.n}){filled.marks}"


def _deviation_text(filled: _GridValue) -> str:
    ours, paper = filled.ours, filled.entry.paper
    if ours is None or paper is None:
        return DASH
    return f"{ours.mean - paper.mean:+z.{filled.entry.digits}f}{filled.marks}"


def _paper_difference_text(pair: _Pair) -> str:
    return DASH if pair.paper is None else f"{pair.paper:+z.{pair.treatment.entry.digits}f}"


def _paired_text(pair: _Pair) -> str:
    paired, digits = pair.paired, pair.treatment.entry.digits
    if paired is None:
        return DASH
    interval = "" if paired.low is None else f" [{paired.low:+z.{digits}f}, {paired.high:+z.{digits}f}]"
    return f"{paired.mean:+z.{digits}f}{interval} ({len(paired.seeds)}){pair.treatment.marks}"


def _csv_rows(spec: GridSpec, block: GridBlock, filled: dict[tuple[str, str], _GridValue]) -> Iterator[dict[str, Any]]:
    """Yield the CSV rows of a block: one for each entry and one for each paired difference."""
    for column in block.columns:
        for row in spec.rows:
            yield {"block": block.key, "column": column.key, "row": row, **_entry_row(filled[column.key, row])}
        yield from _column_differences(spec, block, column, filled)


def _column_differences(
    spec: GridSpec, block: GridBlock, column: GridColumn, filled: dict[tuple[str, str], _GridValue]
) -> Iterator[dict[str, Any]]:
    if spec.compare == "rows":
        for treatment in spec.treatments:
            pair = _Pair(filled[column.key, treatment], filled[column.key, spec.baseline])
            place = {"block": block.key, "column": column.key, "row": f"{treatment}-{spec.baseline}"}
            yield {**place, **_pair_row(pair)}
    elif column.key in spec.treatments:
        for row in spec.rows:
            pair = _Pair(filled[column.key, row], filled[spec.baseline, row])
            place = {"block": block.key, "column": f"{column.key}-{spec.baseline}", "row": row}
            yield {**place, **_pair_row(pair)}


def _entry_row(filled: _GridValue) -> dict[str, Any]:
    ours, paper = filled.ours, filled.entry.paper
    line: dict[str, Any] = {"metric": filled.entry.metric, "n": ours.n if ours else 0}
    if ours and filled.group:
        line |= {"mean": ours.mean, "std": ours.std}
        line |= _origin_columns(filled, filled.group, filled.values, filled.runs(filled.values))
    if paper:
        line |= {"paper_mean": paper.mean, "paper_std": paper.std}
    return line | {"elsewhere": filled.entry.elsewhere}


def _pair_row(pair: _Pair) -> dict[str, Any]:
    paired, group = pair.paired, pair.treatment.group
    line: dict[str, Any] = {"metric": pair.treatment.entry.metric, "n": len(paired.seeds) if paired else 0}
    if paired and group:
        chosen = [each.runs([seed])[0] for seed in paired.seeds for each in (pair.baseline, pair.treatment)]
        line |= {"mean": paired.mean, "ci_low": paired.low, "ci_high": paired.high}
        line |= _origin_columns(pair.treatment, group, paired.seeds, chosen)
    return line | {"paper_mean": pair.paper}


def _origin_columns(
    filled: _GridValue, group: Group, seeds: Iterable[int], runs: Iterable[TrainedRun]
) -> dict[str, Any]:
    return {
        "seeds": " ".join(map(str, seeds)),
        "runs": " ".join(run.folder.name for run in runs),
        "marks": filled.marks.strip(),
        "data_digest": group.data.digest,
        "data_official": group.data.official,
    }
