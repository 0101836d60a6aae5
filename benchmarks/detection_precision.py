"""Mean average precision from detections in memory: pycocotools' own way against ours, equal results, on one thread.

    python benchmarks/detection_precision.py

Detections are generated at the size of VOC 2007's test set and of COCO's val2017, 100 an image, as a detector finds
them: most lie around an object of their class, some lie anywhere, and those around an object score higher. Either way
begins with what a detector returns, arrays an image:

- "pycocotools": a dictionary a detection, `COCO.loadRes`, and `COCOeval` as everyone calls it (4 ranges of area, 3
  numbers of detections); "lean": `COCOeval` for the one range and number that are wanted.
- "faster_coco_eval", "hotcoco": their classes of the same names, where they are installed.
- "reference": this project's metric with `evaluator = "pycocotools"`.
- "affsup": this project's metric as it is; it also computes the 11-point precision of VOC 2007.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from record import record

from affsup_cli.metrics.detection import DetectionPrecision, Evaluator

DETECTIONS = 100
SIZES = {"voc07 test": (4952, 20, 2.4), "coco val2017": (5000, 80, 7.2)}
"""Images, classes and mean number of objects of an image."""

OTHERS = {"faster_coco_eval": "COCOeval_faster", "hotcoco": "COCOeval"}

Image = dict[str, np.ndarray]
Evaluated = tuple[float, float]


def make_images(images: int, classes: int, objects: float, seed: int) -> list[Image]:
    """Return detections and objects of `images` images as `DetectionPrecision.update` takes them."""
    random = np.random.default_rng(seed)
    # Few classes are frequent, as persons are.
    share = 1 / np.arange(1, classes + 1)
    share /= share.sum()
    made: list[Image] = []
    for _ in range(images):
        count = 1 + random.poisson(objects - 1)
        gt_boxes = _boxes(random, count)
        gt_labels = random.choice(classes, count, p=share)
        boxes, labels = _boxes(random, DETECTIONS), random.choice(classes, DETECTIONS, p=share)
        near = np.flatnonzero(random.random(DETECTIONS) < 0.6)
        of = random.integers(0, count, len(near))
        size = np.tile(gt_boxes[of, 2:] - gt_boxes[of, :2], 2)
        boxes[near] = gt_boxes[of] + random.normal(0, 0.12, (len(near), 4)) * size
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels[near] = np.where(random.random(len(near)) < 0.7, gt_labels[of], labels[near])
        scores = random.beta(1, 8, DETECTIONS)
        scores[near] = random.beta(1.5, 3, len(near))
        order = np.argsort(-scores)
        made.append(
            {
                "boxes": boxes[order].astype(np.float32),
                "scores": scores[order].astype(np.float32),
                "labels": labels[order],
                "gt_boxes": gt_boxes.astype(np.float32),
                "gt_labels": gt_labels,
                "difficult": np.zeros(count, dtype=np.bool_),
                "crowd": random.random(count) < 0.01,
            }
        )
    return made


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    size = np.exp(random.normal(4.3, 0.9, (count, 2))).clip(4, 450)
    corner = random.uniform(0, 1, (count, 2)) * (500 - size)
    return np.hstack((corner, corner + size))


def annotation_file(images: Sequence[Image], classes: int) -> dict[str, Any]:
    """Return the objects as COCO's annotation file has them."""
    entries: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        rows = zip(_sized(image["gt_boxes"]), image["gt_labels"].tolist(), image["crowd"].tolist(), strict=True)
        for box, label, crowd in rows:
            entry = {"id": len(entries) + 1, "image_id": number, "category_id": label + 1, "iscrowd": int(crowd)}
            entries.append(entry | {"bbox": box, "area": box[2] * box[3]})
    return {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
        "annotations": entries,
    }


def results_file(images: Sequence[Image]) -> list[dict[str, Any]]:
    """Return the detections as COCO's results file has them."""
    return [
        {"image_id": number, "category_id": label + 1, "bbox": box, "score": score}
        for number, image in enumerate(images, start=1)
        for box, label, score in zip(
            _sized(image["boxes"]), image["labels"].tolist(), image["scores"].tolist(), strict=True
        )
    ]


def _sized(corners: np.ndarray) -> list[list[float]]:
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    listed: list[list[float]] = boxes.tolist()
    return listed


def by_coco(truth: Any, kind: Any, images: Sequence[Image], lean: bool = False) -> Evaluated:
    """Return mean average precision at 0.50 to 0.95 and at 0.50 by a class like `COCOeval`."""
    evaluation = kind(truth, truth.loadRes(results_file(images)), "bbox")
    if lean:
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return precision[precision > -1].mean(), precision[0][precision[0] > -1].mean()


def by_affsup(images: Sequence[Image], classes: int, evaluator: Evaluator) -> Evaluated:
    """Return the same by this project's metric."""
    metric = DetectionPrecision([str(label) for label in range(classes)], evaluator)
    for number, image in enumerate(images, start=1):
        metric.update(number, **image)
    computed = metric.compute()
    return computed["map_all"], computed["map_50"]


def evaluators(images: Sequence[Image], classes: int) -> dict[str, Callable[[], Evaluated]]:
    """Return every way, ready to be timed; the annotations are read before."""
    truth = COCO()
    truth.dataset = annotation_file(images, classes)
    truth.createIndex()
    ways: dict[str, Callable[[], Evaluated]] = {
        "pycocotools": functools.partial(by_coco, truth, COCOeval, images),
        "lean": functools.partial(by_coco, truth, COCOeval, images, lean=True),
        "reference": functools.partial(by_affsup, images, classes, "pycocotools"),
        "affsup": functools.partial(by_affsup, images, classes, "arrays"),
    }
    for name, kind in OTHERS.items():
        if importlib.util.find_spec(name):
            module = importlib.import_module(name)
            its_truth = module.COCO(annotation_file(images, classes))
            ways[name] = functools.partial(by_coco, its_truth, getattr(module, kind), images)
    return ways


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (count, classes, objects) in SIZES.items():
        images = make_images(count, classes, objects, seed=0)
        seconds: dict[str, list[float]] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            ways = evaluators(images, classes)
            for _ in range(arguments.rounds):
                found = {}
                for way, evaluate in ways.items():
                    begun = time.perf_counter()
                    found[way] = evaluate()
                    seconds.setdefault(way, []).append(time.perf_counter() - begun)
        for way, figures in found.items():
            np.testing.assert_allclose(figures, found["pycocotools"], rtol=1e-12, atol=0, err_msg=way)
        row: dict[str, Any] = {"size": name, "images": count, "classes": classes}
        row |= {"objects": sum(len(image["gt_labels"]) for image in images)}
        row |= {f"{way}_s": round(statistics.median(taken), 3) for way, taken in seconds.items()}
        for way in (way for way in seconds if way != "affsup"):
            ratios = (a / b for a, b in zip(seconds[way], seconds["affsup"], strict=True))
            row[f"{way}_ratio"] = round(statistics.median(ratios), 1)
        rows.append(row | {"map_all": round(found["affsup"][0], 4), "rounds": arguments.rounds})
    record("detection_precision", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
