"""Average precision of one class over many images, as COCO and VOC 2007 define it, on whole arrays.

A pair is a detection and an object of the same image that share an area. Pairs whose overlap is too small for any
threshold are dropped before anything else, so that what is left is a small part of all, and is matched at once for all
images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from affsup_cli.metrics.labelled_boxes import Array, ClassRows

DETECTIONS_COUNTED = 100
"""The detections of a class in an image that COCO counts: those of the highest scores."""

_COCO_IOUS = np.linspace(0.5, 0.95, 10)
_COCO_RECALLS = np.linspace(0, 1, 101)
_VOC_IOU = 0.5


@dataclass(frozen=True)
class _Pairs:
    """Detections and objects that share an area: a pair a row, by detection and then object.

    Attributes:
        detection: place among the detections, int64 [P].
        object: place among the objects, int64 [P].
        shared: area of both, float64 [P].
        union: area of either, float64 [P].
    """

    detection: Array
    object: Array
    shared: Array
    union: Array


def coco_precision(detections: ClassRows, objects: ClassRows) -> Array:
    """Return COCO's precision of a class, to the digit that of pycocotools' `COCOeval`.

    An object is given to the first detection, by descending score, that overlaps it more than any other object that is
    still free; of equal overlaps the object given last is taken. A detection that gets no object, but overlaps an
    ignored one, does not count, however many there are (COCO's rule for crowds, VOC's for difficult objects).

    Args:
        detections: with `scores`; the first 100 by score of an image count.
        objects: with bool `difficult` and `crowd`; at least one is neither.

    Returns:
        float64 `[10, 101]`: at IoU 0.50 to 0.95 and recall 0 to 1.
    """
    detections = _ranked(detections)
    first_of_image = np.searchsorted(detections.image, detections.image)
    detections = detections[np.arange(len(detections.image)) - first_of_image < DETECTIONS_COUNTED]
    pairs = _pairs(detections, objects)
    crowd, ignored = objects.values["crowd"], objects.values["crowd"] | objects.values["difficult"]
    whole = np.where(crowd[pairs.object], detections.boxes[pairs.detection, 2:].prod(axis=1), pairs.union)
    overlap = pairs.shared / whole
    # By detection, the object that it would rather have first.
    rows = np.lexsort((-pairs.object, -overlap, pairs.detection))
    rows = rows[(overlap[rows] >= _COCO_IOUS[0]) & ~ignored[pairs.object[rows]]]
    on_ignored = np.zeros(len(detections.image))
    of_ignored = ignored[pairs.object]
    np.maximum.at(on_ignored, pairs.detection[of_ignored], overlap[of_ignored])

    by_score = np.argsort(-detections.values["scores"], kind="stable")
    wanted = np.count_nonzero(~ignored)
    needed = np.searchsorted(np.arange(wanted + 1) / wanted, _COCO_RECALLS)
    precision = np.empty((len(_COCO_IOUS), len(_COCO_RECALLS)))
    for place, iou in enumerate(_COCO_IOUS):
        rows = rows[overlap[rows] >= iou]
        correct = np.zeros(len(detections.image), dtype=np.bool_)
        correct[_served(pairs.detection[rows], pairs.object[rows], len(ignored))] = True
        counted = correct | (on_ignored < iou)
        ranks = np.flatnonzero(correct[by_score][counted[by_score]]) + 1
        # COCOeval adds so little to the number of detections that it matters to the first alone.
        precision[place] = _interpolated(np.arange(1, len(ranks) + 1) / (ranks + np.spacing(1)), needed)
    return precision


def voc07_precision(detections: ClassRows, objects: ClassRows) -> float:
    """Return the 11-point average precision of a class, by the rules of VOC's devkit (VOCevaldet.m).

    By descending score a detection is compared with the object that it overlaps most: below 0.5 it is false, if that
    object is difficult (or a crowd) it does not count, and if a detection has found it before it is false. The 11
    recalls are reached exactly where found ÷ all is; the devkit's 0.3 is 0.30000000000000004.

    Args:
        detections: with `scores`.
        objects: with bool `difficult` and `crowd`; at least one is neither.
    """
    detections = _ranked(detections)
    pairs = _pairs(detections, objects)
    overlap = pairs.shared / pairs.union
    rows = np.lexsort((pairs.object, -overlap, pairs.detection))
    rows = rows[_starts(pairs.detection[rows])]  # of each detection its largest overlap, of equal ones the first
    rows = rows[overlap[rows] >= _VOC_IOU]
    detection, found = pairs.detection[rows], pairs.object[rows]
    ignored = objects.values["crowd"] | objects.values["difficult"]
    counted, correct = np.ones(len(detections.image), dtype=np.bool_), np.zeros(len(detections.image), dtype=np.bool_)
    counted[detection[ignored[found]]] = False
    correct[detection[np.unique(found, return_index=True)[1]]] = True
    by_score = np.argsort(-detections.values["scores"], kind="stable")
    ranks = np.flatnonzero(correct[by_score][counted[by_score]]) + 1
    needed = -(-np.arange(11) * np.count_nonzero(~ignored) // 10)  # rounded up
    return float(sum(_interpolated(np.arange(1, len(ranks) + 1) / ranks, needed).tolist()) / 11)


def _ranked(detections: ClassRows) -> ClassRows:
    """Return each image's detections by descending score, of equals that given first."""
    return detections[np.lexsort((-detections.values["scores"], detections.image))]


