"""Comparison of training runs: differing recipe fields and machines, metrics, curves. Runs may be unfinished."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.ticker import MaxNLocator

from affsup_cli.reporting.render.document import csv_bytes, is_share
from affsup_cli.reporting.render.figure import PALETTE, new_figure, png_bytes, style
from affsup_cli.reporting.select.statistics import is_finite
from affsup_cli.runs.folder import RunFolder, write_out
from affsup_cli.runs.results import read_train_result
from data_prep.errors import UsageError, printable

_CURVE_PANELS = (
    ("training loss", ("train_loss",)),
    ("accuracy", ("test_accuracy", "val_accuracy", "train_accuracy")),
    ("mAP@0.5", ("test_map_50",)),
    ("target affinity mass M", ("test_mass", "val_mass", "train_mass")),
)
_DASHES = ("-", "--", "-.", ":")
_SPLITS = ("test_", "val_", "train_")
_IGNORED_KEYS = ("started", "data.classes", "data.categories")

Row = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        label: the folder's name; its path where two have the same name.
        task: the task of its recipe.
        finished: whether the run is finished.
        epochs: number of finished epochs.
        planned: number of epochs in its recipe.
        metrics: the result of a finished run, else the metrics of its newest epoch.
        records: its metrics, one record per epoch.
    """

    label: str
    task: str
    finished: bool
    epochs: int
    planned: int
    metrics: Mapping[str, float]
    records: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of runs: each row has one value per run, None where the run has none.

    Attributes:
        runs: the runs, in the order given.
        recipes: recipe fields that differ. For different tasks only fields of all runs.
        environments: differences in machine, code and data.
        metrics: values by name. For different tasks only metrics of all runs.
        curves: the drawn metric of `ComparedRun.records` by title of its panel.
        notes: what was left out, and why.
    """

    runs: tuple[ComparedRun, ...]
    recipes: Mapping[str, Row]
    environments: Mapping[str, Row]
    metrics: Mapping[str, Row]
    curves: Mapping[str, str]
    notes: tuple[str, ...]


def compare_runs(folders: Sequence[RunFolder]) -> Comparison:
    """Compare training runs.

    Raises:
        UsageError: there are fewer than two runs, one is named twice, or one is a cost comparison.
        AffsupError: a run is damaged.
    """
    paths = [folder.path.resolve() for folder in folders]
    if repeated := [folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]:
        raise UsageError(f"{repeated[0].path} is named twice: name different runs")
    if len(folders) < 2:
        raise UsageError("compare needs two or more runs: `affsup list runs` lists them")
    names = [folder.name for folder in folders]
    runs = tuple(
        _read(folder, folder.name if names.count(folder.name) == 1 else str(folder.path)) for folder in folders
    )
    recipes = [folder.recipe().identity() for folder in folders]
    environments = [_flatten(folder.environment()) for folder in folders]
    tasks = list(dict.fromkeys(run.task for run in runs))
    alike = len(tasks) == 1
    begun = [run for run in runs if run.records]
    notes = [] if alike else [f"different tasks ({', '.join(tasks)}): only what all runs have is shown"]
    notes += [f"{run.label} has finished no epoch yet" for run in runs if not run.records]
    if any(run.records and not run.finished for run in runs):
        notes.append("numbers of an unfinished run are those of its newest epoch, and are never marked as best")
    return Comparison(
        runs=runs,
        recipes=_differing(recipes, shared=not alike),
        environments=_differing(environments, shared=False),
        metrics=_sorted_by_split(_rows_by_key([run.metrics for run in runs], shared=not alike)),
        curves=_curves(begun),
        notes=tuple(notes),
    )


def metric_direction(metric: str) -> Literal["higher", "lower"] | None:
    """Return which values of a metric are better; None for metrics such as M that have no better direction."""
    if is_share(metric) and "attention" not in metric:
        return "higher"
    return "lower" if metric.endswith("loss") else None


def best_runs(comparison: Comparison, metric: str) -> frozenset[int]:
    """Return the finished runs with the best value of a metric; none where all values are equal."""
    row = comparison.metrics[metric]
    values = {
        place: value
        for place, (run, value) in enumerate(zip(comparison.runs, row, strict=True))
        if run.finished and value is not None
    }
    direction = metric_direction(metric)
    if direction is None or len(set(values.values())) < 2:
        return frozenset()
    best = max(values.values()) if direction == "higher" else min(values.values())
    return frozenset(place for place, value in values.items() if value == best)


def write_curves(comparison: Comparison, out: Path) -> tuple[Path, ...]:
    """Write `compare.png`, with one panel for each curve of all runs, and its numbers as `compare.csv`.

    Returns:
        The written files; none if the runs have no curve in common.

    Raises:
        AffsupError: they cannot be written there.
    """
    if not comparison.curves:
        return ()
    begun = [run for run in comparison.runs if run.records]
    metrics = list(comparison.curves.values())
    rows = [
        {"run": run.label, "epoch": record["epoch"], **{metric: record.get(metric) for metric in metrics}}
        for run in begun
        for record in run.records
    ]
    files = {
        out / "compare.png": _draw(comparison, begun),
        out / "compare.csv": csv_bytes(rows, ("run", "epoch", *metrics)),
    }
    for path, content in files.items():
        write_out(path, content)
    return tuple(files)


def _read(folder: RunFolder, label: str) -> ComparedRun:
    recipe, history = folder.recipe(), folder.history()
    records = history.records
    metrics: Any = records[-1] if records else {}
    if folder.finished:
        metrics = read_train_result(folder).metrics
    numbers = {key: value for key, value in metrics.items() if key.startswith(_SPLITS) and is_finite(value)}
    return ComparedRun(label, recipe.task, folder.finished, history.epochs, recipe.train.epochs, numbers, records)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        elif prefix + key not in _IGNORED_KEYS:
            found[prefix + key] = value
    return found


def _rows_by_key(tables: Sequence[Mapping[str, Any]], *, shared: bool) -> dict[str, Row]:
    keys = dict.fromkeys(key for table in tables for key in table)
    return {
        key: tuple(table.get(key) for table in tables)
        for key in keys
        if not shared or all(key in table for table in tables)
    }


def _sorted_by_split(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows in the order of the splits, test first."""
    return {key: row for split in _SPLITS for key, row in rows.items() if key.startswith(split)}


