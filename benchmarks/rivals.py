"""What is the strongest of what others offer, beside ours: COCO evaluators, and a contrastive loss of many images.

    python -m venv --system-site-packages rivals
    rivals/bin/pip install --upgrade faster-coco-eval hotcoco ultrafast-pycocotools vernier pytorch-metric-learning
    rivals/bin/python benchmarks/rivals.py [--rounds N]

Each contestant runs in a process of its own, with a first call on a small input that is not timed; those of a subject
take turns. All have one thread, and times are the processor's: ours uses no second one, most others can. One that is
not installed is refused, not left out.

Evaluators begin with what a detector returns, arrays an image (`detection_precision.py` makes them), and each takes the
quickest of its documented ways from there: one array of seven columns for all but faster-coco-eval, whose own code
turns that into dictionaries, as pycocotools does. The annotations are read before for all but ours, which
takes them with the detections. Where a class like `COCOeval` allows it, it evaluates the one range of areas and number
of detections that ours does; vernier's `Evaluator` always does all. Equal numbers are checked.

SupCon is pytorch-metric-learning's on features of the size of `large_graphs.py`, forward and backward. "in chunks of
anchors" is its loss of some anchors against all, one backward a chunk, which a user can write; the library's
own `anchor_batched_backward` does that too from version 3 on. L_G is another loss of the same pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

EVALUATORS = {
    "affsup": "affsup",
    "pycocotools": "pycocotools",
    "faster-coco-eval": "faster-coco-eval",
    "hotcoco": "hotcoco",
    "ultrafast-pycocotools": "ultrafast-pycocotools",
    "vernier": "vernier",
}
LOSSES = {
    "affsup tiles": "affsup",
    "SupCon": "pytorch-metric-learning",
    "SupCon, in chunks of 64 anchors": "pytorch-metric-learning",
    "SupCon, in chunks of 512 anchors": "pytorch-metric-learning",
}
"""Contestants and the distributions that they come from; ours is the first."""

GRAPH = 8_192
WARM_UP = 50

Timed = Callable[[], Sequence[float]]


def matrix(images: Sequence[dict[str, Any]]) -> Any:
    """Return all detections, float64 `[n, 7]`: image, x, y, width, height, score, category."""
    import numpy as np

    count = [len(image["scores"]) for image in images]
    rows = np.empty((sum(count), 7))
    rows[:, 0] = np.repeat(np.arange(1, len(images) + 1), count)
    rows[:, 1:5] = np.concatenate([image["boxes"] for image in images])
    rows[:, 3:5] -= rows[:, 1:3]
    rows[:, 5] = np.concatenate([image["scores"] for image in images])
    rows[:, 6] = np.concatenate([image["labels"] for image in images]) + 1
    return rows


def like_cocoeval(contestant: str, annotations: dict[str, Any], images: Sequence[dict[str, Any]]) -> Timed:
    """Return an evaluation by a class like `COCOeval`."""
    if contestant == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        truth: Any = COCO()
        truth.dataset = annotations
        truth.createIndex()
    else:
        if contestant == "faster-coco-eval":
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        elif contestant == "hotcoco":
            from hotcoco import COCO, COCOeval
        else:
            from ultrafast_pycocotools import COCO, COCOeval
        truth = COCO(annotations)

    def evaluate() -> Sequence[float]:
        evaluation = COCOeval(truth, truth.loadRes(matrix(images)), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        return precision[precision > -1].mean(), precision[0][precision[0] > -1].mean()

    return evaluate


def evaluation_of(contestant: str, images: Sequence[dict[str, Any]], classes: int) -> Timed:
    """Return an evaluation of `images` that gives mean average precision at 0.50 to 0.95 and at 0.50."""
    from detection_precision import annotation_file, by_affsup

    if contestant == "affsup":
        return lambda: by_affsup(images, classes, "arrays")
    annotations = annotation_file(images, classes)
    for image in annotations["images"]:
        image |= {"width": 500, "height": 500}
    if contestant != "vernier":
        return like_cocoeval(contestant, annotations, images)
    from vernier.instance import Bbox, CocoDataset, Evaluator

    truth = CocoDataset.from_json(json.dumps(annotations).encode())
    evaluator = Evaluator(iou=Bbox(), parity_mode="strict")
    return lambda: evaluator.evaluate(truth, matrix(images), num_threads=1).stats[:2]


def supcon(features: Any, labels: Any, chunk: int) -> float:
    """Return pytorch-metric-learning's SupCon; the gradient is added to `features.grad`."""
    import torch
    from pytorch_metric_learning.losses import SupConLoss

    loss_of, count = SupConLoss(), len(features)
    if chunk >= count:
        loss = loss_of(features, labels)
        loss.backward()
        return loss.item()
    total = 0.0
    for begin in range(0, count, chunk):
        anchors = torch.arange(begin, min(begin + chunk, count))
        same = labels[anchors].unsqueeze(1) == labels
        other = ~same
        same[torch.arange(len(anchors)), anchors] = False
        pairs = (*torch.where(same), *torch.where(other))
        loss = loss_of(features[anchors], labels[anchors], pairs, features, labels) * (len(anchors) / count)
        loss.backward()
        total += loss.item()
    return total


