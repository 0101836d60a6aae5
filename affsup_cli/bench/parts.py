"""Parts of the work that have a speed of their own: a large graph, relationship recall, detection precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from affsup_cli.affinity import BatchAffinityLoss
from affsup_cli.bench.speeds import Ratio, Tell
from affsup_cli.bench.turns import compare
from affsup_cli.metrics.detection import DetectionPrecision, Evaluator
from affsup_cli.metrics.relationship import RelationshipRecall

SIDE = 600.0  # pixels of generated images


@dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Attributes:
        nodes: of the large graph.
        images: of either metric.
        proposals: an image.
        rounds: of each comparison.
    """

    nodes: int = 8192
    images: int = 1000
    proposals: int = 300
    rounds: int = 3


@dataclass(frozen=True)
class Rate:
    """What a metric gets through: images a second."""

    what: str
    images_per_second: float


def measure_parts(device: torch.device, tell: Tell, sizes: Sizes) -> tuple[list[Ratio], list[Rate]]:
    """Time the parts.

    Args:
        device: where the graph is; metrics are computed on the CPU.
        tell: told what is being timed.
        sizes: how much of it.
    """
    tell(f"a graph of {sizes.nodes:,} nodes")
    plain, tiled = _large_graph(sizes.nodes, device)
    graph = compare(plain, tiled, device, sizes.rounds)
    tell("detection precision")
    cpu = torch.device("cpu")
    slow, fast = (partial(_precision, sizes.images, evaluator) for evaluator in ("pycocotools", "arrays"))
    precision = compare(slow, fast, cpu, sizes.rounds)
    tell("relationship recall")
    begun = time.perf_counter()
    _recall(sizes.images, sizes.proposals)
    recall = (time.perf_counter() - begun) / sizes.images
    ratios = [
        Ratio(f"L_G of {sizes.nodes:,} nodes, plain ÷ tiled", graph["ratio"], sizes.rounds, "at least 6 at 8,192"),
        Ratio("mAP by pycocotools ÷ ours", precision["ratio"], sizes.rounds, "at least 10 at 1,000 images"),
    ]
    rates = [
        Rate("detection precision, 100 detections an image", 1000 * sizes.images / precision["ours_ms"]),
        Rate(f"relationship recall, {sizes.proposals} proposals, every K", 1 / recall),
    ]
    return ratios, rates


def _large_graph(nodes: int, device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(nodes, 64, generator=generator).to(device).requires_grad_()
    labels = torch.randint(100, (nodes,), generator=generator).to(device)
    loss = BatchAffinityLoss()

    def plain() -> None:
        torch.autograd.backward(loss.loss(*loss.graph(features, labels)))

    def tiled() -> None:
        torch.autograd.backward(loss(features, labels))

    return plain, tiled


def _precision(images: int, evaluator: Evaluator) -> None:
    random = np.random.default_rng(0)
    metric = DetectionPrecision([str(label) for label in range(20)], evaluator)
    for number in range(images):
        boxes, labels = _boxes(random, 100), random.integers(0, 20, 100)
        objects = np.zeros(5, dtype=np.bool_)
        metric.update(
            number,
            boxes,
            random.random(100, np.float32),
            labels,
            boxes[:5],
            labels[:5],
            difficult=objects,
            crowd=objects,
        )
    metric.compute()


def _recall(images: int, proposals: int) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.from_numpy(_boxes(np.random.default_rng(0), proposals))
    affinity = torch.randn(proposals, proposals, generator=generator)
    pairs = torch.tensor([(i, j) for i in range(4) for j in range(4) if i != j])
    metric = RelationshipRecall()
    for _ in range(images):
        metric.update(boxes, affinity, boxes[:4], pairs)
    metric.compute()


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corner, extent = random.uniform(0, SIDE / 2, (count, 2)), random.uniform(20, SIDE / 2, (count, 2))
    return np.hstack([corner, corner + extent]).astype(np.float32)