def _differing(tables: Sequence[Mapping[str, Any]], *, shared: bool) -> dict[str, Row]:
    rows = _rows_by_key(tables, shared=shared)
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _curves(runs: Sequence[ComparedRun]) -> dict[str, str]:
    found = {}
    for title, metrics in _CURVE_PANELS:
        metric = next((each for each in metrics if runs and all(_has_metric(run, each) for run in runs)), None)
        if metric:
            found[title] = metric
    return found


def _has_metric(run: ComparedRun, metric: str) -> bool:
    return any(is_finite(record.get(metric)) for record in run.records)


def _draw(comparison: Comparison, runs: Sequence[ComparedRun]) -> bytes:
    count = len(comparison.curves)
    with style():
        figure = new_figure(max(4.2 * count, 7.0), 4.0 + 0.21 * len(runs), f"{len(runs)} runs compared", ())
        all_axes = figure.subplots(1, count, squeeze=False)[0]
        for axes, (title, metric) in zip(all_axes, comparison.curves.items(), strict=True):
            axes.set_title(title if title == "training loss" else f"{title} ({metric.partition('_')[0]})")
            axes.set_xlabel("epoch")
            axes.grid(visible=True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for number, run in enumerate(runs):
                values = [record.get(metric) for record in run.records]
                axes.plot(
                    [record["epoch"] for record in run.records],
                    [value if is_finite(value) else math.nan for value in values],
                    color=PALETTE[number % len(PALETTE)],
                    linestyle=_DASHES[number // len(PALETTE) % len(_DASHES)],
                    linewidth=1.6,
                    marker="o" if len(values) < 3 else None,
                )
        state = [printable(run.label) + ("" if run.finished else " (so far)") for run in runs]
        figure.legend(all_axes[0].lines, state, loc="outside lower left", fontsize=8)
        return png_bytes(figure)
