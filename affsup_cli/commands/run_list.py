"""The runs of a folder as `affsup list runs` shows them: chosen by state and recipe, sorted."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape

from affsup_cli.commands.console import console, metric_text
from affsup_cli.commands.inventory import plain, table
from affsup_cli.commands.list import State
from affsup_cli.engine.run_folder import RunFolder, run_folders
from affsup_cli.errors import AffsupError, UsageError, did_you_mean
from affsup_cli.recipe import field_help, load_recipe, recipe_names

_HEADLINES = {"test_accuracy": "accuracy", "test_map_50": "mAP@0.5"}
_DASH = "–"
_WIDE = 110  # columns of the terminal; with fewer the name gets what there is, and two others break at their space
_NARROW = {"on the test split": 8, "started": 10}


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """What the list shows of a run, and what it is chosen and sorted by.

    Attributes:
        name: the folder's.
        state: damaged if something of it could not be read.
        fields: its recipe, by dotted key; empty if that is damaged.
        metrics: of its result.
        epochs: done; None for a cost comparison.
        seconds: of training; None unless finished.
        started: date and time, ISO 8601; empty if not known.
        fault: what is damaged.
    """

    name: str
    state: State
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    seconds: float | None = None
    started: str = ""
    fault: str = ""


def run_list(
    runs_dir: Path,
    where: Sequence[str] = (),
    state: State | None = None,
    sort: str = "name",
    reverse: bool = False,
    limit: int | None = None,
) -> RenderableType:
    """Return the runs under `runs_dir` as a table.

    Args:
        runs_dir: where they are.
        where: conditions `KEY=VALUE` on recipe fields, all of which hold; the value may have `*` and `?`.
        state: in this state only.
        sort: name, started, seconds or a metric; runs without it come last.
        reverse: from the largest.
        limit: at most so many.

    Raises:
        UsageError: a condition or what is sorted by is not known.
    """
    found = [_read(folder) for folder in run_folders(runs_dir)]
    if not found:
        return f"no runs in {runs_dir} yet: `affsup train minibatch` makes one"
    chosen = [run for run in found if state in (None, run.state)]
    for condition in where:
        holds = _condition(condition, found)
        chosen = [run for run in chosen if holds(run)]
    chosen = _sorted(chosen, found, sort, reverse)[:limit]
    extra = [] if sort in ("name", "started", *_HEADLINES, "test_mass") else [sort]
    right = ("epochs", "on the test split", "M", *extra)
    of = f"{len(chosen)} of {len(found)} " if len(chosen) < len(found) else ""
    shown = table(
        f"{of}runs (in {runs_dir})",
        ("name", "data", "epochs", "state", "on the test split", "M", *extra, "started"),
        [_row(run, extra) for run in chosen],
        right=right,
    )
    for column in shown.columns:
        column.no_wrap = column.header in ("epochs", "state", "M")
        column.max_width = _NARROW.get(str(column.header)) if console.width < _WIDE else None
    return Group(shown, *(f"{escape(run.name)} is damaged: {escape(run.fault)}" for run in chosen if run.fault))


def _read(folder: RunFolder) -> ListedRun:
    known: dict[str, Any] = {}
    try:
        known["fields"] = folder.recipe().flat()
        known["started"] = str(folder.environment().get("started", ""))
        if not folder.finished:
            return ListedRun(folder.name, State.UNFINISHED, **known, epochs=len(folder.metrics()))
        result = folder.result()
        if result["kind"] == "cost":
            return ListedRun(folder.name, State.FINISHED, **known)
        for key, kind in (("metrics", dict), ("epochs", int)):
            if not isinstance(result.get(key), kind):
                raise AffsupError(f"{folder.path / 'result.json'} has no '{key}'")
        return ListedRun(
            folder.name,
            State.FINISHED,
            **known,
            metrics=result["metrics"],
            epochs=result["epochs"],
            seconds=result.get("seconds"),
        )
    except AffsupError as error:
        return ListedRun(folder.name, State.DAMAGED, **known, fault=str(error))


def _condition(text: str, runs: Sequence[ListedRun]) -> Callable[[ListedRun], bool]:
    key, separator, pattern = (part.strip() for part in text.partition("="))
    if not separator:
        raise UsageError(f"--where {text}: expected KEY=VALUE, such as data.name=voc07 or affinity.gamma=2")
    if not any(key in run.fields for run in runs):
        known = {field for name in recipe_names() for field in field_help(load_recipe(name))}
        if key not in known:
            raise UsageError(
                f"--where {text}: no recipe has a field '{key}'{did_you_mean(key, known)}; "
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
            f"--sort {by}{did_you_mean(by, [*keys, *metrics])}: expected name, started, seconds or a metric "
            f"of these runs ({', '.join(sorted(metrics)) or 'none is finished'})"
        )
    key: Callable[[ListedRun], Any] = keys.get(by) or (lambda run: run.metrics.get(by))
    there = sorted((run for run in runs if _sortable(key(run))), key=key, reverse=reverse)
    return there + [run for run in runs if not _sortable(key(run))]


def _sortable(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))


def _row(run: ListedRun, extra: Sequence[str]) -> tuple[str, ...]:
    return (
        escape(run.name),
        str(run.fields.get("data.name", _DASH)),
        _epochs(run),
        run.state.value,
        ", ".join(f"{label} {run.metrics[key]:.2%}" for key, label in _HEADLINES.items() if key in run.metrics)
        or _DASH,
        f"{run.metrics['test_mass']:.3f}" if "test_mass" in run.metrics else _DASH,
        *(_extra(run, key) for key in extra),
        run.started[:16].replace("T", " ") or _DASH,
    )


def _epochs(run: ListedRun) -> str:
    if run.epochs is None:
        return "costs" if run.state == State.FINISHED else _DASH
    return str(run.epochs) if run.state == State.FINISHED else f"{run.epochs} of {run.fields['train.epochs']}"


def _extra(run: ListedRun, key: str) -> str:
    if key == "seconds":
        return _DASH if run.seconds is None else f"{run.seconds:.0f}"
    return metric_text(key, run.metrics[key]) if key in run.metrics else _DASH
