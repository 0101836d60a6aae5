"""A detector's training step at the paper's size: `relnet` beside `frcnn` beside torchvision's own Faster R-CNN.

    python benchmarks/detection_training.py --data data

Both of ours also with `train.compile`, and `frcnn` without `run.channels_last`.

Needs `affsup prepare voc07` (all of it or a part). All have the same backbone from scratch, maps, anchors, 300
proposals and widths, pool by RoIAlign, and take turns at the same batches of two images: forward, backward and SGD's
step; on a CPU by processor time, which other work on the machine changes least. `relnet` is supervised by L_G.
torchvision's network is called as usual, in NCHW; it learns from up to 512 regions an image: all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from record import record
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from affsup_cli.data.scenes import SceneBatch
from affsup_cli.models.detection.backbones import build_backbone
from affsup_cli.models.detection.detector import NMS_IOU, POOLED_SIZE, RPN_SAMPLED
from affsup_cli.recipe import DetectionRecipe, load_recipe
from affsup_cli.runtime.devices import resolve_device
from affsup_cli.tasks.detection.task import DetectionTask

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "frcnn": ("frcnn", {}),
    "relnet": ("relnet", {}),
    "compiled frcnn": ("frcnn", {"train.compile": True}),
    "compiled relnet": ("relnet", {"train.compile": True}),
    "contiguous frcnn": ("frcnn", {"run.channels_last": False}),
}
RATIOS = {
    "torchvision": "frcnn",
    "relnet": "frcnn",
    "compiled frcnn": "frcnn",
    "compiled relnet": "relnet",
    "contiguous frcnn": "frcnn",
}
"""What is divided by what."""


class Maps(nn.Module):
    """Our backbone as torchvision's network takes one: both maps by name."""

    def __init__(self, recipe: DetectionRecipe) -> None:
        super().__init__()
        model = recipe.model
        self.backbone = build_backbone(model.arch, model.weights, model.pixels)
        self.reduce = nn.Conv2d(self.backbone.channels[1], model.channels, 1)
        self.out_channels = model.channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the proposals' map and the head's."""
        low, late = self.backbone(images)
        return OrderedDict(low=low, late=self.reduce(late).relu())


class OnLow(nn.Module):
    """Proposals from the first map alone."""

    def __init__(self, network: RegionProposalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Do what the region proposal network does."""
        found: tuple[list[Tensor], dict[str, Tensor]] = self.network(images, {"low": features["low"]}, targets)
        return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--short-side", type=int, default=600, help="the longer one is at most 5/3 of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    fields = {"data.name": "voc07", "model.arch": arguments.arch, "model.weights": "none", "model.pooling": "align"}
    fields["run.device"] = str(device)
    fields |= {"data.short_side": arguments.short_side, "data.long_side": arguments.short_side * 5 // 3}
    tasks = {}
    for name in arguments.variants:
        of_recipe, changed = VARIANTS[name]
        recipe = cast(DetectionRecipe, load_recipe(of_recipe, fields | changed))
        tasks[name] = DetectionTask(recipe, arguments.data)
        tasks[name].model.train()
        tasks[name].begin_epoch(0)
    recipe = cast(DetectionRecipe, load_recipe("frcnn", fields))
    reference = torchvisions(recipe, tasks["frcnn"]).to(device).train()
    steps = {name: _step(task.model, partial(_total, task)) for name, task in tasks.items()}
    batches = [tasks["frcnn"]._epochs.batch(number) for number in range(arguments.rounds + 1)]
    for task in tasks.values():
        task._epochs.batch = batches.__getitem__  # type: ignore[method-assign, assignment]

    def of_torchvision(number: int) -> Tensor:
        losses: dict[str, Tensor] = reference(*_as_usual(batches[number]))
        return torch.stack(list(losses.values())).sum()

    steps["torchvision"] = _step(reference, of_torchvision)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in steps}
    if device.type == "cuda":  # at the first sight of a size cuDNN plans, and memory is allocated
        for number, step in product(range(arguments.rounds + 1), steps.values()):
            step(number)
        torch.cuda.synchronize(device)
    for number in range(arguments.rounds + 1):
        for name, step in (steps if number % 2 else dict(reversed(steps.items()))).items():
            begun = clock()
            step(number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[name].append(clock() - begun)
    seconds = {name: statistics.median(of_one[1:]) for name, of_one in taken.items()}
    beside = {
        name: statistics.median(a / b for a, b in zip(taken[name][1:], taken[other][1:], strict=True))
        for name, other in RATIOS.items()
        if name in taken
    }
    common = {
        "arch": arguments.arch,
        "proposals": recipe.model.proposals,
        "image": "x".join(map(str, batches[0].images.shape[-2:])),
        **{f"{name.replace(' ', '_')}_seconds": round(value, 3) for name, value in seconds.items()},
    }
    rows = [{"what": f"{name} ÷ {RATIOS[name]}", "ratio": round(ratio, 2), **common} for name, ratio in beside.items()]
    record("detection_training", rows, device)


def torchvisions(recipe: DetectionRecipe, task: DetectionTask) -> FasterRCNN:
    """Return torchvision's network in the recipe's sizes."""
    ours, model = task.model.detector, recipe.model
    anchors = ours.proposals.anchor_generator
    network = FasterRCNN(
        Maps(recipe),
        ours.head.classifier.out_features,
        min_size=recipe.data.short_side,
        max_size=recipe.data.long_side,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(ours.backbone.channels[0], anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=model.candidates,
        rpn_post_nms_top_n_train=model.proposals,
        rpn_nms_thresh=NMS_IOU,
        rpn_batch_size_per_image=RPN_SAMPLED,
        box_roi_pool=MultiScaleRoIAlign(["late"], POOLED_SIZE, 2),
    )
    network.rpn = OnLow(network.rpn)
    return network


def _as_usual(batch: SceneBatch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch as torchvision's networks take it."""
    images = [
        image[:, :height, :width].float() for image, (height, width) in zip(batch.images, batch.sizes, strict=True)
    ]
    there = batch.labels >= 0
    targets = [
        {"boxes": boxes[real], "labels": labels[real] + 1}
        for boxes, labels, real in zip(batch.boxes, batch.labels, there, strict=True)
    ]
    return images, targets


def _total(task: DetectionTask, number: int) -> Tensor:
    return task.losses(number).total()


def _step(model: nn.Module, loss: Callable[[int], Tensor]) -> Callable[[int], None]:
    """Return what takes a step on a batch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, 0.9, weight_decay=2.5e-4)

    def step(number: int) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss(number))
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
