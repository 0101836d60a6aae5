"""L_G on the attention between the object queries of a small DETR, with and without, on generated scenes.

    affsup prepare shapes
    python examples/query_attention.py [--data DIR] [--seeds 0 1 2] [--steps N] [--target KIND]

The detector is that of Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, made small: a
convolutional backbone, a transformer encoder and decoder, object queries, and Hungarian matching. The encoder proposes
the queries, as in the two-stage form of Zhu et al., Deformable DETR, ICLR 2021: so short a training finds little
without.

A query is matched to one annotated object or to none, so that the targets of `affsup_cli` apply with that match in
place of the one by overlap. L_G supervises the self-attention of the last decoder layer, the mean over its heads.
The relative is EGTR (Im, Nam, Park, Lee, Park: EGTR: Extracting Graph from Transformer for Scene Graph Generation,
CVPR 2024, arXiv:2404.02072): a head of its own reads relations from the self-attention of a DETR's decoder. Here
nothing is added to the network; its attention weights are the relations.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from affsup_cli import (
    RelationshipRecall,
    affinity_loss,
    different_category_target,
    relationship_target,
    scaled_dot_affinity,
    target_mass,
)
from affsup_cli.metrics.detection import DetectionPrecision
from data_prep.store import read_manifest, read_scenes

WIDTH, HEADS, QUERIES, LAYERS = 64, 4, 20, 2
BATCH, RATE = 16, 2e-3
BOX_WEIGHT, OVERLAP_WEIGHT, NO_OBJECT_WEIGHT = 5.0, 2.0, 0.1  # DETR's
TARGETS = ("relationship", "different-category")
KS = (5, 10, 20)


class Scenes(NamedTuple):
    """Images and annotations, padded to one size.

    Attributes:
        images: float32 `[n, 3, side, side]`, 0..1.
        boxes: `[n, G, 4]`, x1, y1, x2, y2 as fractions of the side, padded with zeros.
        labels: `[n, G]`, padded with -1.
        relations: `[n, R, 2]`, (subject, object), padded with -2.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    relations: Tensor

    def take(self, rows: Tensor) -> Scenes:
        """Return the images with these indices."""
        return Scenes(*(value[rows] for value in self))

    def mirrored(self, rows: Tensor) -> Scenes:
        """Return the scenes with those where bool `rows` `[n]` is true mirrored from left to right."""
        x1, y1, x2, y2 = self.boxes.unbind(-1)
        real = (self.labels >= 0).float()
        flipped = torch.stack([(1 - x2) * real, y1, (1 - x1) * real, y2], dim=-1)
        images = torch.where(rows[:, None, None, None], self.images.flip(-1), self.images)
        return self._replace(images=images, boxes=torch.where(rows[:, None, None], flipped, self.boxes))


def read_split(data: Path, split: str, most: int | None) -> tuple[Scenes, list[str]]:
    """Return the first `most` scenes of a split of `DATA/shapes`, and the names of the classes."""
    manifest = read_manifest(data / "shapes")
    source = read_scenes(data / "shapes", manifest, split)
    rows = range(len(source) if most is None else most)
    images = torch.stack([torch.tensor(source.pixels(row)) for row in rows]).permute(0, 3, 1, 2) / 255
    objects = [source.objects(row) for row in rows]
    scenes = Scenes(
        images.contiguous(),
        pad_sequence([torch.tensor(each.boxes) for each in objects], True) / images.shape[-1],
        pad_sequence([torch.tensor(each.labels) for each in objects], True, -1),
        pad_sequence([torch.tensor(each.relations) for each in objects], True, -2),
    )
    return scenes, manifest.classes


class Found(NamedTuple):
    """What the encoder or a layer of the decoder finds.

    Attributes:
        logits: of the classes and, last, of no object, `[B, N, classes + 1]`.
        boxes: `[B, N, 4]`, centre and size as fractions of the side.
        affinity: logits of the layer's self-attention, the mean over its heads, `[B, N, N]`; None for the encoder.
    """

    logits: Tensor
    boxes: Tensor
    affinity: Tensor | None

    def corners(self) -> Tensor:
        """Return the boxes as x1, y1, x2, y2."""
        return box_convert(self.boxes, "cxcywh", "xyxy")


