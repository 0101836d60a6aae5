"""Relationship recall against K (figure 4, table 8)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.render.document import DASH, Content, Source, Table, csv_bytes
from affsup_cli.reporting.render.figure import Values, draw_mean, new_figure, png_bytes, style, typeset_texts
from affsup_cli.reporting.select.experiments import spec_cells
from affsup_cli.reporting.select.match import Group, select_runs
from affsup_cli.reporting.select.spec import RecallCurve, RecallSpec
from affsup_cli.reporting.select.statistics import is_finite, summarize
from affsup_cli.runs.index import RunIndex, TrainedRun

Average = Literal["micro", "macro"]

_CSV_COLUMNS = ("curve", "seed", "k", "micro", "macro", "run", "marks", "data_digest")
_PREFIXES: dict[Average, str] = {"micro": "test_recall@", "macro": "test_recall_macro@"}
_TITLES: dict[Average, str] = {"micro": "recall@K (%), all pairs", "macro": "recall@K (%), mean over images"}
_CAPTION = (
    "Recall: the share of the true pairs that are among an image's K heaviest pairs, over all pairs of the test images "
    "(micro, drawn) or as the mean over images (macro). Mean ± sample standard deviation over runs."
)
# Figure 4's black, blue, orange and red, then two more.
_LINES = (
    *(("#222222", "o"), ("#3f90da", "s"), ("#ffa90e", "^")),
    *(("#bd1f01", "D"), ("#832db6", "v"), ("#94a4a2", "P")),
)


@dataclasses.dataclass(frozen=True)
class _MeasuredRecall:
    """The recall of a curve's runs, in percent, `[seeds, Ks]`; macro is NaN where not recorded."""

    variant: RecallCurve
    runs: tuple[TrainedRun, ...]
    recalls: dict[Average, Values]


def build_recall(spec: RecallSpec, runs: RunIndex) -> Content:
    """Build the curves from the finished runs: one group of runs, at the Ks of all of them.

    `.csv` has one line for each curve, seed and K: recall in percent over all pairs (micro) and as the mean over images
    (macro). `.png` is the picture of micro.
    """
    cells = {cell.key: cell for cell in spec_cells(spec)}
    selection = select_runs(cells, runs.trained, _recall_fault)
    group = selection.group
    footnotes = Footnotes()
    if group is None:
        wanted = next(iter(cells.values())).recipe.flat()["test.recall_at"]
        tables = tuple(_table(average, spec, [], wanted, "") for average in _PREFIXES)
        empty = [{"curve": curve.key, "k": k} for curve in spec.curves for k in wanted]
        files = {".csv": csv_bytes(empty, _CSV_COLUMNS)}
        return Content(f"{spec.caption} {_CAPTION}", tables, (), tuple(selection.remarks(footnotes)), (), files)
    common_ks = sorted(set.intersection(*(set(_recall_by_k(run)) for run in group.members)))
    if not common_ks:
        names = ", ".join(run.folder.name for run in group.members)
        remarks = (*selection.remarks(footnotes), f"no K in common: {names}")
        return Content(f"{spec.caption} {_CAPTION}", (), footnotes.lines(), remarks, (), {})
    curves = [
        _measured_recall(variant, by_seed, common_ks)
        for variant in spec.curves
        if (by_seed := group.runs.get(variant.key))
    ]
    marks = footnotes.mark_departures(group.departures, group.data)
    drawn = footnotes.lines()
    notes = selection.remarks(footnotes)
    if missing := [variant.label for variant in spec.curves if variant.key not in group.runs]:
        notes.append(f"no runs for {', '.join(missing)}")
    return Content(
        caption=f"{spec.caption} {_CAPTION}",
        tables=tuple(_table(average, spec, curves, common_ks, marks) for average in _PREFIXES),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(group.members),
        files={
            ".csv": csv_bytes(
                [line for curve in curves for line in _csv_rows(curve, common_ks, group, marks)], _CSV_COLUMNS
            ),
            ".png": _draw(spec, curves, common_ks, drawn),
        },
    )


