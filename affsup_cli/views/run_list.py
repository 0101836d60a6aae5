"""The table of `affsup list runs`: runs filtered by state and recipe, sorted."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from affsup_cli.options import RunState
from affsup_cli.recipe import field_help, recipe_kind, recipe_names
from affsup_cli.runs.folder import RunFolder, run_folders
from affsup_cli.runs.results import CostResult, read_result
from affsup_cli.views.console import HEADLINES, console, metric_text
from affsup_cli.views.inventory import plain, table
from data_prep.errors import AffsupError, UsageError, did_you_mean, quote, shorten

_DASH = "–"
_MAX_NAMED = 5  # metrics that a message names
_NARROW_WIDTHS = {"on the test split": 8, "started": 10}  # so that they break at their space


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """The fields of a run that the list shows, filters and sorts by.

    Attributes:
        name: the folder's.
        state: damaged if one of its files could not be read.
        fields: its recipe, by dotted key; empty if that is damaged.
        metrics: the metrics of its result.
        epochs: finished epochs; None for a cost comparison.
        seconds: training time; None unless finished.
        started: date and time, ISO 8601; empty if unknown.
        fault: description of the damage.
    """

    name: str
    state: RunState
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    seconds: float | None = None
    started: str = ""
    fault: str = ""


def run_list(
    runs_dir: Path,
    where: Sequence[str] = (),
    state: RunState | None = None,
    sort: str = "name",
    reverse: bool = False,
    limit: int | None = None,
) -> RenderableType:
    """Return the runs under `runs_dir` as a table.

    Args:
        runs_dir: the folder of run folders.
        where: conditions `KEY=VALUE` on recipe fields, all of which hold; the value may have `*` and `?`.
        state: only runs in this state.
        sort: name, started, seconds or a metric; runs without a value come last.
        reverse: largest first.
        limit: maximum number of runs.

    Raises:
        UsageError: a condition or `sort` is invalid.
    """
    found = [_read_run(folder) for folder in run_folders(runs_dir)]
    if not found:
        return f"no runs in {runs_dir} yet: `affsup train minibatch` trains one"
    chosen = [run for run in found if state in (None, run.state)]
    for condition in where:
        holds = _condition(condition, found)
        chosen = [run for run in chosen if holds(run)]
    chosen = _sorted(chosen, found, sort, reverse)[:limit]
    of = f"{len(chosen)} of {len(found)} " if len(chosen) < len(found) else ""
    shown = _fitting_table(f"{of}runs (in {runs_dir})", [_row(run, sort) for run in chosen], sort)
    return Group(shown, *(f"{escape(run.name)} is damaged: {escape(run.fault)}" for run in chosen if run.fault))


def _read_run(folder: RunFolder) -> ListedRun:
    known: dict[str, Any] = {}
    try:
        known["fields"] = folder.recipe().flat()
        known["started"] = str(folder.environment().get("started", ""))
        if not folder.finished:
            return ListedRun(folder.name, RunState.UNFINISHED, **known, epochs=folder.history().epochs)
        result = read_result(folder)
        if isinstance(result, CostResult):
            return ListedRun(folder.name, RunState.FINISHED, **known)
        return ListedRun(
            folder.name,
            RunState.FINISHED,
            **known,
            metrics=result.metrics,
            epochs=result.epochs,
            seconds=result.seconds,
        )
    except AffsupError as error:
        return ListedRun(folder.name, RunState.DAMAGED, **known, fault=str(error))


def _condition(text: str, runs: Sequence[ListedRun]) -> Callable[[ListedRun], bool]:
    key, separator, pattern = (part.strip() for part in text.partition("="))
    if not separator:
        raise UsageError(f"--where {shorten(text)}: expected KEY=VALUE, such as data.name=voc07 or affinity.gamma=2")
    if not any(key in run.fields for run in runs):
        known = {field for name in recipe_names() for field in field_help(recipe_kind(name))}
        if key not in known:
            raise UsageError(
                f"--where {shorten(text)}: no recipe has a field {quote(key)}{did_you_mean(key, known)}; "
                "`affsup show` with a recipe's name lists the fields"
            )
    return lambda run: key in run.fields and _matches(run.fields[key], pattern)


def _matches(value: Any, pattern: str) -> bool:
    with contextlib.suppress(ValueError):
        if isinstance(value, float) and value == float(pattern):
            return True
    return fnmatch.fnmatchcase(plain(value), pattern)


def _sorted(runs: Sequence[ListedRun], known: Sequence[ListedRun], by: str, reverse: bool) -> list[ListedRun]:
    keys: dict[str, Callable[[ListedRun], Any]] = {
        "name": lambda run: run.name,
        "started": lambda run: run.started or None,
        "seconds": lambda run: run.seconds,
    }
    metrics = {metric for run in known for metric in run.metrics}
    if by not in keys and by not in metrics:
        raise UsageError(
            f"--sort {shorten(by)}{did_you_mean(by, [*keys, *metrics])}: expected name, started, seconds or a metric "
            f"of these runs ({_named_examples(metrics) or 'none is finished'})"
        )
    key: Callable[[ListedRun], Any] = keys.get(by) or (lambda run: run.metrics.get(by))
    sortable = sorted((run for run in runs if _sortable(key(run))), key=key, reverse=reverse)
    return sortable + [run for run in runs if not _sortable(key(run))]


def _named_examples(metrics: Set[str]) -> str:
    """Return names of metrics, those of the test split first; only the first few of many."""
    names = sorted(metrics, key=lambda metric: (not metric.startswith("test_"), metric))
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")


def _sortable(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))


def _fitting_table(title: str, rows: Sequence[Mapping[str, str]], sort: str) -> Table:
    """Return the rows as a table; optional columns are dropped so that names fit on one line."""
    heads = list(_row(ListedRun("", RunState.DAMAGED), sort))
    sorted_by = "M" if sort == "test_mass" else sort
    can_go = [head for head in ("started", "M") if head != sorted_by]
    layouts = [[head for head in heads if head not in can_go[:gone]] for gone in range(len(can_go) + 1)]
    tables = [_drawn(title, heads, rows, narrow=False), *(_drawn(title, left, rows, narrow=True) for left in layouts)]
    unbounded = console.options.update(max_width=10_000)
    whole = (each for each in tables if console.measure(each, options=unbounded).maximum <= console.width)
    return next(whole, tables[1])


def _drawn(title: str, heads: Sequence[str], rows: Sequence[Mapping[str, str]], *, narrow: bool) -> Table:
    right = [head for head in heads if head not in ("name", "data", "state", "started")]
    shown = table(title, heads, [[row[head] for head in heads] for row in rows], right=right)
    for column in shown.columns:
        column.no_wrap = column.header in ("epochs", "state", "M")
        column.max_width = _NARROW_WIDTHS.get(str(column.header)) if narrow else None
    return shown


def _row(run: ListedRun, sort: str) -> dict[str, str]:
    return {
        "name": escape(run.name),
        "data": str(run.fields.get("data.name", _DASH)),
        "epochs": _epochs(run),
        "state": run.state.value,
        "on the test split": ", ".join(
            f"{label} {run.metrics[key]:.2%}" for key, label in HEADLINES.items() if key in run.metrics
        )
        or _DASH,
        "M": f"{run.metrics['test_mass']:.3f}" if "test_mass" in run.metrics else _DASH,
        **({} if sort in ("name", "started", *HEADLINES, "test_mass") else {sort: _extra(run, sort)}),
        "started": run.started[:16].replace("T", " ") or _DASH,
    }


def _epochs(run: ListedRun) -> str:
    if run.epochs is None:
        return "costs" if run.state == RunState.FINISHED else _DASH
    return str(run.epochs) if run.state == RunState.FINISHED else f"{run.epochs} of {run.fields['train.epochs']}"


def _extra(run: ListedRun, key: str) -> str:
    if key == "seconds":
        return _DASH if run.seconds is None else f"{run.seconds:.0f}"
    return metric_text(key, run.metrics[key]) if key in run.metrics else _DASH