def sines(points: Tensor) -> Tensor:
    """Encode points `[..., 2]` in 0..1 as `[..., WIDTH]` sines and cosines."""
    frequencies = 2 * math.pi * 2 ** torch.linspace(-1, 4, WIDTH // 4)
    angles = points.unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Multi-head attention that also returns its logits before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result `[B, N, WIDTH]` and the logits `[B, HEADS, N, M]`."""
        q, k, v = (
            projected.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for projected in (self.query(queries), self.key(keys), self.value(values))
        )
        logits = scaled_dot_affinity(q, k)
        return self.out((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)), logits


class Layer(nn.Module):
    """A layer of the encoder, or with `cross` of the decoder: attention, then a small network, each added."""

    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.own, self.cross = Attention(), Attention() if cross else None
        self.network = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(
        self, x: Tensor, where: Tensor, memory: Tensor | None = None, memory_where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the features `[B, N, WIDTH]` and the self-attention's logits `[B, HEADS, N, N]`."""
        normed = self.norms[0](x)
        added, logits = self.own(normed + where, normed + where, normed)
        x = x + added
        if self.cross is not None:
            x = x + self.cross(self.norms[1](x) + where, memory + memory_where, memory)[0]
        return x + self.network(self.norms[2](x)), logits


class Detector(nn.Module):
    """A DETR of 273,000 parameters.

    Args:
        classes: their number, without "no object".
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 24, 48, WIDTH)
        self.backbone = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            ),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
        )
        self.encoder = Layer(cross=False)
        self.decoder = nn.ModuleList(Layer(cross=True) for _ in range(LAYERS))
        self.where = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.label = nn.Linear(WIDTH, classes + 1)
        self.box = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))

    def forward(self, images: Tensor) -> list[Found]:
        """Return what the encoder and each layer of the decoder find in images `[B, 3, H, W]`."""
        maps = self.backbone(images)
        rows, columns = (torch.arange(size) / size + 0.5 / size for size in maps.shape[-2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)
        memory_where = sines(grid)
        memory, _ = self.encoder(maps.flatten(2).transpose(1, 2), memory_where)
        found = [self.found(memory, grid, None)]
        best = found[0].logits[..., :-1].amax(dim=-1).topk(QUERIES).indices.unsqueeze(-1)
        points = found[0].boxes[..., :2].detach().gather(1, best.expand(-1, -1, 2))
        x, where = memory.gather(1, best.expand(-1, -1, WIDTH)), self.where(sines(points))
        memory = self.norm(memory)
        for layer in self.decoder:
            x, logits = layer(x, where, memory, memory_where)
            found.append(self.found(x, points, logits.mean(dim=1)))
        return found

    def found(self, x: Tensor, points: Tensor, affinity: Tensor | None) -> Found:
        """Return classes and boxes from features `[B, N, WIDTH]` around points `[N, 2]` or `[B, N, 2]`."""
        x = self.norm(x)
        offset = F.pad(torch.logit(points, eps=1e-3), (0, 2), value=-1.5)
        return Found(self.label(x), (self.box(x) + offset).sigmoid(), affinity)


@torch.no_grad()
def hungarian_match(found: Found, truth: Scenes) -> Tensor:
    """Return the annotated object of each query, int64 `[B, N]`, -1 for none: the pairing of the least cost."""
    match = torch.full(found.logits.shape[:2], -1)
    for image, (logits, boxes) in enumerate(zip(found.logits, found.boxes, strict=True)):
        objects = int((truth.labels[image] >= 0).sum())
        gt_boxes, gt_labels = truth.boxes[image, :objects], truth.labels[image, :objects]
        cost = (
            BOX_WEIGHT * torch.cdist(boxes, box_convert(gt_boxes, "xyxy", "cxcywh"), p=1)
            - OVERLAP_WEIGHT * generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), gt_boxes)
            - logits.softmax(dim=-1)[:, gt_labels]
        )
        queries, paired = linear_sum_assignment(cost.numpy())
        match[image, torch.from_numpy(queries)] = torch.from_numpy(paired)
    return match


def detection_loss(found: Found, truth: Scenes, match: Tensor) -> Tensor:
    """Return DETR's loss: cross entropy of the classes, L1 and generalised overlap of the matched boxes."""
    matched, no_object = match >= 0, found.logits.shape[-1] - 1
    labels = truth.labels.gather(1, match.clamp(min=0)).masked_fill(~matched, no_object)
    weight = torch.ones(no_object + 1)
    weight[no_object] = NO_OBJECT_WEIGHT
    gt_boxes = truth.boxes.gather(1, match.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4))[matched]
    distance = F.l1_loss(found.boxes[matched], box_convert(gt_boxes, "xyxy", "cxcywh"), reduction="none").sum(-1)
    overlap = generalized_box_iou_loss(found.corners()[matched], gt_boxes)
    return (
        F.cross_entropy(found.logits.flatten(0, 1), labels.flatten(), weight)
        + (BOX_WEIGHT * distance + OVERLAP_WEIGHT * overlap).mean()
    )


