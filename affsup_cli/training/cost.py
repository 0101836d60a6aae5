"""The cost of a training step: two variants timed in alternation, and the peak memory of each in a separate process."""

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

from affsup_cli.recipe import Recipe
from affsup_cli.training.cuda_graph import WARM_UP_CALLS
from affsup_cli.training.step import TrainingStep, graph_capture
from affsup_cli.training.task import Task

BuildTask = Callable[[], Task]

WARM_UP_STEPS = WARM_UP_CALLS + 1  # the last one is captured, where steps are captured
MIN_STEPS = 2
ROUND_SECONDS = 0.5


def time_alternating(
    baseline: BuildTask, treatment: BuildTask, recipe: Recipe, rounds: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Time two variants of one experiment in alternation; `recipe` has the `[train]` and `[run]` of both.

    A round runs the same number of steps of each, in alternating order, so that other load on the machine affects both
    alike. A step is forward, losses, backward and optimiser, data and augmentation included.

    Returns:
        `rounds`, `steps_per_round`, `steps_per_epoch`, and for `baseline` and `treatment` the `seconds_per_epoch` of
        each round, scaled from its steps to an epoch's.
    """
    clocks = [StepClock(baseline(), recipe), StepClock(treatment(), recipe)]
    for clock in clocks:
        clock.seconds(WARM_UP_STEPS)
    # Both run the same number of steps, so that an epoch begins for both in the same round.
    step_seconds = min(clock.seconds(MIN_STEPS) for clock in clocks) / MIN_STEPS
    steps = max(MIN_STEPS, round(ROUND_SECONDS / step_seconds))
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

    On CUDA the peak that PyTorch's allocator reports; on a CPU the peak resident set of the process, with libraries and
    data set.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_some_steps, (task, recipe))


class StepClock:
    """Times consecutive training steps of a task, over epoch ends.

    Args:
        task: whose steps.
        recipe: with their `[train]` and `[run]`.

    Attributes:
        steps: the steps of an epoch.
    """

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self._task = task
        self._device = next(task.model.parameters()).device
        self._steps = TrainingStep(task, recipe.train, graph_capture(task, recipe.run.graph))
        # One stream for all calls: PyTorch's allocator does not reuse the memory of one stream for another.
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._done = 0
        self.steps = task.steps
        task.model.train()

    def seconds(self, steps: int) -> float:
        """Run `steps` training steps; returns the seconds until the device has finished them."""
        return self.seconds_of(partial(self._run, steps))

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Call `work`, such as an evaluation of the task, on the stream of its steps; returns the seconds."""
        self._wait()
        begun = time.perf_counter()
        with torch.cuda.stream(self._stream):
            work()
        self._wait()
        return time.perf_counter() - begun

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            epoch, step = divmod(self._done, self.steps)
            if step == 0:
                self._task.begin_epoch(epoch)
                self._steps.begin(epoch, step)
            self._steps.run(step)
            self._done += 1

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
    if status.is_file():  # getrusage would include the parent's peak, which Linux keeps over fork and exec
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