def _recall_by_k(run: TrainedRun) -> dict[int, Any]:
    """Return the run's recall over all pairs, by K."""
    metrics = run.result.metrics
    matches = {metric: re.fullmatch(rf"{_PREFIXES['micro']}(\d+)", metric) for metric in metrics}
    return {int(match[1]): metrics[metric] for metric, match in matches.items() if match}


def _recall_fault(run: TrainedRun) -> str | None:
    by_k = _recall_by_k(run)
    if not by_k:
        return "no test_recall@K"
    for k, value in by_k.items():
        if not is_finite(value):
            return f"test_recall@{k} is {value}"
    return None


def _measured_recall(variant: RecallCurve, by_seed: dict[int, TrainedRun], common_ks: Sequence[int]) -> _MeasuredRecall:
    runs = tuple(run for _, run in sorted(by_seed.items()))
    recalls = {
        average: 100
        * np.array([[run.result.metrics.get(f"{prefix}{k}") for k in common_ks] for run in runs], np.float64)
        for average, prefix in _PREFIXES.items()
    }
    return _MeasuredRecall(variant, runs, recalls)


def _table(
    average: Average, spec: RecallSpec, curves: Sequence[_MeasuredRecall], common_ks: Sequence[int], marks: str
) -> Table:
    found = {curve.variant.key: curve for curve in curves}
    rows = []
    sources: dict[tuple[int, int], Source] = {}
    for row, variant in enumerate(spec.curves):
        curve = found.get(variant.key)
        if curve is None:
            rows.append((variant.label, *[DASH] * len(common_ks), "0"))
        else:
            texts = [_cell_text(column.tolist(), marks) for column in curve.recalls[average].T]
            rows.append((variant.label, *texts, str(len(curve.runs))))
            source = Source(variant.label, curve.runs, marks)
            sources |= {(row, column): source for column in range(1, len(common_ks) + 1)}
    return Table((_TITLES[average], *(f"{k:,}" for k in common_ks), "runs"), tuple(rows), sources)


def _cell_text(values: Sequence[float], marks: str) -> str:
    if any(map(math.isnan, values)):
        return DASH
    summary = summarize(values)
    return f"{summary.mean:.1f}" + ("" if summary.std is None else f" ± {summary.std:.1f}") + marks


def _csv_rows(curve: _MeasuredRecall, common_ks: Sequence[int], group: Group, marks: str) -> Iterator[dict[str, Any]]:
    for (row, run), (column, k) in itertools.product(enumerate(curve.runs), enumerate(common_ks)):
        macro = float(curve.recalls["macro"][row, column])
        yield {
            "curve": curve.variant.key,
            "seed": run.recipe.seed,
            "k": k,
            "micro": float(curve.recalls["micro"][row, column]),
            "macro": None if math.isnan(macro) else macro,
            "run": run.folder.name,
            "marks": marks.strip(),
            "data_digest": group.data.digest,
        }


def _draw(
    spec: RecallSpec, curves: Sequence[_MeasuredRecall], common_ks: Sequence[int], remarks: Sequence[str]
) -> bytes:
    with style():
        figure = new_figure(7.2, 4.6, spec.title, remarks)
        axes = figure.subplots()
        for curve in curves:
            colour, marker = _LINES[spec.curves.index(curve.variant) % len(_LINES)]
            label = f"{curve.variant.label}, n = {len(curve.runs)}"
            draw_mean(axes, common_ks, curve.recalls["micro"], color=colour, marker=marker, markersize=4.5, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(common_ks)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([_k_text(k) for k in common_ks])
        axes.set_xlabel("K pairs an image")
        axes.set_ylabel("recall (%)")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True)
        typeset_texts(axes.legend(loc="best", frameon=True, edgecolor="none").get_texts())
        return png_bytes(figure)


def _k_text(k: int) -> str:
    return str(k) if k % 1000 else f"{k // 1000}k"
