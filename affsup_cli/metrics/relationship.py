"""Relationship recall: the share of annotated pairs of objects among the K strongest pairs of proposals (section 6.5).

Pairs are ranked by descending weight, in float32; ties by their position in the matrix, row by row. Self-pairs and
pairs whose weight is not finite are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

RECALL_KS = (100, 500, 1000, 2000, 5000, 8000, 10000)
"""The values of K at which relationship recall is reported."""

_WORD = 52  # pairs a word: sums of 52 powers of two are exact in float64
_STRIDE = 17  # every 17th weight is sampled to estimate the K-th largest


class RelationshipRecall:
    """Recall of ground-truth pairs among the top K ordered pairs of proposals, accumulated image by image.

    The ordered pairs (i, j) of an image's proposals are ranked by affinity and the first K kept; ties are ranked by
    their position in the matrix, row by row. A ground-truth pair (s, o) is found if a kept pair has an IoU of
    at least `iou` of box i with s and of box j with o. The predicate does not matter, and a pair
    annotated several times counts once. Relations of an object with itself and images without a pair are left out. If
    an image has fewer pairs than K, all are kept.

    Only counts are kept: memory does not grow with the number of images.

    Args:
        ks: the values of K.
        iou: the least overlap with subject and with object.

    Raises:
        ValueError: no K, a K below 1, or `iou` not in (0, 1].
    """

    def __init__(self, ks: Sequence[int] = RECALL_KS, iou: float = 0.5) -> None:
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must be positive integers, found {list(ks)}")
        if not 0 < iou <= 1:
            raise ValueError(f"iou must be above 0 and at most 1, found {iou}")
        self.ks = tuple(sorted(set(ks)))
        self.iou = iou
        self._images = 0
        self._pairs = 0
        self._found = np.zeros(len(self.ks), dtype=np.int64)
        self._recalls = np.zeros(len(self.ks))

    def update(self, boxes: Tensor, affinity: Tensor, gt_boxes: Tensor, gt_pairs: Tensor) -> None:
        """Add one image; tensors on any device.

        Args:
            boxes: proposals `[N, 4]` as x1, y1, x2, y2 in pixels.
            affinity: weights `[N, N]`; row = subject, column = object; those that are not finite are left out.
            gt_boxes: annotated objects `[G, 4]`, like `boxes`.
            gt_pairs: integers `[P, 2]`, (subject, object) as indices into `gt_boxes`.

        Raises:
            ValueError: the shapes do not fit, or an index is not one of an object.
        """
        _check_square(affinity)
        if len(affinity) != len(boxes):
            raise ValueError(f"affinity must be [N, N] for {len(boxes)} boxes, found {list(affinity.shape)}")
        self.update_ranked(boxes, top_pairs(affinity, self.ks[-1])[0], gt_boxes, gt_pairs)

    def update_ranked(self, boxes: Tensor, ranked: Indices, gt_boxes: Tensor, gt_pairs: Tensor) -> None:
        """Add one image whose pairs of proposals are already ranked.

        Args:
            boxes: as for `update`.
            ranked: from `top_pairs`, with k at least the largest K.
            gt_boxes: as for `update`.
            gt_pairs: as for `update`.

        Raises:
            ValueError: as for `update`.
        """
        _check_shapes(boxes, gt_boxes, gt_pairs)
        pairs = _distinct_pairs(gt_pairs, len(gt_boxes))
        if not len(pairs):
            return
        found = _count_found(ranked[: self.ks[-1]], pairs, _covers(boxes, gt_boxes, self.iou), self.ks)
        self._images += 1
        self._pairs += len(pairs)
        self._found += found
        self._recalls += found / len(pairs)

    def merge(self, other: RelationshipRecall) -> None:
        """Add the images of `other`.

        Raises:
            ValueError: `other` has other `ks` or another `iou`.
        """
        if (other.ks, other.iou) != (self.ks, self.iou):
            raise ValueError(f"K = {other.ks} at IoU {other.iou} does not add to K = {self.ks} at IoU {self.iou}")
        self._images += other._images
        self._pairs += other._pairs
        self._found += other._found
        self._recalls += other._recalls

    def compute(self) -> dict[str, dict[int, float]]:
        """Return `{"micro": {K: recall}, "macro": {K: recall}}` in 0..1, NaN where no image had a pair.

        Micro is the pairs found over all pairs, macro the mean over images of an image's own recall.
        """
        micro, macro = (
            (sums / count if count else np.full(len(self.ks), np.nan)).tolist()
            for sums, count in ((self._found, self._pairs), (self._recalls, self._images))
        )
        return {"micro": dict(zip(self.ks, micro, strict=True)), "macro": dict(zip(self.ks, macro, strict=True))}


def top_pairs(affinity: Tensor, k: int) -> tuple[Indices, Floats]:
    """Return the strongest ordered pairs of an image's proposals, in the order that recall uses.

    Args:
        affinity: weights `[N, N]` on any device; row = subject, column = object.
        k: the number of pairs; if there are fewer, all.

    Returns:
        The pairs, int64 `[k, 2]` (row, column), and their weights `[k]`, descending.

    Raises:
        ValueError: `affinity` is not square, or `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    _check_square(affinity)
    weights = _rankable(affinity)
    index = _first(weights, _no_fewer_than_largest(weights, k), k)
    row = index // max(len(affinity), 1)
    return np.stack((row, index - row * len(affinity)), axis=1), weights[index]


def _rankable(affinity: Tensor) -> Floats:
    """Return the weights row by row, -inf for pairs that are left out."""
    weights: Floats = np.array(affinity.detach().to("cpu", torch.float32).numpy(), order="C")
    np.fill_diagonal(weights, -np.inf)
    if weights.size and not weights.max() < np.inf:  # NaN is not below either
        weights[~np.isfinite(weights)] = -np.inf
    return weights.ravel()


def _no_fewer_than_largest(weights: Floats, k: int) -> Indices:
    """Return the indices of the `k` largest weights and their ties, possibly with some smaller ones, ascending.

    A sample gives a lower bound of the k-th largest weight: far less work than partitioning all.
    """
    sample = weights[::_STRIDE]
    expected = k / _STRIDE
    rank = int(expected + 3 * expected**0.5 + 3)
    if rank < len(sample):
        guess = np.partition(sample, len(sample) - rank)[len(sample) - rank]
        index = np.flatnonzero(weights >= guess)
        if guess > -np.inf and len(index) >= k:
            return index
    return np.flatnonzero(weights > -np.inf)


def _first(weights: Floats, index: Indices, k: int) -> Indices:
    """Return the first `k` of the indices `index` in the order of pairs.

    Sorts integers with the weight in the upper half and the index in the lower: all are different, so that no stable
    sort is needed, which takes several times as long.
    """
    upper = (0 - weights[index]).view(np.int32)  # 0 - x turns -0.0 into 0.0
    upper ^= (upper >> 31) & 0x7FFFFFFF  # negative floats are ordered the other way
    keys = (upper.astype(np.int64) << 32) | index
    keys.sort()
    return keys[:k] & 0xFFFFFFFF


def _covers(boxes: Tensor, gt_boxes: Tensor, iou: float) -> Mask:
    """Return whether proposal and object overlap by at least `iou`, `[G, N]`; boxes without an area never do."""
    if not len(boxes):
        return np.zeros((len(gt_boxes), 0), dtype=np.bool_)
    proposals, objects = (value.detach().to("cpu", torch.float64, copy=True).numpy() for value in (boxes, gt_boxes))
    for corners in (proposals, objects):
        corners[:, 2:] -= corners[:, :2]  # pycocotools takes x, y, width, height
    overlap: npt.NDArray[np.float64] = coco_mask.iou(proposals, objects, np.zeros(len(objects), dtype=np.uint8)).T
    return overlap >= iou


def _count_found(kept: Indices, pairs: Indices, covers: Mask, ks: Sequence[int]) -> Indices:
    """Return how many of `pairs` `[P, 2]` are found by the first K of `kept` `[L, 2]`, for each K.

    The word of a proposal has one bit for each annotated pair: whether the proposal covers its subject (object). The
    bitwise and of the words of a kept pair's two proposals marks the annotated pairs that it finds.
    """
    found = np.zeros(len(ks), dtype=np.int64)
    if not len(kept):
        return found
    ends = np.minimum(ks, len(kept)) - 1
    for start in range(0, len(pairs), _WORD):
        subject, related = (_words(covers[column]) for column in pairs[start : start + _WORD].T)
        first_k = np.bitwise_or.accumulate(subject[kept[:, 0]] & related[kept[:, 1]])[ends]
        found += np.unpackbits(first_k.view(np.uint8)).reshape(len(ks), -1).sum(axis=1, dtype=np.int64)
    return found


def _words(bits: Mask) -> Words:
    """Return one word for each column of `bits` `[at most 52, N]`."""
    words: Words = (2.0 ** np.arange(len(bits)) @ bits).astype(np.uint64)
    return words


def _distinct_pairs(gt_pairs: Tensor, objects: int) -> Indices:
    """Return the distinct pairs without self-relations."""
    pairs = gt_pairs.detach().cpu().numpy()
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < objects):
        raise ValueError(f"gt_pairs must index the {objects} gt_boxes, found {pairs.min()} to {pairs.max()}")
    annotated = np.zeros((objects, objects), dtype=np.bool_)
    annotated[pairs[:, 0], pairs[:, 1]] = True
    np.fill_diagonal(annotated, False)
    return np.argwhere(annotated)


def _check_square(affinity: Tensor) -> None:
    if affinity.dim() != 2 or affinity.shape[0] != affinity.shape[1]:
        raise ValueError(f"affinity must have the shape [N, N], found {list(affinity.shape)}")


def _check_shapes(boxes: Tensor, gt_boxes: Tensor, gt_pairs: Tensor) -> None:
    for name, value, width in (("boxes", boxes, 4), ("gt_boxes", gt_boxes, 4), ("gt_pairs", gt_pairs, 2)):
        if value.dim() != 2 or value.shape[1] != width:
            raise ValueError(f"{name} must have the shape [*, {width}], found {list(value.shape)}")