def _pairs(detections: ClassRows, objects: ClassRows) -> _Pairs:
    """Return the pairs; areas are computed in pycocotools' order of operations."""
    first = np.searchsorted(objects.image, detections.image, side="left")
    count = np.searchsorted(objects.image, detections.image, side="right") - first
    detection = np.repeat(np.arange(len(count)), count)
    object_ = np.arange(len(detection)) + np.repeat(first + count - np.cumsum(count), count)
    ours, theirs = detections.boxes[detection], objects.boxes[object_]
    end = np.minimum(ours[:, 2:] + ours[:, :2], theirs[:, 2:] + theirs[:, :2])
    side = end - np.maximum(ours[:, :2], theirs[:, :2])
    meet = (side[:, 0] > 0) & (side[:, 1] > 0)
    shared = side[meet].prod(axis=1)
    union = ours[meet, 2:].prod(axis=1) + theirs[meet, 2:].prod(axis=1) - shared
    return _Pairs(detection[meet], object_[meet], shared, union)


def _served(detection: Array, wish: Array, objects: int) -> Array:
    """Return the detections that get an object, where in their order each takes its first wish that is still free.

    Every round each asks for the first of its wishes that are left. An object is held by the lowest that has asked for
    it, and the wishes of higher ones for it are struck out. When there is none to strike out, all hold what they ask
    for: the same as one after the other, in few rounds.

    Args:
        detection: int64 `[P]`, ascending: whose wish; of one image and class, the lower goes first.
        wish: int64 `[P]`: the object wished for; of one detection, the dearest first.
        objects: how many objects there are.
    """
    holder = np.full(objects, np.iinfo(np.int64).max)
    while True:
        asking = _starts(detection)
        np.minimum.at(holder, wish[asking], detection[asking])
        left = detection <= holder[wish]
        if left.all():
            return detection[asking]
        detection, wish = detection[left], wish[left]


def _starts(values: Array) -> Array:
    """Return where a run of equal values begins, bool `[n]`."""
    starts = np.ones(len(values), dtype=np.bool_)
    starts[1:] = values[1:] != values[:-1]
    return starts


def _interpolated(precision: Array, needed: Array) -> Array:
    """Return the best precision at so many objects found or more: `precision` at 1, 2, ... found, 0 after the last."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.asarray(best[np.clip(needed - 1, 0, len(precision))])
