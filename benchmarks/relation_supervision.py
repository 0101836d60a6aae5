"""What L_G adds to a relnet training step at the paper's size: target, mass and loss, forward and backward, ÷ the step.

    python benchmarks/relation_supervision.py --data data

Needs `affsup prepare voc07` (all of it or a part). RelNet with 300 proposals on two images of short side 600, its
backbone from scratch: weights change no time. The step is the one without L_G; what L_G adds is timed on the step's own
attention and proposals, as a hundredth of a step would drown in the step's noise. Beside it: how many images a second
the data path gives, and how many the step takes. A few minutes on two cores with ResNet-50.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from record import record

from affsup_cli.affinity import AffinityLoss, different_category_target, match_proposals, target_mass
from affsup_cli.recipe import DetectionRecipe, load_recipe
from affsup_cli.runtime.devices import resolve_device
from affsup_cli.tasks.detection.task import DetectionTask

LOSS_ROUNDS = 50


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    fields = {"data.name": "voc07", "model.arch": arguments.arch, "model.weights": "none", "run.device": str(device)}
    recipe = load_recipe("relnet", {**fields, "affinity.loss": "none", "affinity.measure": False})
    task = DetectionTask(cast(DetectionRecipe, recipe), arguments.data)
    task.model.train()
    task.begin_epoch(0)
    steps = iter(range(task.steps))

    def step() -> None:
        torch.autograd.backward(task.losses(next(steps)).total())

    of_step = _seconds(step, arguments.steps, device)
    batch = task._epochs.batch(next(steps))
    with torch.no_grad():
        regions, _ = task._regions(batch, batch.boxes)
    dots = regions.graphs[-1].dots[:, :, : regions.boxes.shape[1]].clone().requires_grad_()
    form = AffinityLoss("focal", 2.0)

    def supervise() -> None:
        graph = dots.mean(dim=1)
        target = different_category_target(match_proposals(regions.boxes, batch.boxes), batch.labels)
        target_mass(graph.detach(), target)
        torch.autograd.backward(0.01 * form(graph, target))

    of_loss = _seconds(supervise, LOSS_ROUNDS, device)
    data = task._batches(task._train)
    count = min(len(data), 64)
    plan = [[(index, False)] for index in range(count)]
    begun = time.perf_counter()
    for _ in data.batches(plan):
        pass
    of_data = (time.perf_counter() - begun) / count
    row = {
        "arch": arguments.arch,
        "proposals": regions.boxes.shape[1],
        "image": "x".join(map(str, batch.images.shape[-2:])),
        "step_seconds": round(of_step, 4),
        "l_g_seconds": round(of_loss, 5),
        "l_g_share": round(of_loss / of_step, 5),
        "images_a_second_of_step": round(len(batch.index) / of_step, 2),
        "images_a_second_of_data": round(1 / of_data, 1),
    }
    record("relation_supervision", [row], device)


def _seconds(call: Callable[[], None], rounds: int, device: torch.device) -> float:
    """Median of so many calls, after one that does not count."""
    taken = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
