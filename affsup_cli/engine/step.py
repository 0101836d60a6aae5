"""A training step: forward, losses, backward, optimiser, and what is taken down of it.

Everything that changes from step to step is on the device and stays in its memory: place in the epoch, learning rate,
averages, the watch over the loss. A step whose batch the task can find from there (`StaticTask`) is therefore
the same work every time, which may be recorded (see `recorded`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from affsup_cli.engine import distributed
from affsup_cli.engine.checkpoint import copied_state
from affsup_cli.engine.recorded import CudaGraphs, Recorder, Repeated
from affsup_cli.engine.task import Losses, StaticTask, Task, over_processes
from affsup_cli.metrics.average import Averages, float64_row
from affsup_cli.recipe import Training
from data_prep.errors import AffsupError

DIVERGED = "a new run with a smaller train.learning_rate or affinity.lambda is the usual cure"


def learning_rate(train: Training, epoch: int) -> float:
    """Return the learning rate of `epoch` (0, 1, ...): divided by 10 at each milestone passed (section 6.2)."""
    return train.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)


def optimizer(task: Task, train: Training) -> torch.optim.Optimizer:
    """Return SGD with momentum and weight decay on every parameter (section 6.2), its steps fused."""
    return torch.optim.SGD(
        task.model.parameters(), train.learning_rate, train.momentum, weight_decay=train.weight_decay, fused=True
    )


def clipped_step(steps: torch.optim.Optimizer, clip_norm: float) -> None:
    """Take a step along the gradients there are, cut down to the norm `clip_norm` if that is not 0."""
    if clip_norm:
        torch.nn.utils.clip_grad_norm_([p for group in steps.param_groups for p in group["params"]], clip_norm)
    steps.step()


def recorder_for(task: Task, graph: str) -> Recorder[Any] | None:
    """Return what records the steps of a task; None where none are alike, or not on CUDA, or `run.graph` is "off"."""
    device = next(task.model.parameters()).device
    alike = isinstance(task, StaticTask) and task.static_steps > 0
    return CudaGraphs(device) if alike and device.type == "cuda" and graph == "auto" else None


class TrainingStep:
    """Takes the steps of a task, and has what they leave behind.

    Args:
        task: what is trained.
        train: how.
        record: takes down a step that is the same every time; None: each is done anew.

    Attributes:
        averages: means over the epoch.
        watch: over the losses of the epoch.
    """

    def __init__(self, task: Task, train: Training, record: Recorder[Any] | None = None) -> None:
        self._task = task
        self._train = train
        self._optimizer = optimizer(task, train)
        self._same = distributed.SameModel(task.model)
        self._repeated = Repeated(record)
        self._static_steps = 0
        if isinstance(task, StaticTask):
            task.repeated = self._repeated
            self._static_steps = task.static_steps
        device = next(task.model.parameters()).device
        self._rate = torch.zeros((), device=device)
        self._place = torch.zeros((), dtype=torch.int64, device=device)
        self.averages = Averages()
        self.watch = LossWatch()

    def begin(self, epoch: int, step: int) -> None:
        """Stand before `step` of `epoch`."""
        self._rate.fill_(learning_rate(self._train, epoch))
        self._place.fill_(step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        self.watch.begin(epoch, step)

    def take(self, step: int, looking: bool = False) -> int:
        """Take the next step of the epoch, which is `step`; returns how many images it had.

        Args:
            step: 0 <= step < `Task.steps`.
            looking: measure the gradient share as well.
        """
        if step >= self._static_steps:
            return self._take(partial(self._task.losses, step), looking)
        losses = partial(cast(StaticTask, self._task).losses, self._place)
        return self._repeated(f"looking {looking}", partial(self._take, losses, looking))

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; `begin` comes next."""
        # Tensors that are kept must not hold on to a file that the next checkpoint takes the place of.
        self._optimizer.load_state_dict(copied_state(state))
        for parameter, kept in self._optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # The fused step takes them for memory of one layout, which `run.channels_last` may have changed.
                    kept[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    def _take(self, of_the_batch: Callable[[], Losses], looking: bool) -> int:
        losses = of_the_batch()
        whole, part = over_processes(losses)
        total = part.total()
        self._take_down(whole, part, total, looking)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        self._same.sum_gradients(losses.size / whole.size)
        clipped_step(self._optimizer, self._train.clip_norm)
        self._place.add_(1)
        return whole.size

    def _take_down(self, losses: Losses, part: Losses, total: Tensor, looking: bool) -> None:
        """Take down a step: `losses` of the whole batch, `part` this process's of it, with the sum `total`."""
        loss = total if losses is part else losses.total()
        values = {"loss": loss, **losses.main, **losses.metrics}
        if losses.affinity is not None:
            values["affinity_loss"] = losses.affinity
            if looking:
                self.averages.add({"gradient_share": part.gradient_share()}, losses.size)
        names, numbers = tuple(values), float64_row(list(values.values()))
        self.averages.add_row(tuple(f"train_{name}" for name in names), numbers, losses.size)
        for name, (value, count) in losses.of_some.items():
            self.averages.add({f"train_{name}": value}, count)
        self.watch.look(names, numbers)


class LossWatch:
    """Remembers, on the device, the first step of an epoch whose loss is not finite."""

    def __init__(self) -> None:
        self._epoch = self._begun = 0
        self._names: tuple[str, ...] = ()
        self._seen: Tensor | None = None  # whether it was bad, the step, its numbers

    def begin(self, epoch: int, step: int) -> None:
        """Watch `epoch` (0, 1, ...), of which `step` steps are done already."""
        self._epoch, self._begun = epoch, step
        if self._seen is not None:
            self._seen[0].fill_(0)
            self._seen[1].fill_(step)

    def look(self, names: tuple[str, ...], numbers: Tensor) -> None:
        """Take note of the next step's float64 numbers, of which the first, the loss, decides."""
        if self._seen is None:
            self._names = names
            self._seen = numbers.new_zeros(2 + len(names))
            self._seen[1].fill_(self._begun)
        bad = (~torch.isfinite(numbers[:1])).double()
        following = torch.cat([bad, self._seen[1:2] + 1, numbers])
        self._seen.copy_(torch.where(self._seen[0] > 0, self._seen, following))

    def check(self) -> None:
        """Read the device.

        Raises:
            AffsupError: some step's loss was not finite; its numbers are in the message.
        """
        if self._seen is None:
            return
        bad, step, *numbers = self._seen.tolist()
        if bad:
            said = ", ".join(f"{name} = {number:.6g}" for name, number in zip(self._names, numbers, strict=True))
            place = f"epoch {self._epoch + 1}, step {step:.0f}"
            raise AffsupError(f"the loss is not finite in {place}: {said}. The run ends here: {DIVERGED}")
