"""A training step: forward, losses, backward, optimiser, and the metrics that it logs.

All state that changes from step to step is in fixed tensors on the device: position in the epoch, learning rate,
averages, the check for a loss that is not finite. A step whose batch the task can find from there (`StaticTask`)
therefore does the same work at each call, and can be captured as a CUDA graph (see `cuda_graph`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from affsup_cli.distributed import collectives
from affsup_cli.metrics.average import Averages, float64_row
from affsup_cli.recipe import Training
from affsup_cli.runs.checkpoint import clone_state
from affsup_cli.training.cuda_graph import Capture, CapturedCalls, CudaGraphCapture
from affsup_cli.training.task import Losses, StaticTask, Task, all_reduce_losses
from data_prep.errors import AffsupError

CURE = "start a new run with a smaller train.learning_rate or affinity.lambda"


class Diverged(AffsupError):
    """A loss, a weight or a metric of the training is not finite."""


def learning_rate(train: Training, epoch: int) -> float:
    """Return the learning rate of `epoch` (0, 1, ...).

    Schedule "steps" divides it by 10 at each milestone passed (section 6.2); "cosine" is half a cosine wave from
    `train.learning_rate` in the first epoch to 0 after the last (Loshchilov and Hutter, SGDR).
    """
    if train.schedule == "cosine":
        return train.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / train.epochs))
    return train.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)


def optimizer(task: Task, train: Training) -> torch.optim.Optimizer:
    """Return fused SGD with momentum and weight decay on every parameter (section 6.2)."""
    return torch.optim.SGD(
        task.model.parameters(), train.learning_rate, train.momentum, weight_decay=train.weight_decay, fused=True
    )


def clipped_step(sgd: torch.optim.Optimizer, clip_norm: float) -> None:
    """Clip the gradients to the norm `clip_norm` if that is not 0, then step the optimiser."""
    if clip_norm:
        torch.nn.utils.clip_grad_norm_([p for group in sgd.param_groups for p in group["params"]], clip_norm)
    sgd.step()


@contextlib.contextmanager
def batches_counted_at_once(model: nn.Module) -> Iterator[None]:
    """Add 1 to `num_batches_tracked` of all training batch norms by one operator: each would launch its own kernel.

    Within the context a forward pass must run each of them once.
    """
    batch_norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in batch_norms if norm.training and norm.momentum and norm.num_batches_tracked is not None]
    counters = [cast(Tensor, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, counter in zip(norms, counters, strict=True):
            norm.num_batches_tracked = counter
    if counters:
        torch._foreach_add_(counters, 1)


def graph_capture(task: Task, graph: str) -> Capture[Any] | None:
    """Return the capture for the steps of a task; None if no steps are static, not on CUDA, or `run.graph` is "off"."""
    device = next(task.model.parameters()).device
    static = isinstance(task, StaticTask) and task.static_steps > 0
    return CudaGraphCapture(device) if static and device.type == "cuda" and graph == "auto" else None


class TrainingStep:
    """Runs the training steps of a task and accumulates their metrics.

    Args:
        task: what is trained.
        train: how.
        capture: captures static steps; None: every step runs eagerly.

    Attributes:
        averages: means over the epoch.
        loss_check: finds the first loss of the epoch that is not finite.
    """

    def __init__(self, task: Task, train: Training, capture: Capture[Any] | None = None) -> None:
        self._task = task
        self._train = train
        self._optimizer = optimizer(task, train)
        self._replica = collectives.ModelReplica(task.model)
        self._captured = CapturedCalls(capture)
        self._static_steps = 0
        if isinstance(task, StaticTask):
            task.captured = self._captured
            self._static_steps = task.static_steps
        device = next(task.model.parameters()).device
        self._rate = torch.zeros((), device=device)
        self._position = torch.zeros((), dtype=torch.int64, device=device)
        self.averages = Averages()
        self.loss_check = FiniteLossCheck()

    def begin(self, epoch: int, step: int) -> None:
        """Set the position: `step` of `epoch` is run next."""
        self._rate.fill_(learning_rate(self._train, epoch))
        self._position.fill_(step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        self.loss_check.begin(epoch, step)

    def run(self, step: int, measure_gradient_share: bool = False) -> int:
        """Run the next step of the epoch; returns how many images its batch has, over all processes.

        Args:
            step: its number, 0 <= step < `Task.steps`.
            measure_gradient_share: measure and log the gradient share of L_G as well.
        """
        if step >= self._static_steps:
            return self._run(partial(self._task.losses, step), measure_gradient_share)
        losses = partial(cast(StaticTask, self._task).losses, self._position)
        name = f"step, gradient share measured: {measure_gradient_share}"
        return self._captured(name, partial(self._run, losses, measure_gradient_share))

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; call `begin` next."""
        # Copied: the tensors may be mapped from a checkpoint file that the next checkpoint replaces.
        self._optimizer.load_state_dict(clone_state(state))
        for parameter, buffers in self._optimizer.state.items():
            for name, value in buffers.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # Fused SGD needs buffers in the memory format of the weights, which `run.channels_last` may change.
                    buffers[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    def _run(self, batch_losses: Callable[[], Losses], measure_gradient_share: bool) -> int:
        with batches_counted_at_once(self._task.model):
            losses = batch_losses()
        batch, part = all_reduce_losses(losses)
        total = part.total()
        self._log_step(batch, part, total, measure_gradient_share)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        self._replica.all_reduce_gradients(losses.size / batch.size)
        clipped_step(self._optimizer, self._train.clip_norm)
        self._position.add_(1)
        return batch.size

    def _log_step(self, batch: Losses, part: Losses, total: Tensor, measure_gradient_share: bool) -> None:
        """Add a step to the averages and to the loss check.

        Args:
            batch: the losses of the global batch.
            part: this process's part of them.
            total: the loss of `part`.
            measure_gradient_share: measure and log the gradient share of L_G as well.
        """
        loss = total if batch is part else batch.total()
        values = {"loss": loss, **batch.main, **batch.metrics}
        if batch.affinity is not None:
            values["affinity_loss"] = batch.affinity
            if measure_gradient_share:
                self.averages.add({"gradient_share": part.gradient_share()}, batch.size)
        names, numbers = tuple(values), float64_row(list(values.values()))
        self.averages.add_row(tuple(f"train_{name}" for name in names), numbers, batch.size)
        for name, (value, count) in batch.masked_means.items():
            self.averages.add({f"train_{name}": value}, count)
        self.loss_check.update(names, numbers)


class FiniteLossCheck:
    """Finds the first step of an epoch whose loss is not finite; until `check` nothing waits for the device."""

    def __init__(self) -> None:
        self._epoch = self._first_step = 0
        self._names: tuple[str, ...] = ()
        self._record: Tensor | None = None  # float64: whether the loss is not finite, steps done, the step's numbers

    def begin(self, epoch: int, step: int) -> None:
        """Check the steps of `epoch` (0, 1, ...) from `step` on."""
        self._epoch, self._first_step = epoch, step
        if self._record is not None:
            self._record[0].fill_(0)
            self._record[1].fill_(step)

    def update(self, names: tuple[str, ...], numbers: Tensor) -> None:
        """Add the next step.

        Args:
            names: of its numbers.
            numbers: float64 `[len(names)]`; the first is the loss.
        """
        if self._record is None:
            self._names = names
            self._record = numbers.new_zeros(2 + len(names))
            self._record[1].fill_(self._first_step)
        bad = (~torch.isfinite(numbers[:1])).double()
        following = torch.cat([bad, self._record[1:2] + 1, numbers])
        self._record.copy_(torch.where(self._record[0] > 0, self._record, following))

    def check(self) -> None:
        """Wait for the device, and raise if a loss was not finite.

        Raises:
            Diverged: names the first such step of the epoch and its numbers.
        """
        if self._record is None:
            return
        bad, step, *numbers = self._record.tolist()
        if bad:
            listed = ", ".join(f"{name} = {number:.6g}" for name, number in zip(self._names, numbers, strict=True))
            position = f"epoch {self._epoch + 1}, step {step:.0f}"
            raise Diverged(f"the loss is not finite in {position}: {listed}. The run ends here: {CURE}")
