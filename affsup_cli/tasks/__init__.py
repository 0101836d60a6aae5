"""Tasks by name: each turns its recipe into a model with data that the trainer can train."""

from __future__ import annotations

from pathlib import Path

from affsup_cli.recipe import DetectionRecipe, MinibatchRecipe, Recipe, SceneRecipe
from affsup_cli.runs.export import TrainedModel
from affsup_cli.training.task import Task


def build_task(recipe: Recipe, data_dir: Path, *, fresh: bool = True, network: TrainedModel | None = None) -> Task:
    """Build the task of `recipe` on its device, from the data sets prepared in `data_dir`.

    Args:
        recipe: of the task.
        data_dir: where the data sets are prepared.
        fresh: the model will be trained from the start; false if a checkpoint will be loaded into it, so that no
            pretrained weights are needed.
        network: the finished run of the recipe's `prerequisite`, for a fresh task that has one.

    Raises:
        AffsupError: the data set is not prepared.
        UsageError: an architecture or device is unknown.
    """
    if isinstance(recipe, MinibatchRecipe):
        from affsup_cli.tasks.minibatch import MinibatchTask

        return MinibatchTask(recipe, data_dir)
    if isinstance(recipe, DetectionRecipe):
        from affsup_cli.tasks.detection.task import DetectionTask

        return DetectionTask(recipe, data_dir, pretrained=fresh)
    if isinstance(recipe, SceneRecipe):
        from affsup_cli.tasks.scene.task import SceneTask

        return SceneTask(recipe, data_dir, fresh=fresh, network=network)
    raise AssertionError(f"no task is registered for {type(recipe).__name__}")
