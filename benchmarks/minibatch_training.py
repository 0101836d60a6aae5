"""Training images/s of `minibatch` against the usual loop, side by side.

The usual loop: torchvision's CIFAR-10 data set, per-image transforms, a DataLoader with a worker a core, NCHW, eager
float32. Same network, batch, augmentation and optimiser; L_G off in both, so that only the loop differs. Blocks of
steps of all variants take turns, and the ratio is the median over the rounds of that of the same round. On a GPU ours
repeats a CUDA graph a step, as `affsup train` does; `without graph` does not.

    python benchmarks/minibatch_training.py --data data

Needs `affsup prepare cifar10`; about six minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from record import record
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.recipe import load_recipe
from affsup_cli.runtime.devices import resolve_device
from affsup_cli.tasks import build_task
from affsup_cli.training.step import TrainingStep, graph_capture
from data_prep.store import read_manifest, read_split

WARM_UP = 4
VARIANTS = {
    "float32": {},
    "float32 without graph": {"run.graph": "off"},
    "bf16": {"train.precision": "bf16"},
    "bf16 + compile": {"train.precision": "bf16", "train.compile": True},
}


def usual_loop(folder: Path, device: torch.device) -> Callable[[int], float]:
    """Return a function that times some steps of the usual loop, the workers' start left out."""
    manifest = read_manifest(folder)
    stored = read_split(folder, manifest, "train")
    images = CIFAR10.__new__(CIFAR10)  # its own reading and checksum of the archive are not what is timed
    images.data, images.targets = np.ascontiguousarray(stored.images), stored.labels.tolist()
    images.target_transform = None
    images.transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, padding=4),
            transforms.ToTensor(),
            transforms.Normalize(manifest.channel_mean, manifest.channel_std),
        ]
    )
    loader = DataLoader(images, 128, shuffle=True, num_workers=os.cpu_count() or 1, pin_memory=device.type == "cuda")
    model = build_classifier("resnet20", 3, 10).to(device)
    sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in loader:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)

    def seconds(steps: int) -> float:
        feed = batches()
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                begun = now(device)
            x, y = next(feed)
            _, logits = model(x)
            loss = F.cross_entropy(logits, y)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            loss.item()
        return now(device) - begun

    return seconds


def our_loop(data: Path, device: torch.device, fields: dict[str, object]) -> Callable[[int], float]:
    """Return a function that times some steps of the minibatch task."""
    base = {"data.name": "cifar10", "affinity.loss": "none", "affinity.measure": False, "run.device": str(device)}
    recipe = load_recipe("minibatch", base | fields)
    task = build_task(recipe, data)
    training = TrainingStep(task, recipe.train, graph_capture(task, recipe.run.graph))
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    task.begin_epoch(0)
    task.model.train()

    def seconds(steps: int) -> float:
        training.begin(0, 0)
        with torch.cuda.stream(stream):
            for step in range(WARM_UP + steps):
                if step == WARM_UP:
                    begun = now(device)
                training.run(step)
            return now(device) - begun

    return seconds


def now(device: torch.device) -> float:
    """Return the time at which the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=15, help="timed steps a block")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    loops = {"usual loop": usual_loop(arguments.data / "cifar10", device)}
    chosen = {name: VARIANTS[name] for name in arguments.variants}
    variants = {name: fields for name, fields in chosen.items() if device.type == "cuda" or "run.graph" not in fields}
    loops |= {name: our_loop(arguments.data, device, fields) for name, fields in variants.items()}
    for seconds in loops.values():
        seconds(1)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(arguments.rounds):
        for name, seconds in loops.items():
            rates[name].append(128 * arguments.steps / seconds(arguments.steps))
    rows = []
    for name, measured in rates.items():
        ratios = [rate / usual for rate, usual in zip(measured, rates["usual loop"], strict=True)]
        rows.append(
            {
                "variant": name,
                "images_per_second": round(statistics.median(measured)),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_min": round(min(ratios), 2),
                "ratio_max": round(max(ratios), 2),
                "rounds": arguments.rounds,
                "steps": arguments.steps,
            }
        )
    record("minibatch_training", rows, device)


if __name__ == "__main__":
    main()
