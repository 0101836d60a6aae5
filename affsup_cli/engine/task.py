"""What the engine asks of a task. It never asks which one it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from affsup_cli.engine.distributed import count, total
from affsup_cli.engine.recorded import Repeated


@dataclass(frozen=True)
class Losses:
    """One batch's losses: L = sum(main) + weight * affinity (eq. 8).

    Of a batch that several processes share these are of this process's images; `over_processes` makes them one.

    Attributes:
        size: images in the batch; 0 where this process has none and computed on a stand-in.
        main: the terms of the main loss by name, scalars.
        affinity: L_G, a scalar, or None where it is not trained on.
        weight: lambda.
        meeting: the tensor through which both losses reach the network; there the gradient share of L_G is measured.
        metrics: further scalars to average over the epoch, by name.
        of_some: the same of a part of the batch: the mean over that part, and how many images it has (a scalar, 0 or
            more). What only images with a target have is averaged over these.
        whole: images in the batch of all processes; None where there is one process.
        counts: of terms that are means over something else than images, how many of these (scalars), by the term's
            name in `main`; of L_G under "affinity".
        joint: L_G is of the images of all processes, and so the same on each of them; its gradient reaches this
            process's images alone.
    """

    size: int
    main: Mapping[str, Tensor]
    affinity: Tensor | None
    weight: float
    meeting: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    of_some: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    whole: int | None = None
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    joint: bool = False

    def total(self) -> Tensor:
        """Return L."""
        return self._total_of_main() if self.affinity is None else self._total_of_main() + self.weight * self.affinity

    def _total_of_main(self) -> Tensor:
        return torch.stack(tuple(self.main.values())).sum()

    def gradient_share(self) -> Tensor:
        """Return |d weight*L_G| / (|d main| + |d weight*L_G|) at `meeting`, in 0..1; a backward pass may follow.

        Of the whole batch, where each process's losses are its part of the sum over processes.
        """
        if self.affinity is None:
            return self.meeting.new_zeros(())
        (of_main,) = torch.autograd.grad(self._total_of_main(), self.meeting, retain_graph=True)
        (of_affinity,) = torch.autograd.grad(self.weight * self.affinity, self.meeting, retain_graph=True)
        norms = torch.stack([of_main.float().norm(), of_affinity.float().norm()])
        main, affinity = total(norms.square()).sqrt() if count() > 1 else norms
        share: Tensor = affinity / (main + affinity).clamp_min(torch.finfo(torch.float32).tiny)
        return share


def over_processes(losses: Losses) -> tuple[Losses, Losses]:
    """Return a batch's losses as all processes have them together, and this one's part of their gradient.

    The sum over processes of the gradients of the second's `total()` is the gradient of the first's, which itself has
    none. With one process both are `losses`.
    """
    if count() == 1:
        return losses, losses
    if losses.whole is None:
        raise ValueError("the task trains on whole batches: several processes cannot share them")
    terms = dict(losses.main) if losses.affinity is None else {**losses.main, "affinity": losses.affinity}
    means = {**terms, **losses.metrics}
    here = losses.meeting.new_full((), losses.size, dtype=torch.float64)
    counts = {name: losses.counts.get(name, here).double() * (losses.size > 0) for name in means}
    of_some = {name: (value, number.double() * (losses.size > 0)) for name, (value, number) in losses.of_some.items()}
    weighted = [value.detach().double() * counts[name] for name, value in means.items()]
    weighted += [value.detach().double() * number for value, number in of_some.values()]
    numbers = [*counts.values(), *(number for _, number in of_some.values())]
    sums, totals = total(torch.stack([torch.stack(weighted), torch.stack(numbers)]))
    at_least_one = totals.clamp(min=1)
    everyones = dict(zip([*means, *of_some], zip(sums / at_least_one, totals, strict=True), strict=True))
    shares = {name: (counts[name] / at_least_one[place]).float() for place, name in enumerate(means)}
    if losses.joint:
        shares["affinity"] = torch.ones_like(shares["affinity"])
    whole = replace(
        losses,
        size=losses.whole,
        main={name: everyones[name][0] for name in losses.main},
        affinity=None if losses.affinity is None else everyones["affinity"][0],
        metrics={name: everyones[name][0] for name in losses.metrics},
        of_some={name: everyones[name] for name in of_some},
    )
    part = replace(
        losses,
        main={name: value * shares[name] for name, value in losses.main.items()},
        affinity=None if losses.affinity is None else losses.affinity * shares["affinity"],
    )
    return whole, part


class Task(Protocol):
    """A model with its data."""

    steps: int
    """Steps an epoch."""
    data: dict[str, Any]
    """Which data, for the run's record: name, digest, limit, complete, official, classes."""
    begun_from: dict[str, Any]
    """What its model was begun from, for the run's record: `weights`, the SHA-256 of a file of pretrained weights or
    None; of tasks that build on another run also `network`: its name, the digest of its weights, its data; or None."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def begin_epoch(self, epoch: int) -> None:
        """Draw what the batches of `epoch` (0, 1, ...) need; a function of the recipe's seed and `epoch` alone."""

    def losses(self, step: int) -> Losses:
        """Run the model on batch `step` (0 <= step < steps) of the epoch."""

    def evaluate(self, split: str) -> dict[str, float]:
        """Evaluate the model on a split; the metrics' names carry no split. `accuracy`-like metrics lie in 0..1."""

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return what the best epoch is chosen by, higher is better, from `evaluate("val")`."""

    def export(self, folder: Path, split: str) -> None:
        """Write what reports need of a split beyond numbers into the run folder; `evaluate(split)` came before."""


@runtime_checkable
class StaticTask(Task, Protocol):
    """A task most of whose steps are the same work each time, on the same memory (see `recorded`)."""

    static_steps: int
    """So many steps of an epoch are alike, from the first: of one size, with no random numbers and no wait."""
    repeated: Repeated
    """What does work that is the same every time, as in an evaluation; whoever drives the task may put another here."""

    def losses(self, step: int | Tensor) -> Losses:
        """Run the model on batch `step` of the epoch; a tensor on the device may say which of the `static_steps`."""
