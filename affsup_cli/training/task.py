"""The interface between the training engine and a task; the engine does not know which task it drives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from affsup_cli.distributed.collectives import all_reduce_sum, world_size
from affsup_cli.training.cuda_graph import CapturedCalls


@dataclass(frozen=True)
class Losses:
    """The losses of a batch: L = sum(main) + weight * affinity (eq. 8).

    Where several processes share the batch, these are of this process's images; see `all_reduce_losses`.

    Attributes:
        size: images in the batch; 0 where this process has none and computed on a dummy image.
        main: the terms of the main loss by name, scalars.
        affinity: L_G, a scalar, or None where it is not trained on.
        weight: lambda.
        shared_features: the tensor through which both losses reach the network; the gradient share of L_G is measured
            there.
        metrics: further scalars to average over the epoch, by name.
        masked_means: by name, means over a part of the batch, such as the images with a target: the mean, and the
            number of images in it (a scalar, 0 or more), which is its weight in the average over the epoch.
        global_batch_size: images in the batch of all processes; None where there is one process.
        counts: for terms that are means over something else than images, the number of these (scalars), by the term's
            name in `main`; of L_G under "affinity".
        graph_is_global: L_G is of the images of all processes, so it is the same on each of them; its gradient reaches
            this process's images alone.
    """

    size: int
    main: Mapping[str, Tensor]
    affinity: Tensor | None
    weight: float
    shared_features: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    masked_means: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    global_batch_size: int | None = None
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    graph_is_global: bool = False

    def total(self) -> Tensor:
        """Return L."""
        main = self._main_total()
        return main if self.affinity is None else torch.add(main, self.affinity, alpha=self.weight)

    def _main_total(self) -> Tensor:
        return reduce(torch.add, self.main.values())

    def gradient_share(self) -> Tensor:
        """Return |d weight*L_G| / (|d main| + |d weight*L_G|) at `shared_features`, in 0..1.

        The graph is kept for a backward pass. With several processes the norms are over all of them, and each process's
        losses must be its part of the sum over processes.
        """
        if self.affinity is None:
            return self.shared_features.new_zeros(())
        (main_gradient,) = torch.autograd.grad(self._main_total(), self.shared_features, retain_graph=True)
        weighted = self.weight * self.affinity
        (affinity_gradient,) = torch.autograd.grad(weighted, self.shared_features, retain_graph=True)
        norms = torch.stack([main_gradient.float().norm(), affinity_gradient.float().norm()])
        main, affinity = all_reduce_sum(norms.square()).sqrt() if world_size() > 1 else norms
        share: Tensor = affinity / (main + affinity).clamp_min(torch.finfo(torch.float32).tiny)
        return share


def all_reduce_losses(losses: Losses) -> tuple[Losses, Losses]:
    """Return the losses of the global batch, and this process's part of them.

    The global losses have no gradient. The sum over processes of the gradients of the parts' `total()` is the gradient
    of the global `total()`. With one process both are `losses`.
    """
    if world_size() == 1:
        return losses, losses
    if losses.global_batch_size is None:
        raise ValueError("the task trains on whole batches: several processes cannot share them")
    terms = dict(losses.main) if losses.affinity is None else {**losses.main, "affinity": losses.affinity}
    means = {**terms, **losses.metrics}
    images = losses.shared_features.new_full((), losses.size, dtype=torch.float64)
    counts = {name: losses.counts.get(name, images).double() * (losses.size > 0) for name in means}
    masked = {name: (mean, count.double() * (losses.size > 0)) for name, (mean, count) in losses.masked_means.items()}
    local_sums = [value.detach().double() * counts[name] for name, value in means.items()]
    local_sums += [value.detach().double() * count for value, count in masked.values()]
    local_counts = [*counts.values(), *(count for _, count in masked.values())]
    sums, totals = all_reduce_sum(torch.stack([torch.stack(local_sums), torch.stack(local_counts)]))
    at_least_one = totals.clamp(min=1)
    reduced = dict(zip([*means, *masked], zip(sums / at_least_one, totals, strict=True), strict=True))
    fractions = {name: (counts[name] / at_least_one[index]).float() for index, name in enumerate(means)}
    if losses.graph_is_global:
        fractions["affinity"] = torch.ones_like(fractions["affinity"])
    batch = replace(
        losses,
        size=losses.global_batch_size,
        main={name: reduced[name][0] for name in losses.main},
        affinity=None if losses.affinity is None else reduced["affinity"][0],
        metrics={name: reduced[name][0] for name in losses.metrics},
        masked_means={name: reduced[name] for name in masked},
    )
    part = replace(
        losses,
        main={name: value * fractions[name] for name, value in losses.main.items()},
        affinity=None if losses.affinity is None else losses.affinity * fractions["affinity"],
    )
    return batch, part


class Task(Protocol):
    """A model with its data."""

    steps: int
    """Steps of an epoch."""
    data: dict[str, Any]
    """The data set, for the run's environment.json: name, digest, limit, complete, official, classes."""
    initialised_from: dict[str, Any]
    """What the model was initialised from, for the run's environment.json: `weights`, the SHA-256 of a file of
    pretrained weights or None; for tasks that build on another run also `network`: its name, the digest of its weights,
    its data; or None."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""

    def begin_epoch(self, epoch: int) -> None:
        """Draw the random numbers of `epoch` (0, 1, ...): a function of the recipe's seed and `epoch` alone."""

    def losses(self, step: int) -> Losses:
        """Run the model on batch `step` (0 <= step < steps) of the epoch."""

    def evaluate(self, split: str) -> dict[str, float]:
        """Evaluate the model on a split; the metrics' names carry no split. `accuracy`-like metrics lie in 0..1."""

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return the score by which the best epoch is chosen, higher is better, from `evaluate("val")`."""

    def export(self, folder: Path, split: str) -> None:
        """Write what reports need of a split, except metrics, into the run folder; called after `evaluate(split)`."""


@runtime_checkable
class StaticTask(Task, Protocol):
    """A task most of whose steps do the same work on the same memory, so that they can be captured (`cuda_graph`)."""

    static_steps: int
    """The number of steps, from the first of an epoch, that can be captured: one size, no random numbers, no wait."""
    captured: CapturedCalls
    """Calls the static parts of the task, such as an evaluation batch; the training step replaces it by its own."""

    def losses(self, step: int | Tensor) -> Losses:
        """Run the model on batch `step` of the epoch; for the `static_steps` a tensor on the device."""
