"""What the engine asks of a task. It never asks which one it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Losses:
    """One batch's losses: L = sum(main) + weight * affinity (eq. 8).

    Attributes:
        size: images in the batch.
        main: the terms of the main loss by name, scalars.
        affinity: L_G, a scalar, or None where it is not trained on.
        weight: lambda.
        meeting: the tensor through which both losses reach the network; there the gradient share of L_G is measured.
        metrics: further scalars to average over the epoch, by name.
        of_some: the same of a part of the batch: the mean over that part, and how many images it has (a scalar, 0 or
            more). What only images with a target have is averaged over these.
    """

    size: int
    main: Mapping[str, Tensor]
    affinity: Tensor | None
    weight: float
    meeting: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    of_some: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Return L."""
        return self._total_of_main() if self.affinity is None else self._total_of_main() + self.weight * self.affinity

    def _total_of_main(self) -> Tensor:
        return torch.stack(tuple(self.main.values())).sum()

    def gradient_share(self) -> Tensor:
        """Return |d weight*L_G| / (|d main| + |d weight*L_G|) at `meeting`, in 0..1; a backward pass may follow."""
        if self.affinity is None:
            return self.meeting.new_zeros(())
        (of_main,) = torch.autograd.grad(self._total_of_main(), self.meeting, retain_graph=True)
        (of_affinity,) = torch.autograd.grad(self.weight * self.affinity, self.meeting, retain_graph=True)
        affinity = of_affinity.float().norm()
        share: Tensor = affinity / (of_main.float().norm() + affinity).clamp_min(torch.finfo(torch.float32).tiny)
        return share


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
