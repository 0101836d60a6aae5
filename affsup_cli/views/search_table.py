"""The trials of a search: on the terminal, and as a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from affsup_cli.reporting.render.document import csv_bytes
from affsup_cli.runs.folder import write_out
from affsup_cli.sweeps.search import Trial
from affsup_cli.views.console import metric_text
from affsup_cli.views.tables import FittingTable

MAX_ROWS = 10
_DASH = "–"


def search_table(name: str, metric: str, fields: Sequence[str], trials: Sequence[Trial]) -> FittingTable:
    """Return the best trials as a table.

    Args:
        name: of the study.
        metric: by which they are chosen.
        fields: that vary.
        trials: all that have ended, the best first.
    """
    shown = trials[:MAX_ROWS]
    of = f"the best {len(shown)} of {len(trials)} trials" if len(shown) < len(trials) else f"{len(trials)} trials"
    rows = [
        [
            str(trial.number),
            "failed" if trial.score is None else metric_text(metric, trial.score),
            *(escape(value_text(trial.values[field])) for field in fields),
            escape(trial.run.name) if trial.run else _DASH,
        ]
        for trial in shown
    ]
    return FittingTable(
        f"{name}: {of}",
        ["trial", metric, *fields, "run"],
        rows,
        right=["trial", metric, *fields],
        optional=["run"],
    )


def write_trials(path: Path, metric: str, fields: Sequence[str], trials: Sequence[Trial]) -> None:
    """Write all trials that have ended as CSV, the best first; a failed one has no score.

    Raises:
        AffsupError: the file cannot be written.
    """
    rows = [
        {
            "trial": trial.number,
            metric: trial.score,
            **trial.values,
            "run": trial.run.name if trial.run else None,
        }
        for trial in trials
    ]
    write_out(path, csv_bytes(rows, ["trial", metric, *fields, "run"]))


def value_text(value: Any) -> str:
    """Return the value of a field in at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
