"""The smallest task there is: the engine must drive it without knowing what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affsup_cli.training.task import Losses


class ToyTask:
    """Linear regression on numbers drawn anew each epoch, with a quadratic second loss in the place of L_G."""

    data: Mapping[str, Any] = {"name": "toy", "digest": "0" * 64, "limit": None, "complete": True, "official": None}

    def __init__(self, steps: int = 4, batch: int = 8, weight: float = 0.5, affinity: bool = True) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 1))
        self.steps = steps
        self.weight = weight
        self.affinity = affinity
        self.batch = batch
        self.images = steps * batch
        self.poisoned: tuple[int, int] | None = None
        self.spoiled: dict[str, float] = {}
        self.scores: list[float] | None = None
        self.evaluated: list[str] = []
        self.epochs_begun: list[int] = []
        self.exported: list[str] = []
        self.before_step: dict[tuple[int, int], Any] = {}

    weights = None

    def begin_epoch(self, epoch: int) -> None:
        self.epochs_begun.append(epoch)
        generator = torch.Generator().manual_seed(epoch)
        self.x = torch.randn(self.steps * self.batch, 3, generator=generator)
        self.y = self.x.sum(1, keepdim=True)

    def losses(self, step: int) -> Losses:
        here = (self.epochs_begun[-1], step)
        if here in self.before_step:
            self.before_step[here]()
        part = slice(step * self.batch, min((step + 1) * self.batch, self.images))
        prediction = self.model(self.x[part])
        error = (prediction - self.y[part]).square().mean()
        if here == self.poisoned:
            error = error * float("nan")
        return Losses(
            size=len(prediction),
            main={"fit_loss": error},
            affinity=prediction.square().mean() if self.affinity else None,
            weight=self.weight,
            shared_features=prediction,
            metrics={"bias": prediction.mean()},
        )

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        self.evaluated.append(split)
        self.model.eval()
        generator = torch.Generator().manual_seed({"val": 1001, "test": 1002}[split])
        x = torch.randn(64, 3, generator=generator)
        error = float((self.model(x) - x.sum(1, keepdim=True)).square().mean())
        return {"error": self.spoiled.get(split, error)}

    def score(self, metrics: Mapping[str, float]) -> float:
        return self.scores[self.epochs_begun[-1]] if self.scores else -metrics["error"]

    def export(self, folder: Path, split: str) -> None:
        self.exported.append(split)
