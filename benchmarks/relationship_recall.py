"""Relationship recall against the usual scene-graph evaluators, equal results, timed in turns on one thread.

    python benchmarks/relationship_recall.py

Two NumPy versions of what is usual, both without the comparison of classes and predicates:

- "motifs", as neural-motifs evaluates (Zellers et al., 2018; many took it over): sort all pairs, gather the boxes of
  all, compare each annotated pair with all of them, list for each pair which it finds, and for each K the union of the
  K first lists.
- "lean": only the boxes of the K first pairs are gathered and compared with each annotated pair, for each K anew, as in
  the older evaluator of Xu et al., 2017, but with no Python loop over pairs.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from record import record

from affsup_cli.metrics.relationship import RECALL_KS, RelationshipRecall

PROPOSALS = 300
IMAGES = 10
ROUNDS = 7

Image = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Timed = tuple[float, list[list[int]]]


def motifs_recall(image: Image, ks: Sequence[int]) -> list[int]:
    """Return how many pairs are found at each K, in the manner of neural-motifs."""
    order, gt_pair_boxes = _sorted_pairs(image)
    pair_boxes = np.column_stack((image[0][order[:, 0]], image[0][order[:, 1]]))
    found_by: list[list[int]] = [[] for _ in order]
    for index, gt in enumerate(gt_pair_boxes):
        for place in np.flatnonzero(_finds(gt, pair_boxes)):
            found_by[place].append(index)
    return [len(functools.reduce(np.union1d, found_by[:k])) for k in ks]


def lean_recall(image: Image, ks: Sequence[int]) -> list[int]:
    """Return how many pairs are found at each K, with as little work as that way of counting allows."""
    order, gt_pair_boxes = _sorted_pairs(image)
    order = order[: max(ks)]
    pair_boxes = np.column_stack((image[0][order[:, 0]], image[0][order[:, 1]]))
    return [sum(bool(_finds(gt, pair_boxes[:k]).any()) for gt in gt_pair_boxes) for k in ks]


def affsup_recall(image: Image, ks: Sequence[int]) -> list[int]:
    """Return how many pairs are found at each K, by this project's metric."""
    metric = RelationshipRecall(ks)
    metric.update(*map(torch.from_numpy, image))
    return [round(recall * len(image[3])) for recall in metric.compute()["micro"].values()]


def _sorted_pairs(image: Image) -> tuple[np.ndarray, np.ndarray]:
    boxes, affinity, gt_boxes, gt_pairs = image
    pairs = np.column_stack(np.where(~np.eye(len(boxes), dtype=bool)))
    order = np.argsort(affinity[pairs[:, 0], pairs[:, 1]])[::-1]
    return pairs[order], np.column_stack((gt_boxes[gt_pairs[:, 0]], gt_boxes[gt_pairs[:, 1]]))


def _finds(gt: np.ndarray, pair_boxes: np.ndarray) -> np.ndarray:
    return (_overlap(gt[:4], pair_boxes[:, :4]) >= 0.5) & (_overlap(gt[4:], pair_boxes[:, 4:]) >= 0.5)


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    width = np.maximum(np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]), 0)
    height = np.maximum(np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]), 0)
    shared = width * height
    area = (box[2] - box[0]) * (box[3] - box[1]) + (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return shared / (area - shared)


def make_image(pairs: int, seed: int) -> Image:
    """Return proposals, affinities, objects and annotated pairs; a third of the proposals lies around an object."""
    random = np.random.default_rng(seed)
    objects = 4 + pairs // 2
    corner, size = random.uniform(0, 700, (PROPOSALS, 2)), random.uniform(20, 300, (PROPOSALS, 2))
    boxes = np.hstack((corner, corner + size))
    gt_boxes = boxes[:objects].copy()
    near = np.arange(0, PROPOSALS, 3)
    boxes[near] = gt_boxes[near // 3 % objects] + random.normal(0, 15, (len(near), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 5)
    every = np.argwhere(~np.eye(objects, dtype=bool))
    gt_pairs = every[random.choice(len(every), pairs, replace=False)]
    # No two weights are equal: the usual evaluators leave the order of equals open.
    affinity = random.permutation(PROPOSALS**2).astype(np.float32).reshape(PROPOSALS, PROPOSALS)
    return boxes, affinity, gt_boxes, gt_pairs


def timed(evaluator: Callable[[Image, Sequence[int]], list[int]], images: Sequence[Image], ks: Sequence[int]) -> Timed:
    """Return the mean seconds of an image, and what was found on each."""
    started = time.perf_counter()
    found = [evaluator(image, ks) for image in images]
    return (time.perf_counter() - started) / len(images), found


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    rows = []
    evaluators = {"motifs": motifs_recall, "lean": lean_recall, "affsup": affsup_recall}
    for pairs in (7, 30):
        images = [make_image(pairs, seed) for seed in range(IMAGES)]
        for ks in ((100,), (5000,), RECALL_KS):
            seconds: dict[str, list[float]] = {name: [] for name in evaluators}
            for _ in range(ROUNDS):
                results = {}
                for name, evaluator in evaluators.items():
                    mean, results[name] = timed(evaluator, images, ks)
                    seconds[name].append(mean)
                if not results["motifs"] == results["lean"] == results["affsup"]:
                    raise AssertionError(f"the evaluators differ: {results}")
            row: dict[str, object] = {"proposals": PROPOSALS, "gt_pairs": pairs, "k": " ".join(map(str, ks))}
            row |= {f"{name}_ms": f"{1000 * statistics.median(taken):.3f}" for name, taken in seconds.items()}
            for name in ("motifs", "lean"):
                ratios = (a / b for a, b in zip(seconds[name], seconds["affsup"], strict=True))
                row[f"{name}_ratio"] = round(statistics.median(ratios), 1)
            recall = statistics.mean(found[-1] for found in results["affsup"]) / pairs
            rows.append(row | {"recall": round(recall, 3), "images": IMAGES, "rounds": ROUNDS})
    record("relationship_recall", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
