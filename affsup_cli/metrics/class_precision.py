"""Average precision of one class over many images, as COCO and VOC 2007 define it, on whole arrays.

A pair is a detection and an object of the same image that overlap. Pairs whose overlap is below all thresholds are
dropped first; the few that remain are matched for all images at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from affsup_cli.metrics.labelled_boxes import Array, ClassRows

DETECTIONS_COUNTED = 100
"""COCO counts this many detections of a class in an image: those with the highest scores."""

_COCO_IOUS = np.linspace(0.5, 0.95, 10)
_COCO_RECALLS = np.linspace(0, 1, 101)
_VOC_IOU = 0.5
_VOC_RECALLS = np.arange(0, 1.1, 0.1)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a detection and an object that overlap, sorted by detection and then object.

    Attributes:
        detection: index of the detection, int64 [P].
        object: index of the object, int64 [P].
        intersection: area, float64 [P].
        union: area, float64 [P].
    """

    detection: Array
    object: Array
    intersection: Array
    union: Array


def coco_precision(detections: ClassRows, objects: ClassRows) -> Array:
    """Return COCO's precision of a class, equal to that of pycocotools' `COCOeval`.

    By descending score, each detection takes the free object that it overlaps most; of equal overlaps, the last object.
    A detection without an object that overlaps an ignored one does not count, whatever the number of such detections
    (COCO's rule for crowds, VOC's for difficult objects).

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
    overlap = pairs.intersection / whole
    # By detection, its candidate objects in order of preference.
    rows = np.lexsort((-pairs.object, -overlap, pairs.detection))
    rows = rows[(overlap[rows] >= _COCO_IOUS[0]) & ~ignored[pairs.object[rows]]]
    on_ignored = np.zeros(len(detections.image))
    of_ignored = ignored[pairs.object]
    np.maximum.at(on_ignored, pairs.detection[of_ignored], overlap[of_ignored])

    by_score = np.argsort(-detections.values["scores"], kind="stable")
    positives = np.count_nonzero(~ignored)
    needed = np.searchsorted(np.arange(positives + 1) / positives, _COCO_RECALLS)
    precision = np.empty((len(_COCO_IOUS), len(_COCO_RECALLS)))
    for index, iou in enumerate(_COCO_IOUS):
        rows = rows[overlap[rows] >= iou]
        correct = np.zeros(len(detections.image), dtype=np.bool_)
        correct[_matched(pairs.detection[rows], pairs.object[rows], len(ignored))] = True
        counted = correct | (on_ignored < iou)
        ranks = np.flatnonzero(correct[by_score][counted[by_score]]) + 1
        # COCOeval adds np.spacing(1) to the denominator, which changes the first alone.
        precision[index] = _interpolated(np.arange(1, len(ranks) + 1) / (ranks + np.spacing(1)), needed)
    return precision


def voc_precision(detections: ClassRows, objects: ClassRows) -> tuple[float, float]:
    """Return the average precision of a class by VOC's rules: by 11 points (2007), and by area (since 2010).

    The 11-point figure is that of the devkit of 2007 (VOCevaldet.m).

    By descending score a detection is compared with the object that it overlaps most: below 0.5 it is false, if that
    object is difficult (or a crowd) it does not count, and if a detection has found it before it is false. The 11
    recalls are those of the devkit's `0:0.1:1` in float64, of which 0.3, 0.6 and 0.7 are slightly above these numbers:
    3 of 10 objects do not reach the recall 0.3. Ties in the score are ranked by image, then in the order given: the
    devkit's order for a file of results that is sorted so.

    Args:
        detections: with `scores`.
        objects: with bool `difficult` and `crowd`; at least one is neither.
    """
    detections = _ranked(detections)
    pairs = _pairs(detections, objects)
    overlap = pairs.intersection / pairs.union
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
    positives = np.count_nonzero(~ignored)
    precision = np.arange(1, len(ranks) + 1) / ranks
    needed = np.searchsorted(np.arange(positives + 1) / positives, _VOC_RECALLS)
    every = np.arange(1, positives + 1)
    eleven_points, area = _interpolated(precision, needed), _interpolated(precision, every)
    return float(sum(eleven_points.tolist()) / len(needed)), float(area.sum() / positives)


def _ranked(detections: ClassRows) -> ClassRows:
    """Return each image's detections by descending score; ties keep their order."""
    return detections[np.lexsort((-detections.values["scores"], detections.image))]


def _pairs(detections: ClassRows, objects: ClassRows) -> _Pairs:
    """Return the pairs; areas are computed in pycocotools' order of operations."""
    first = np.searchsorted(objects.image, detections.image, side="left")
    count = np.searchsorted(objects.image, detections.image, side="right") - first
    detection = np.repeat(np.arange(len(count)), count)
    object_ = np.arange(len(detection)) + np.repeat(first + count - np.cumsum(count), count)
    detected, annotated = detections.boxes[detection], objects.boxes[object_]
    end = np.minimum(detected[:, 2:] + detected[:, :2], annotated[:, 2:] + annotated[:, :2])
    side = end - np.maximum(detected[:, :2], annotated[:, :2])
    overlapping = (side[:, 0] > 0) & (side[:, 1] > 0)
    intersection = side[overlapping].prod(axis=1)
    union = detected[overlapping, 2:].prod(axis=1) + annotated[overlapping, 2:].prod(axis=1) - intersection
    return _Pairs(detection[overlapping], object_[overlapping], intersection, union)


def _matched(detection: Array, candidate: Array, objects: int) -> Array:
    """Return the detections that get an object, where in ascending order each takes its first free candidate.

    The result of this sequential rule, computed in a few vectorised rounds: in each round every detection claims the
    first of its remaining candidates, an object goes to the lowest detection that has claimed it, and the pairs of
    higher detections with that object are removed. When no pair is removed, all claims hold.

    Args:
        detection: int64 `[P]`, ascending; within an image, the lower index has the higher score.
        candidate: int64 `[P]`: an object; those of a detection by descending preference.
        objects: the number of objects.
    """
    holder = np.full(objects, np.iinfo(np.int64).max)
    while True:
        claims = _starts(detection)
        np.minimum.at(holder, candidate[claims], detection[claims])
        remaining = detection <= holder[candidate]
        if remaining.all():
            return detection[claims]
        detection, candidate = detection[remaining], candidate[remaining]


def _starts(values: Array) -> Array:
    """Return where each run of equal values begins, bool `[n]`."""
    starts = np.ones(len(values), dtype=np.bool_)
    starts[1:] = values[1:] != values[:-1]
    return starts


def _interpolated(precision: Array, needed: Array) -> Array:
    """Return the maximum of `precision` (at 1, 2, ... objects found) from `needed` objects on; 0 beyond the last."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.asarray(best[np.clip(needed - 1, 0, len(precision))])