def query_target(kind: str, match: Tensor, truth: Scenes) -> Tensor:
    """Return the target `[B, N, N]` of the graph of queries."""
    if kind == "relationship":
        return relationship_target(match, truth.relations)
    return different_category_target(match, truth.labels)


def train(model: Detector, data: Scenes, steps: int, weight: float, kind: str, seed: int) -> None:
    """Train in place with `weight` times L_G; order and mirroring depend on the seed alone."""
    model.train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = data.take(torch.randint(len(data.images), (BATCH,), generator=generator))
        batch = batch.mirrored(torch.rand(BATCH, generator=generator) < 0.5)
        layers = model(batch.images)
        matches = [hungarian_match(found, batch) for found in layers]
        loss = sum(detection_loss(found, batch, match) for found, match in zip(layers, matches, strict=True))
        if weight:
            loss = loss + weight * affinity_loss(layers[-1].affinity, query_target(kind, matches[-1], batch), gamma=2.0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measure(model: Detector, data: Scenes, classes: list[str], kind: str) -> dict[str, float]:
    """Return M, the recall of annotated relations at each K, and mAP at an overlap of 0.5.

    Recall ranks the ordered pairs of all queries by attention; boxes are the predicted ones.
    """
    model.eval()
    recall, precision, masses = RelationshipRecall(KS), DetectionPrecision(classes), []
    for row in range(len(data.images)):
        truth = data.take(torch.tensor([row]))
        found = model(truth.images)[-1]
        target = query_target(kind, hungarian_match(found, truth), truth)
        if target.any():
            masses.append(target_mass(found.affinity, target).item())
        real, related = truth.labels[0] >= 0, truth.relations[0, :, 0] >= 0
        boxes, gt_boxes = found.corners()[0], truth.boxes[0][real]
        recall.update(boxes, found.affinity[0], gt_boxes, truth.relations[0][related])
        scores, labels = found.logits[0].softmax(-1)[:, :-1].max(-1)
        no = torch.zeros(len(gt_boxes), dtype=torch.bool)
        precision.update(row, boxes, scores, labels, gt_boxes, truth.labels[0][real], no, no)
    recalls = {f"recall@{k}": value for k, value in recall.compute()["micro"].items()}
    return {"M": statistics.fmean(masses)} | recalls | {"mAP@0.5": precision.compute()["map_50"]}


def main(
    data: Path = Path("data"),
    steps: int = 600,
    seed: int = 0,
    weight: float = 0.3,
    kind: str = "relationship",
    images: int | None = None,
) -> dict[str, dict[str, float]]:
    """Train one initial model twice, without and with L_G, and return what each has on the test images.

    Args:
        data: folder of the prepared data sets.
        steps: of `BATCH` images.
        seed: of the initial weights and of the order of the images, the same for both.
        weight: of L_G.
        kind: the target, one of `TARGETS`.
        images: use only so many of each split.
    """
    training, classes = read_split(data, "train", images)
    test, _ = read_split(data, "test", images)
    torch.manual_seed(seed)
    initial = Detector(len(classes))
    results = {}
    for name, its_weight in (("without", 0.0), ("with L_G", weight)):
        model = copy.deepcopy(initial)
        train(model, training, steps, its_weight, kind, seed)
        results[name] = measure(model, test, classes, kind)
    return results


def summary(results: list[dict[str, dict[str, float]]]) -> list[str]:
    """Return a line for each number: its mean and standard deviation over the seeds, without and with L_G."""

    def shown(values: list[float]) -> str:
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}"

    names: Any = results[0]["without"]
    return [
        f"{name:10}" + "".join(f"{way} {shown([of[way][name] for of in results]):18}" for way in results[0])
        for name in names
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the prepared data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one pair of trainings for each")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0])
    given = parser.parse_args()
    pairs = [main(given.data, given.steps, seed, kind=given.target) for seed in given.seeds]
    print("\n".join(summary(pairs)))