def loss_of(contestant: str, size: int) -> Timed:
    """Return a loss of `size` features, forward and backward, that gives its value and the norm of its gradient."""
    import torch
    from large_graphs import CLASSES, WIDTH

    from affsup_cli.affinity import l2_loss_and_mass

    features = 0.3 * torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0))
    features.requires_grad_()
    labels = torch.arange(size) % CLASSES

    def step() -> Sequence[float]:
        if contestant.startswith("SupCon"):
            words = contestant.split()
            value = supcon(features, labels, int(words[4]) if len(words) > 1 else size)
        else:
            loss = l2_loss_and_mass(features, labels=labels, gamma=4.0, diagonal="exclude").loss
            loss.backward()
            value = loss.item()
        return value, torch.linalg.vector_norm(features.grad).item()

    return step


def measure(subject: str, contestant: str, size: str) -> None:
    """Print processor seconds, memory above what was there before, and numbers found of a contestant."""
    import torch
    from detection_precision import SIZES, make_images
    from large_graphs import CLASSES, memory_mb

    torch.set_num_threads(1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if subject == "evaluator":
            count, classes, objects = SIZES[size]
            images = make_images(count, classes, objects, seed=0)
            evaluation_of(contestant, images[:WARM_UP], classes)()
            timed = evaluation_of(contestant, images, classes)
        else:
            loss_of(contestant, 10 * CLASSES)()
            timed = loss_of(contestant, int(size))
        before = memory_mb(torch.device("cpu"), peak=False)
        begun = time.process_time()
        found = timed()
        seconds = time.process_time() - begun
    peak = memory_mb(torch.device("cpu"), peak=True) - before
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "found": [float(value) for value in found]}))


def compare(subject: str, contestants: dict[str, str], size: str, rounds: int) -> list[dict[str, Any]]:
    """Run the contestants in turn, and check that those that compute the same found the same."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, results in measured.items():
            command = [sys.executable, __file__, "--child", subject, name, size]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            results.append(json.loads(done.stdout))
    ours = next(iter(contestants))
    check_equal(subject, {name: results[0]["found"] for name, results in measured.items()})
    rows = []
    for name, results in measured.items():
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(results, measured[ours], strict=True)]
        peaks = [max(each["peak_mb"] for each in of) for of in (results, measured[ours])]
        row: dict[str, Any] = {"subject": subject, "size": size, "contestant": name}
        row |= {"version": version(contestants[name])}
        row |= {"seconds": f"{statistics.median(each['seconds'] for each in results):.3g}"}
        row |= {"time_over_ours": f"{statistics.median(ratios):.3g}"}
        # An evaluator's peak may be that of reading the annotations.
        of_memory = subject == "loss"
        row |= {"peak_mb": math.ceil(peaks[0]) if of_memory else ""}
        row |= {"memory_over_ours": f"{peaks[0] / peaks[1]:.3g}" if of_memory else "", "rounds": rounds}
        rows.append(row)
    return rows


def check_equal(subject: str, found: dict[str, list[float]]) -> None:
    """Raise an AssertionError unless all evaluators agree to the last digits, and all SupCons to float32's."""
    compared = {name: values for name, values in found.items() if subject == "evaluator" or name.startswith("SupCon")}
    (first, expected), *rest = compared.items()
    tolerance = 1e-12 if subject == "evaluator" else 1e-4
    for name, values in rest:
        for value, wanted in zip(values, expected, strict=True):
            if not math.isclose(value, wanted, rel_tol=tolerance):
                raise AssertionError(f"{name} found {values}, {first} {expected}")


def main() -> None:
    """Compare, or take one measurement of that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(*arguments.child)
        return
    rows = []
    for size in ("voc07 test", "coco val2017"):
        rows += compare("evaluator", EVALUATORS, size, arguments.rounds)
    rows += compare("loss", LOSSES, str(GRAPH), arguments.rounds)
    import torch
    from record import record

    torch.set_num_threads(1)
    record("rivals", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
