"""Error and target affinity mass over the epochs (figure 5)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from affsup_cli.recipe import RECORDING_FIELDS
from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.render.document import DASH, Content, Source, Table, csv_bytes
from affsup_cli.reporting.render.figure import Values, draw_mean, new_figure, png_bytes, style, typeset_texts
from affsup_cli.reporting.select.experiments import spec_cells
from affsup_cli.reporting.select.match import select_runs
from affsup_cli.reporting.select.spec import CurvePanel, CurvesSpec, KeyedVariant
from affsup_cli.reporting.select.statistics import is_finite
from affsup_cli.runs.folder import History
from affsup_cli.runs.index import RunIndex, TrainedRun
from data_prep.errors import AffsupError

Split = Literal["test", "val"]

_CSV_COLUMNS = ("panel", "curve", "seed", "epoch", "split", "error", "mass")
_SPLIT_NAMES: dict[Split, str] = {"test": "test", "val": "validation"}
_LINES = (("#222222", "-"), ("#3f90da", "--"), ("#e76300", "-."), ("#832db6", "-"), ("#94a4a2", "--"))
_BEST = "#d00000"
_MANY_EPOCHS = 20
_DECIMALS = 2  # of errors in percent


@dataclasses.dataclass(frozen=True)
class _VariantCurves:
    """The runs of a curve: error in percent and mass in 0..1 (or NaN), both `[seeds, epochs]`."""

    variant: KeyedVariant
    runs: tuple[TrainedRun, ...]
    epochs: tuple[int, ...]
    error: Values
    mass: Values

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.recipe.seed for run in self.runs)

    @property
    def final_error(self) -> float:
        return float(self.error[:, -1].mean())

    @property
    def final_mass(self) -> float:
        return float(self.mass[:, -1].mean())


@dataclasses.dataclass(frozen=True)
class _PanelCurves:
    spec: CurvePanel
    curves: list[_VariantCurves]

    @property
    def best(self) -> list[_VariantCurves]:
        """The curves with the lowest final error as shown; none if all are equal."""
        shown = [round(curve.final_error, _DECIMALS) for curve in self.curves]
        if len(set(shown)) < 2:
            return []
        return [curve for curve, error in zip(self.curves, shown, strict=True) if error == min(shown)]


def build_curves(spec: CurvesSpec, runs: RunIndex) -> Content:
    """Build the curves from the finished runs: one group of runs and one split for the whole figure.

    `.csv` has one line for each panel, curve, seed and epoch, with error in percent and mass; `.png` is the picture.
    """
    cells = {cell.key: cell for cell in spec_cells(spec)}
    # A run without the test curve shows another quantity, so this field counts as a departure.
    selection = select_runs(cells, runs.trained, _curves_fault, RECORDING_FIELDS - {"train.test_curve"})
    group = selection.group
    footnotes = Footnotes()
    if group is None:
        tables = tuple(_table(_PanelCurves(panel, []), "") for panel in spec.panels)
        return Content(_caption("test"), tables, (), tuple(selection.remarks(footnotes)), (), {})
    marks = footnotes.mark_departures(group.departures, group.data)
    drawn = footnotes.lines()
    notes = selection.remarks(footnotes)
    histories = {run.folder.name: run.folder.history() for run in group.members}
    split: Split = "test" if all(_has_curve(history, "test") for history in histories.values()) else "val"
    notes += [
        f"{name} has {history.epochs:,} epochs, of which {len(history.records):,} are read: evenly spaced ones"
        for name, history in histories.items()
        if len(history.records) < history.epochs
    ]
    panels = []
    for panel in spec.panels:
        found = [
            _variant_curves(curve, group.runs.get(f"{panel.key}/{curve.key}", {}), histories, split)
            for curve in panel.curves
        ]
        panels.append(_PanelCurves(panel, [curve for curve in found if curve]))
        if missing := [curve.label for curve, there in zip(panel.curves, found, strict=True) if there is None]:
            notes.append(f"{panel.label}: no runs for {', '.join(missing)}")
    return Content(
        caption=_caption(split),
        tables=tuple(_table(panel, marks) for panel in panels),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(group.members),
        files={
            ".csv": csv_bytes([line for panel in panels for line in _csv_rows(panel, split)], _CSV_COLUMNS),
            ".png": _draw(spec.title, [panel for panel in panels if panel.curves], split, drawn),
        },
    )


def _caption(split: Split) -> str:
    return (
        f"Error and target affinity mass M on the {_SPLIT_NAMES[split]} split over the epochs. Lines: mean over seeds; "
        "band: ± sample standard deviation; red dashed box: the lowest error at the last epoch. A table that shows the "
        "epoch that is best on the validation split has other numbers."
    )


def _curves_fault(run: TrainedRun) -> str | None:
    try:
        history = run.folder.history()
    except AffsupError as error:
        return str(error)
    if history.epochs != run.result.epochs:
        return f"metrics.jsonl has {history.epochs} of {run.result.epochs} epochs"
    splits = [split for split in _SPLIT_NAMES if _has_curve(history, split)]
    return None if splits else "neither test_accuracy nor val_accuracy is a number in every epoch"


def _has_curve(history: History, split: Split) -> bool:
    return all(is_finite(record.get(f"{split}_accuracy")) for record in history.records)


def _variant_curves(
    variant: KeyedVariant, by_seed: dict[int, TrainedRun], histories: Mapping[str, History], split: Split
) -> _VariantCurves | None:
    if not by_seed:
        return None
    runs = tuple(run for _, run in sorted(by_seed.items()))
    records = [histories[run.folder.name].records for run in runs]
    epochs = tuple(record["epoch"] for record in records[0])
    accuracy, mass = (
        np.array([[_or_nan(record.get(f"{split}_{metric}")) for record in of_run] for of_run in records])
        for metric in ("accuracy", "mass")
    )
    return _VariantCurves(variant, runs, epochs, 100 * (1 - accuracy), mass)


def _or_nan(value: object) -> float:
    return float(value) if isinstance(value, int | float) and is_finite(value) else math.nan


def _table(panel: _PanelCurves, marks: str) -> Table:
    found = {curve.variant.key: curve for curve in panel.curves}
    rows = []
    sources: dict[tuple[int, int], Source] = {}
    for row, variant in enumerate(panel.spec.curves):
        curve = found.get(variant.key)
        if curve is None:
            rows.append((variant.label, DASH, DASH, "0"))
            continue
        source = Source(f"{panel.spec.label}, {variant.label}", curve.runs, marks)
        sources |= {(row, column): source for column in (1, 2)}
        mass = f"{curve.final_mass:.3f}{marks}" if math.isfinite(curve.final_mass) else DASH
        rows.append((variant.label, f"{curve.final_error:.{_DECIMALS}f}{marks}", mass, str(len(curve.seeds))))
    return Table((panel.spec.label, "last epoch's error (%)", "last epoch's M", "runs"), tuple(rows), sources)


def _csv_rows(panel: _PanelCurves, split: Split) -> Iterator[dict[str, Any]]:
    for curve in panel.curves:
        for (row, seed), (place, epoch) in itertools.product(enumerate(curve.seeds), enumerate(curve.epochs)):
            mass = float(curve.mass[row, place])
            yield {
                "panel": panel.spec.key,
                "curve": curve.variant.key,
                "seed": seed,
                "epoch": epoch,
                "split": _SPLIT_NAMES[split],
                "error": float(curve.error[row, place]),
                "mass": mass if math.isfinite(mass) else None,
            }


def _draw(title: str, panels: Sequence[_PanelCurves], split: Split, remarks: Sequence[str]) -> bytes:
    """Draw error above mass, one column per panel; a single panel has its two axes side by side."""
    with style():
        alone = len(panels) == 1
        figure = new_figure(9.0, 3.9 if alone else 6.8, title, remarks)
        shape = (1, 2) if alone else (2, len(panels))
        axes = figure.subplots(*shape, squeeze=False, sharex="col", sharey=False if alone else "row").reshape(2, -1)
        for panel, error_axes, mass_axes in zip(panels, *axes, strict=True):
            typeset_texts([error_axes.set_title(panel.spec.label)])
            for curve in panel.curves:
                colour, dashes = _LINES[panel.spec.curves.index(curve.variant) % len(_LINES)]
                label = f"{curve.variant.label}: {curve.final_error:.{_DECIMALS}f} %"
                _line(error_axes, curve.epochs, curve.error, colour, dashes, label)
                _line(mass_axes, curve.epochs, curve.mass, colour, dashes, curve.variant.label)
            legend = error_axes.legend(
                title="error at the last epoch", loc="best", handlelength=2.6, frameon=True, edgecolor="none"
            )
            typeset_texts(legend.get_texts())
            best = panel.best
            for text, curve in zip(legend.get_texts(), panel.curves, strict=True):
                if any(curve is each for each in best):
                    text.set_bbox({"facecolor": "none", "edgecolor": _BEST, "linestyle": "--", "pad": 2.5})
            mass_axes.set_xlabel("epoch")
        for row, label in zip(axes, (f"{_SPLIT_NAMES[split]} error (%)", "target affinity mass M"), strict=True):
            row[0].set_ylabel(label)
        axes[0, 0].set_ylim(0, _error_axis_limit(panels))
        axes[1, 0].set_ylim(0, 1.05)
        last = max(curve.epochs[-1] for panel in panels for curve in panel.curves)
        for axis in axes.flat:
            axis.set_xlim(0.5, last + 0.5)
            axis.grid(visible=True)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if alone:
            axes[0, 0].set_xlabel("epoch")
        return png_bytes(figure)


def _line(axes: Axes, epochs: Sequence[int], values: Values, colour: str, dashes: str, label: str) -> None:
    marker = "o" if len(epochs) < 3 else None
    draw_mean(axes, epochs, values, color=colour, linestyle=dashes, marker=marker, label=label)


def _error_axis_limit(panels: Sequence[_PanelCurves]) -> float:
    """Return the upper limit of the error axes: the first of many epochs may exceed it, to keep the last readable."""
    curves = [curve for panel in panels for curve in panel.curves]
    highest = max(float(curve.error.mean(axis=0).max()) for curve in curves)
    if max(len(curve.epochs) for curve in curves) < _MANY_EPOCHS:
        return 1.08 * highest or 1.0
    worst_end = max(curve.final_error for curve in curves)
    return min(1.08 * highest, 3.5 * worst_end) or 1.08 * highest or 1.0
