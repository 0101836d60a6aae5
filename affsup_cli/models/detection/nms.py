"""Non-maximum suppression: hard for proposals, soft for detections."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms


def first_nms(boxes: Tensor, scores: Tensor, iou: float, keep: int) -> Tensor:
    """The first `keep` boxes that `torchvision.ops.nms` keeps, without processing the others.

    Less confident boxes do not influence which of the more confident are kept. So NMS is applied to the `2 keep` most
    confident boxes, and to twice as many until enough are kept.

    Args:
        boxes: `[M, 4]` as x1, y1, x2, y2.
        scores: `[M]`; ties keep their order.
        iou: overlap with a kept box above which a box is dropped.
        keep: the largest number of boxes.

    Returns:
        int64 `[k]`, k <= keep: indices of the boxes kept, the most confident first.
    """
    order = scores.argsort(descending=True, stable=True)
    candidates = 2 * keep
    while True:
        first = order[:candidates]
        kept = nms(boxes[first], scores[first], iou)[:keep]
        if len(kept) == keep or candidates >= len(order):
            return first[kept]
        candidates *= 2


def padded_nms(boxes: Tensor, scores: Tensor, iou: float, keep: int) -> tuple[Tensor, Tensor]:
    """As `first_nms`, with a result of fixed length and no step that depends on values: `torch.export` can trace it.

    Returns:
        Indices int64 `[keep]`, and bool `[keep]`, false for the padding after the boxes kept.
    """
    kept = nms(boxes, scores, iou)
    padding = torch.zeros(keep, dtype=torch.int64, device=boxes.device)
    return torch.cat([kept, padding])[:keep], torch.arange(keep, device=boxes.device) < kept.shape[0]


def soft_nms(
    boxes: Tensor, scores: Tensor, sigma: float = 0.6, keep: int = 100, least: float = 1e-3
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian soft-NMS of each class (Bodla et al., ICCV 2017), as Relation Networks' release tests with it.

    Repeatedly, the most confident box of a class is taken and the scores of the class's other boxes are multiplied by
    `exp(-iou^2 / sigma)`. As scores only decrease, always taking the most confident of all classes gives the `keep`
    best of an image without processing any class to its end.

    Args:
        boxes: `[N, 4]` as x1, y1, x2, y2, the same for all classes.
        scores: `[N, C]` of the classes, without the background.
        sigma: the larger, the gentler.
        keep: the largest number of detections.
        least: a detection's final score must exceed it.

    Returns:
        Of k <= keep detections, the most confident first: box indices int64 `[k]`, classes int64 `[k]`, and the
        final scores `[k]`, all on the device of `boxes`.
    """
    # The IoU of a box without an area is NaN.
    decay = (-box_iou(boxes, boxes).nan_to_num(nan=0.0).square() / sigma).exp().cpu().numpy()
    # A hundred small dependent steps are fastest in NumPy.
    remaining = scores.detach().T.contiguous().cpu().clone().numpy()
    of_class = remaining.argmax(axis=1) if remaining.size else np.zeros(0, dtype=np.int64)
    best = remaining[np.arange(len(of_class)), of_class]
    taken: list[tuple[int, int, float]] = []
    while len(taken) < keep and len(best):
        label = int(best.argmax())
        index, score = int(of_class[label]), float(best[label])
        if score <= least:
            break
        taken.append((index, label, score))
        row = remaining[label]
        row *= decay[index]
        row[index] = 0
        of_class[label] = row.argmax()
        best[label] = row[of_class[label]]
    indices = torch.tensor([entry[:2] for entry in taken], dtype=torch.int64, device=boxes.device).view(-1, 2)
    kept = torch.tensor([entry[2] for entry in taken], dtype=scores.dtype, device=boxes.device)
    return indices[:, 0], indices[:, 1], kept
