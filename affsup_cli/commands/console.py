"""The terminal, and how a run's result is printed on it."""

from __future__ import annotations

from rich.console import Console

from affsup_cli.engine.run_folder import RunFolder

console = Console(soft_wrap=True, highlight=False)


def print_result(run: RunFolder) -> None:
    """Print the numbers of a finished run, and where its files are."""
    result = run.result()
    for name, value in result["metrics"].items():
        console.print(f"{name:<16}[bold]{value:.4f}[/bold]")
    console.print(f"of epoch {result['best_epoch']} of {result['epochs']}, the best on the validation split")
    console.print(f"in {run.path}: result.json, metrics.jsonl, best.pt, recipe.toml", markup=False)
