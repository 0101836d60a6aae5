"""Measure how long a training step and an evaluated image take for each kind of run."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from affsup_cli.bench.needs import RunKind, Speed
from affsup_cli.models.detection.backbone import FrozenBatchNorm
from affsup_cli.recipe import Recipe
from affsup_cli.tasks import build_task
from affsup_cli.training.cost import WARM_UP_STEPS, StepClock
from affsup_cli.training.task import Task
from data_prep.store import read_manifest

ProgressText = Callable[[str], None]
"""Called with a text that says what is being measured."""

SECONDS = 3.0  # of timed steps for each kind, or one step if that takes longer
_PROBE_STEPS = 3  # steps that determine how many make a round
_TINY_LEARNING_RATE = 1e-12  # leaves untrained weights as they are, so that all numbers stay finite


def measure(kinds: Mapping[RunKind, Recipe], data_dir: Path, device: str, report: ProgressText) -> dict[RunKind, Speed]:
    """Measure the speed of each kind of run.

    Args:
        kinds: a recipe of each.
        data_dir: folder of prepared data sets with the names of the recipes' data sets, of any content.
        device: as `run.device`.
        report: called with what is being measured.
    """
    return {kind: _speed(str(kind), recipe, data_dir, device, report) for kind, recipe in kinds.items()}


def _speed(name: str, recipe: Recipe, data_dir: Path, device: str, report: ProgressText) -> Speed:
    report(f"{name}: build")
    run = recipe.run.model_copy(update={"device": device})
    task = build_task(recipe.model_copy(update={"run": run}), data_dir, fresh=False)
    _limit_activations(task)
    clock = constant_weights_clock(task, recipe)
    report(f"{name}: training")
    steps, steps_in_round = _time_steps(clock)
    report(f"{name}: evaluation")
    images = read_manifest(data_dir / recipe.flat()["data.name"]).image_counts()["test"]
    speed = Speed(statistics.median(steps), len(steps) * steps_in_round, _evaluation(clock, task, images), images)
    del task, clock
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return speed


def constant_weights_clock(task: Task, recipe: Recipe) -> StepClock:
    """Return a clock whose steps do all the work of training but leave the weights as they are."""
    train = recipe.train.model_copy(update={"learning_rate": _TINY_LEARNING_RATE})
    return StepClock(task, recipe.model_copy(update={"train": train}))


def _time_steps(clock: StepClock) -> tuple[list[float], int]:
    """Return the seconds per step of each round, and the number of steps in a round."""

    def per_step(steps: int) -> float:
        return clock.seconds(steps) / steps

    per_step(1)  # not used: on a GPU the first step loads libraries
    step = per_step(1)
    if step >= SECONDS:
        return [step], 1
    if step < SECONDS / 10:
        per_step(WARM_UP_STEPS)
        step = per_step(_PROBE_STEPS)
    steps_in_round = max(1, round(SECONDS / 8 / step))
    rounds = max(1, round(SECONDS / (steps_in_round * step)))
    return [per_step(steps_in_round) for _ in range(rounds)], steps_in_round


def _evaluation(clock: StepClock, task: Task, images: int) -> float:
    """Return the seconds per image of the test split: of the second pass, unless the first takes very long."""
    seconds = clock.seconds_of(partial(task.evaluate, "test"))
    if seconds < 10 * SECONDS:
        seconds = clock.seconds_of(partial(task.evaluate, "test"))
    return seconds / images


def _limit_activations(task: Task) -> None:
    """Scale down an untrained network's frozen batch norms, through which activations would grow with every block."""
    for module in task.model.modules():
        if isinstance(module, FrozenBatchNorm):
            module.weight.fill_(0.5)
