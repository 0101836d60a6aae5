"""What a training step costs: two variants timed in turns, and the peak memory of each in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from affsup_cli.engine.recorded import WARM_UP
from affsup_cli.engine.step import TrainingStep, recorder_for
from affsup_cli.engine.task import Task
from affsup_cli.recipe import Recipe

BuildTask = Callable[[], Task]

WARM_UP_STEPS = WARM_UP + 1  # the last one records, where steps are recorded
LEAST_STEPS = 2
ROUND_SECONDS = 0.5


def time_in_turns(
    baseline: BuildTask, treatment: BuildTask, recipe: Recipe, rounds: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Time two variants of one experiment side by side, whose `[train]` and `[run]` are those of `recipe`.

    A round runs the same number of steps of each, in alternating order, so that whatever else the machine does falls on
    both alike. A step is forward, losses, backward and optimiser, data and augmentation included.

    Returns:
        `rounds`, `steps_per_round`, `steps_per_epoch`, and for `baseline` and `treatment` the `seconds_per_epoch` of
        each round, scaled from its steps to an epoch's.
    """
    clocks = [StepClock(baseline(), recipe), StepClock(treatment(), recipe)]
    for clock in clocks:
        clock.seconds(WARM_UP_STEPS)
    # Both take these steps, so that an epoch begins for both in the same round.
    of_a_step = min(clock.seconds(LEAST_STEPS) for clock in clocks) / LEAST_STEPS
    steps = max(LEAST_STEPS, round(ROUND_SECONDS / of_a_step))
    epoch = clocks[0].steps
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            seconds[which].append(clocks[which].seconds(steps) / steps * epoch)
        progress(turn + 1)
    return {
        "rounds": rounds,
        "steps_per_round": steps,
        "steps_per_epoch": epoch,
        "baseline": {"seconds_per_epoch": seconds[0]},
        "treatment": {"seconds_per_epoch": seconds[1]},
    }


def peak_megabytes(task: BuildTask, recipe: Recipe) -> float:
    """Return the peak memory of a few training steps in a fresh process, in units of 2^20 bytes.

    On CUDA what PyTorch's allocator held at most; on a CPU the resident set of the whole process, libraries and data
    set included.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_some_steps, (task, recipe))


class StepClock:
    """Takes a task's steps in a row, over as many epochs as it takes.

    Args:
        task: whose.
        recipe: its `[train]` and `[run]` say how.

    Attributes:
        steps: an epoch's.
    """

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self._task = task
        self._device = next(task.model.parameters()).device
        self._steps = TrainingStep(task, recipe.train, recorder_for(task, recipe.run.graph))
        # One for all: memory that PyTorch keeps for a stream is of no use to the next.
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._taken = 0
        self.steps = task.steps
        task.model.train()

    def seconds(self, steps: int) -> float:
        """Take so many steps; returns how long that took, to the end of the device's work."""
        return self.seconds_of(partial(self._take, steps))

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Do other work of the task, such as an evaluation, where its steps are done; returns how long that took."""
        self._wait()
        begun = time.perf_counter()
        with torch.cuda.stream(self._stream):
            work()
        self._wait()
        return time.perf_counter() - begun

    def _take(self, steps: int) -> None:
        for _ in range(steps):
            epoch, step = divmod(self._taken, self.steps)
            if step == 0:
                self._task.begin_epoch(epoch)
                self._steps.begin(epoch, step)
            self._steps.take(step)
            self._taken += 1

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _peak_of_some_steps(task: BuildTask, recipe: Recipe) -> float:
    built = task()
    StepClock(built, recipe).seconds(WARM_UP_STEPS)
    device = next(built.model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _peak_resident_bytes() / 2**20


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would give the parent's peak too: Linux hands it down through fork and exec
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
