"""The terminal, and how a run's result is printed on it."""

from __future__ import annotations

from rich.console import Console

from affsup_cli.engine.run_folder import RunFolder

console = Console(soft_wrap=True, highlight=False)


def print_result(run: RunFolder) -> None:
    """Print the numbers of a finished run, and where its files are."""
    result = run.result()
    metrics = result["metrics"]
    console.print(
        f"test accuracy [bold]{metrics['test_accuracy']:.2%}[/bold], M {metrics['test_mass']:.3f} "
        f"(epoch {result['best_epoch']} of {result['epochs']}, the best on validation: {metrics['val_accuracy']:.2%})"
    )
    console.print(f"in [bold]{run.path}[/bold]: result.json, metrics.jsonl, best.pt, recipe.toml")
