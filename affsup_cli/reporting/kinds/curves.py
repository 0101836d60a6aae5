"""Error and target affinity mass over the epochs (figure 5)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from affsup_cli.recipe import OBSERVING
from affsup_cli.reporting.render.document import DASH, Content, Footnotes, Source, Table, csv_bytes
from affsup_cli.reporting.render.figure import Values, draw_mean, new_figure, png_bytes, style
from affsup_cli.reporting.select.experiments import spec_cells
from affsup_cli.reporting.select.match import select_runs
from affsup_cli.reporting.select.spec import CurvePanel, CurvesSpec, KeyedVariant
from affsup_cli.runs.index import RunIndex, TrainedRun
from data_prep.errors import AffsupError

Split = Literal["test", "val"]

_CSV_COLUMNS = ("panel", "curve", "seed", "epoch", "split", "error", "mass")
_SPLIT_NAMES: dict[Split, str] = {"test": "test", "val": "validation"}
_LINES = (("#222222", "-"), ("#3f90da", "--"), ("#e76300", "-."), ("#832db6", "-"), ("#94a4a2", "--"))
_BEST = "#d00000"


@dataclasses.dataclass(frozen=True)
class _VariantCurves:
    """The runs of a curve: error in percent and mass in 0..1, both `[seeds, epochs]`, or NaN."""

    variant: KeyedVariant
    runs: tuple[TrainedRun, ...]
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
    def best(self) -> _VariantCurves | None:
        """The curve with the lowest final error; None for a single curve."""
        return min(self.curves, key=lambda curve: curve.final_error) if len(self.curves) > 1 else None


def build_curves(spec: CurvesSpec, runs: RunIndex) -> Content:
    """Build the curves from the finished runs: one group of runs and one split for the whole figure.

    `.csv` has one line for each panel, curve, seed and epoch, with error in percent and mass; `.png` is the picture.
    """
    cells = {cell.key: cell for cell in spec_cells(spec)}
    # A run without the test curve shows another quantity, so this field counts as a departure.
    selection = select_runs(cells, runs.trained, _curves_fault, OBSERVING - {"train.test_curve"})
    group = selection.group
    footnotes = Footnotes()
    if group is None:
        tables = tuple(_table(_PanelCurves(panel, []), "") for panel in spec.panels)
        return Content(_caption("test"), tables, (), tuple(selection.remarks(footnotes)), (), {})
    marks = footnotes.mark_departures(group.departures, group.data)
    drawn = footnotes.lines()
    notes = selection.remarks(footnotes)
    records = [record for run in group.members for record in run.folder.metrics()]
    split: Split = "test" if all(_is_finite(record.get("test_accuracy")) for record in records) else "val"
    panels = []
    for panel in spec.panels:
        found = [
            _variant_curves(curve, group.runs.get(f"{panel.key}/{curve.key}", {}), split) for curve in panel.curves
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
        "band: ± sample standard deviation; red dashed box: the lowest error at the last epoch."
    )


def _curves_fault(run: TrainedRun) -> str | None:
    try:
        records = run.folder.metrics()
    except AffsupError as error:
        return str(error)
    if len(records) != run.result.epochs:
        return f"metrics.jsonl has {len(records)} of {run.result.epochs} epochs"
    if not all(_is_finite(record.get("val_accuracy")) for record in records):
        return "val_accuracy is not a number in every epoch"
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _variant_curves(variant: KeyedVariant, by_seed: dict[int, TrainedRun], split: Split) -> _VariantCurves | None:
    if not by_seed:
        return None
    runs = tuple(run for _, run in sorted(by_seed.items()))
    records = [run.folder.metrics() for run in runs]
    accuracy = np.array([[record[f"{split}_accuracy"] for record in run] for run in records], dtype=np.float64)
    mass = np.array([[record.get(f"{split}_mass") for record in run] for run in records], dtype=np.float64)
    return _VariantCurves(variant, runs, 100 * (1 - accuracy), mass)


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
        rows.append((variant.label, f"{curve.final_error:.2f}{marks}", mass, str(len(curve.seeds))))
    return Table((panel.spec.label, "last epoch's error (%)", "last epoch's M", "runs"), tuple(rows), sources)


def _csv_rows(panel: _PanelCurves, split: Split) -> Iterator[dict[str, Any]]:
    for curve in panel.curves:
        for (row, seed), epoch in itertools.product(enumerate(curve.seeds), range(curve.error.shape[1])):
            mass = float(curve.mass[row, epoch])
            yield {
                "panel": panel.spec.key,
                "curve": curve.variant.key,
                "seed": seed,
                "epoch": epoch + 1,
                "split": _SPLIT_NAMES[split],
                "error": float(curve.error[row, epoch]),
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
            error_axes.set_title(panel.spec.label)
            for curve in panel.curves:
                colour, dashes = _LINES[panel.spec.curves.index(curve.variant) % len(_LINES)]
                label = f"{curve.variant.label}: {curve.final_error:.2f} %"
                _line(error_axes, curve.error, colour, dashes, label)
                _line(mass_axes, curve.mass, colour, dashes, curve.variant.label)
            legend = error_axes.legend(
                title="error at the last epoch", loc="best", handlelength=2.6, frameon=True, edgecolor="none"
            )
            for text, curve in zip(legend.get_texts(), panel.curves, strict=True):
                if curve is panel.best:
                    text.set_bbox({"facecolor": "none", "edgecolor": _BEST, "linestyle": "--", "pad": 2.5})
            mass_axes.set_xlabel("epoch")
        for row, label in zip(axes, (f"{_SPLIT_NAMES[split]} error (%)", "target affinity mass M"), strict=True):
            row[0].set_ylabel(label)
        axes[0, 0].set_ylim(0, _error_axis_limit(panels))
        axes[1, 0].set_ylim(0, 1.05)
        last = max(curve.error.shape[1] for panel in panels for curve in panel.curves)
        for axis in axes.flat:
            axis.set_xlim(0.5, last + 0.5)
            axis.grid(visible=True)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if alone:
            axes[0, 0].set_xlabel("epoch")
        return png_bytes(figure)


def _line(axes: Axes, values: Values, colour: str, dashes: str, label: str) -> None:
    epochs = range(1, values.shape[1] + 1)
    marker = "o" if len(epochs) < 3 else None
    draw_mean(axes, epochs, values, color=colour, linestyle=dashes, marker=marker, label=label)


def _error_axis_limit(panels: Sequence[_PanelCurves]) -> float:
    """Return the upper limit of the error axes: the first epochs may exceed it, so that the last stay readable."""
    curves = [curve for panel in panels for curve in panel.curves]
    highest = max(float(curve.error.mean(axis=0).max()) for curve in curves)
    worst_end = max(curve.final_error for curve in curves)
    return min(1.08 * highest, 3.5 * worst_end) or 1.08 * highest or 1.0
