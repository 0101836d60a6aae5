"""Timing a few steps of every kind of run, those that are to be compared in turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torchvision.ops import FrozenBatchNorm2d

from affsup_cli.bench.needs import Kind, Speed, kind_of
from affsup_cli.engine.cost import WARM_UP_STEPS, StepClock
from affsup_cli.engine.task import Task
from affsup_cli.recipe import Recipe
from affsup_cli.tasks import build_task
from data_prep.format import read_manifest

Tell = Callable[[str], None]
"""Told what is being timed."""

SECONDS = 3.0  # of timed steps a kind, or one step if that is longer
_STEPS_TO_GO_BY = 3  # to know how many steps make a round
_STANDSTILL = 1e-12  # a learning rate that leaves untrained weights as they are, and their numbers finite


@dataclass(frozen=True)
class Ratio:
    """Two ways to do something, side by side.

    Attributes:
        what: numerator and denominator.
        value: median of the ratios of the rounds.
        rounds: how many.
        goal: what affsup claims, in words.
    """

    what: str
    value: float
    rounds: int
    goal: str


def measure(
    kinds: Mapping[Kind, Recipe], data_dir: Path, device: str, tell: Tell
) -> tuple[dict[Kind, Speed], list[Ratio]]:
    """Time every kind of run, and what L_G and relations cost.

    Args:
        kinds: a recipe of each.
        data_dir: where data sets of their names are prepared, of any content.
        device: as `run.device`.
        tell: told what is being timed.

    Returns:
        The speeds, and the ratios of the kinds that are there: a mini-batch step with L_G ÷ without, a relnet step with
        L_G ÷ without and ÷ frcnn.
    """
    speeds: dict[Kind, Speed] = {}
    ratios: list[Ratio] = []
    for group in _groups(kinds):
        if any(kind_of(recipe) not in speeds for recipe in group.values()):
            steps = _time_group(group, data_dir, device, tell, speeds)
            ratios += _ratios(steps)
    return speeds, ratios


def _groups(kinds: Mapping[Kind, Recipe]) -> list[dict[str, Recipe]]:
    """Recipes by name that are timed in turns: the first of a task with what it is compared with, others alone."""
    groups: list[dict[str, Recipe]] = []
    for task in ("minibatch", "relnet"):
        first = next((kind for kind in kinds if kind.task == task), None)
        if first is None:
            continue
        group = {f"{task} with L_G": kinds[first], f"{task} without L_G": _without_l_g(kinds[first])}
        compared = first._replace(task="frcnn")
        if task == "relnet" and compared in kinds:
            group["frcnn"] = kinds[compared]
        groups.append(group)
    return [*groups, *({str(kind): recipe} for kind, recipe in kinds.items())]


def _without_l_g(recipe: Recipe) -> Recipe:
    fields = recipe.model_dump(by_alias=True)
    fields["affinity"] |= {"loss": "none", "measure": False}
    return type(recipe).model_validate(fields)


def _ratios(steps: Mapping[str, list[float]]) -> list[Ratio]:
    wanted = (
        ("minibatch with L_G", "minibatch without L_G", "at most 1.02"),
        ("relnet with L_G", "relnet without L_G", "at most 1.01"),
        ("relnet with L_G", "frcnn", "at most 1.10 on a GPU"),
    )
    found = []
    for above, below, goal in wanted:
        if above in steps and below in steps:
            of_rounds = [a / b for a, b in zip(steps[above], steps[below], strict=True)]
            found.append(Ratio(f"{above} ÷ {below}", statistics.median(of_rounds), len(of_rounds), goal))
    return found


def _time_group(
    group: Mapping[str, Recipe], data_dir: Path, device: str, tell: Tell, speeds: dict[Kind, Speed]
) -> dict[str, list[float]]:
    """Time some recipes in turns, and enter the speeds of their kinds; returns seconds a step, a value a round."""
    tasks: dict[str, Task] = {}
    clocks: dict[str, StepClock] = {}
    for name, recipe in group.items():
        tell(f"{name}: build")
        run = recipe.run.model_copy(update={"device": device})
        tasks[name] = build_task(recipe.model_copy(update={"run": run}), data_dir, fresh=False)
        _calm(tasks[name])
        clocks[name] = standing_clock(tasks[name], recipe)
    steps, of_a_round = _in_turns(clocks, tell)
    for name, recipe in group.items():
        if kind_of(recipe) not in speeds:
            tell(f"{name}: evaluation")
            images = read_manifest(data_dir / recipe.flat()["data.name"]).image_counts()["test"]
            of_a_step = statistics.median(steps[name])
            speeds[kind_of(recipe)] = Speed(
                of_a_step, len(steps[name]) * of_a_round, _evaluation(clocks[name], tasks[name], images), images
            )
    clocks.clear()
    tasks.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return steps


def standing_clock(task: Task, recipe: Recipe) -> StepClock:
    """Return a clock whose steps do all the work of training, and leave the weights as they are."""
    train = recipe.train.model_copy(update={"learning_rate": _STANDSTILL})
    return StepClock(task, recipe.model_copy(update={"train": train}))


def _in_turns(clocks: Mapping[str, StepClock], tell: Tell) -> tuple[dict[str, list[float]], int]:
    """Return seconds a step of each round, and the steps of a round."""

    def timed(name: str, steps: int) -> float:
        tell(f"{name}: training")
        return clocks[name].seconds(steps) / steps

    def each(steps: int) -> dict[str, float]:
        return {name: timed(name, steps) for name in clocks}

    each(1)  # on a GPU this one loads libraries, and says nothing of the next
    second = each(1)
    longest = max(second.values())
    if longest >= SECONDS:
        return {name: [seconds] for name, seconds in second.items()}, 1
    if longest < SECONDS / 10:
        each(WARM_UP_STEPS)
        longest = max(each(_STEPS_TO_GO_BY).values())
    of_a_round = max(1, round(SECONDS / 8 / longest))
    rounds = max(1, round(SECONDS / (of_a_round * longest)))
    taken: dict[str, list[float]] = {name: [] for name in clocks}
    for turn in range(rounds):
        for name in list(clocks) if turn % 2 == 0 else list(clocks)[::-1]:
            taken[name].append(timed(name, of_a_round))
    return taken, of_a_round


def _evaluation(clock: StepClock, task: Task, images: int) -> float:
    """Return the seconds of an image of the test split, by the second pass unless the first takes very long."""
    seconds = clock.seconds_of(partial(task.evaluate, "test"))
    if seconds < 10 * SECONDS:
        seconds = clock.seconds_of(partial(task.evaluate, "test"))
    return seconds / images


def _calm(task: Task) -> None:
    """Keep an untrained network's numbers small: frozen as it is made, batch norm lets them grow with every block."""
    for module in task.model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)
