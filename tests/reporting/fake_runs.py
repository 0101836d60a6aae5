from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder

CIFAR10_RESNET20 = {"data.name": "cifar10", "model.arch": "resnet20"}
BASE = {**CIFAR10_RESNET20, "affinity.loss": "none"}
AFFINITY = CIFAR10_RESNET20
SHORT = {"train.epochs": 2, "train.milestones": []}


class RunMaker:
    """Writes run folders through the folder's own writers, as the engine does.

    Metrics it writes by hand: a diverged run of an older version may hold what the writers refuse.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def start(
        self,
        overrides: Mapping[str, Any],
        seed: int = 0,
        *,
        recipe_name: str = "minibatch",
        name: str | None = None,
        data: Mapping[str, Any] | None = None,
        **environment: Any,
    ) -> RunFolder:
        """A run that has begun: its recipe and environment."""
        recipe = load_recipe(recipe_name, {**overrides, "seed": seed})
        self.count += 1
        run = RunFolder(self.root / (name or f"run{self.count:03d}"))
        run.path.mkdir(parents=True)
        run.write_recipe(recipe)
        facts = {
            "affsup": "0.1.0",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "python": "3.11.7",
            "torch": "2.15.0",
            "device": "cuda:0",
            "device_name": "Test GPU",
            "threads": 2,
            "platform": "Linux",
            "started": f"2026-11-{self.count // 60 + 1:02d}T10:{self.count % 60:02d}:00+00:00",
            "data": {
                "name": recipe.flat()["data.name"],
                "digest": "d" * 64,
                "limit": None,
                "complete": True,
                "official": True,
                **(data or {}),
            },
        }
        run.write_environment({**facts, **environment})
        return run

    def train(
        self,
        overrides: Mapping[str, Any],
        accuracy: float,
        seed: int = 0,
        *,
        curve: Sequence[Mapping[str, Any]] | None = None,
        features: tuple[Any, Any] | None = None,
        **start: Any,
    ) -> RunFolder:
        """A finished training run with that test accuracy."""
        metrics = {"val_accuracy": accuracy - 0.01, "test_accuracy": accuracy, "test_mass": 0.4}
        run = self.finish(overrides, metrics, seed, **start)
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in curve or []))
        if features is not None:
            np.savez(run.features, features=features[0], labels=features[1])
        return run

    def finish(
        self, overrides: Mapping[str, Any], metrics: Mapping[str, Any], seed: int = 0, **start: Any
    ) -> RunFolder:
        """A finished training run with those metrics."""
        run = self.start(overrides, seed, **start)
        epochs = run.recipe().train.epochs
        result = {"kind": "train", "epochs": epochs, "best_epoch": epochs, "seconds": 1.0, "metrics": dict(metrics)}
        (run.path / "result.json").write_text(json.dumps(result))
        return run

    def measure(
        self,
        overrides: Mapping[str, Any],
        baseline: Sequence[float],
        treatment: Sequence[float],
        megabytes: tuple[float | None, float | None] = (2000.0, 2100.0),
        **start: Any,
    ) -> RunFolder:
        """A finished cost comparison."""
        run = self.start(overrides, **start)
        run.write_result(
            {
                "kind": "cost",
                "rounds": len(baseline),
                "steps_per_round": 10,
                "steps_per_epoch": 352,
                "baseline": {"seconds_per_epoch": list(baseline), "peak_megabytes": megabytes[0]},
                "treatment": {"seconds_per_epoch": list(treatment), "peak_megabytes": megabytes[1]},
            }
        )
        return run


def decay(epochs: int, final: float, mass: float | None, *, test: bool = True, noise: int = 0) -> list[dict[str, Any]]:
    """Metrics of a run whose accuracy comes near `final` and whose mass comes near `mass`."""
    wobble = np.random.default_rng(noise).normal(0, 0.004, epochs)
    records = []
    for epoch in range(1, epochs + 1):
        progress = 1 - math.exp(-6 * epoch / epochs)
        accuracy = final * progress + float(wobble[epoch - 1])
        shown = None if mass is None else 0.1 + (mass - 0.1) * progress
        record = {"epoch": epoch, "train_loss": 1.0, "val_accuracy": accuracy - 0.01, "val_mass": shown}
        records.append(record | ({"test_accuracy": accuracy, "test_mass": shown} if test else {}))
    return records


def blobs(images: int = 200, classes: int = 10, spread: float = 1.0) -> tuple[Any, Any]:
    """Features in clusters, as the engine stores them."""
    random = np.random.default_rng(0)
    labels = np.arange(images, dtype=np.int64) % classes
    centres = random.normal(0, 3, (classes, 64))
    return (centres[labels] + random.normal(0, spread, (images, 64))).astype(np.float16), labels
