"""A run's best model on a split: what `affsup evaluate` does."""

from __future__ import annotations

from pathlib import Path

from affsup_cli.recipe import Recipe
from affsup_cli.runs.checkpoint import explain_mismatch, load_weights
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.devices import configure_determinism
from affsup_cli.tasks import build_task
from affsup_cli.tasks.launch import refuse_other_data


def evaluate_run(run: RunFolder, data_dir: Path, split: str, device: str) -> dict[str, float]:
    """Evaluate the best model so far of `run` on "train", "val" or "test"; the metrics carry the split's name.

    What the task keeps beside numbers, such as detections, is written into the run folder.

    Raises:
        UsageError: the prepared data is not what the run was trained on.
        AffsupError: there is no best model yet, or it cannot be read.
    """
    stored = run.recipe()
    recipe: Recipe = stored.model_copy(update={"run": stored.run.model_copy(update={"device": device})})
    configure_determinism(recipe.run.deterministic)
    task = build_task(recipe, data_dir, fresh=False)
    refuse_other_data(run, task.data)
    weights = load_weights(run.best, next(task.model.parameters()).device, run.best_cure)
    with explain_mismatch(run.best, run.best_cure):
        task.model.load_state_dict(weights)
    metrics = task.evaluate(split)
    task.export(run.path, split)
    return {f"{split}_{name}": value for name, value in metrics.items()}
