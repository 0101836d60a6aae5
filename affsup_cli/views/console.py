"""The console of all commands, and the printing of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from affsup_cli.reporting.render.document import is_share
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.results import read_train_result
from data_prep.errors import printable


class _Console(Console):
    """A console that escapes control characters, for example in file names."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = _Console(soft_wrap=True, highlight=False)

HEADLINES = {"test_accuracy": "accuracy", "test_map_50": "mAP@0.5"}
"""The main metric of each task, with its short name."""


def metric_text(name: str, value: float) -> str:
    """Return a metric as text: accuracies, precisions and recalls in percent."""
    return f"{value:.2%}" if is_share(name) else f"{value:.4f}"


def print_warning(text: str) -> None:
    """Print a warning, in yellow."""
    console.print(f"warning: {text}", style="yellow", markup=False)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print metrics, one per line; those at several K, such as recall@100, on one line."""
    lines: dict[str, list[str]] = {}
    for name, value in metrics.items():
        family, _, k = name.partition("@")
        lines.setdefault(f"{family}@K" if k else name, []).append(f"{k + ': ' if k else ''}{metric_text(name, value)}")
    width = max(map(len, lines), default=0) + 2
    for name, values in lines.items():
        console.print(f"{name:<{width}}[bold]{', '.join(values)}[/bold]")


def print_result(run: RunFolder) -> None:
    """Print the metrics of a finished run, and the paths of its files."""
    result = read_train_result(run)
    print_metrics({name: value for name, value in result.metrics.items() if not name.startswith("train_")})
    chosen = "the last" if run.recipe().train.select == "last" else "the best on the validation split"
    console.print(f"of epoch {result.best_epoch} of {result.epochs}, {chosen}")
    files = sorted(path.name for path in run.path.iterdir() if path.is_file() and not path.name.startswith("."))
    console.print(f"in {run.path}: {', '.join(files)}", markup=False)
