"""The terminal, and how a run's numbers are printed on it."""

from __future__ import annotations

from rich.console import Console

from affsup_cli.engine.run_folder import RunFolder

console = Console(soft_wrap=True, highlight=False)


def metric_text(name: str, value: float) -> str:
    """Return a metric as people read it: accuracies in percent."""
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4f}"


def counted(number: int, noun: str) -> str:
    """Return "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_result(run: RunFolder) -> None:
    """Print the numbers of a finished run, and where its files are."""
    result = run.result()
    for name, value in result["metrics"].items():
        console.print(f"{name:<16}[bold]{metric_text(name, value)}[/bold]")
    console.print(f"of epoch {result['best_epoch']} of {result['epochs']}, the best on the validation split")
    console.print(f"in {run.path}: result.json, metrics.jsonl, best.pt, recipe.toml", markup=False)
