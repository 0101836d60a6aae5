"""Choosing among overlapping boxes: hard non-maximum suppression for proposals, soft for detections."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms


def first_nms(boxes: Tensor, scores: Tensor, iou: float, keep: int) -> Tensor:
    """The first `keep` boxes that `torchvision.ops.nms` keeps, without asking it about the others.

    What is kept of the most confident boxes does not depend on the less confident, so it is asked about twice as many
    of the most confident at a time, until enough are kept.

    Args:
        boxes: `[M, 4]` as x1, y1, x2, y2.
        scores: `[M]`; of equals the earlier goes first.
        iou: overlap with a kept box above which a box is dropped.
        keep: how many at most.

    Returns:
        int64 `[k]`, k <= keep: indices of the boxes kept, the most confident first.
    """
    order = scores.argsort(descending=True, stable=True)
    asked = 2 * keep
    while True:
        first = order[:asked]
        kept = nms(boxes[first], scores[first], iou)[:keep]
        if len(kept) == keep or asked >= len(order):
            return first[kept]
        asked *= 2


def soft_nms(
    boxes: Tensor, scores: Tensor, sigma: float = 0.6, keep: int = 100, least: float = 1e-3
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian soft-NMS of each class (Bodla et al., ICCV 2017), as Relation Networks' release tests with it.

    Again and again the most confident box of a class is taken, and the scores of the class's other boxes fall by
    `exp(-iou^2 / sigma)`. As scores only fall, taking the most confident of all classes each time gives the best
    `keep` of an image without finishing any class.

    Args:
        boxes: `[N, 4]` as x1, y1, x2, y2, the same for all classes.
        scores: `[N, C]` of the classes, background left out.
        sigma: the larger, the gentler.
        keep: how many detections at most.
        least: score that a detection must exceed, after its fall.

    Returns:
        Of k <= keep detections, the most confident first: int64 `[k]` which box, int64 `[k]` which class, and the
        fallen scores `[k]`, all on the device of `boxes`.
    """
    # Boxes without an area overlap nothing, themselves included.
    fall = (-box_iou(boxes, boxes).nan_to_num(nan=0.0).square() / sigma).exp().cpu().numpy()
    # A hundred small steps that depend on each other are quickest in NumPy: slower as kernels on a GPU, or as tensors.
    left = scores.detach().T.contiguous().cpu().clone().numpy()
    of_class = left.argmax(axis=1) if left.size else np.zeros(0, dtype=np.int64)
    best = left[np.arange(len(of_class)), of_class]
    taken: list[tuple[int, int, float]] = []
    while len(taken) < keep and len(best):
        label = int(best.argmax())
        index, score = int(of_class[label]), float(best[label])
        if score <= least:
            break
        taken.append((index, label, score))
        row = left[label]
        row *= fall[index]
        row[index] = 0
        of_class[label] = row.argmax()
        best[label] = row[of_class[label]]
    places = torch.tensor([entry[:2] for entry in taken], dtype=torch.int64, device=boxes.device).view(-1, 2)
    kept = torch.tensor([entry[2] for entry in taken], dtype=scores.dtype, device=boxes.device)
    return places[:, 0], places[:, 1], kept
