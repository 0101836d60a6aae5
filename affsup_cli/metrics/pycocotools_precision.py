"""COCO's average precision of one class by pycocotools: slow, the reference for `class_precision`."""

from __future__ import annotations

import contextlib
import io
import math
from collections import defaultdict
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from affsup_cli.metrics.class_precision import DETECTIONS_COUNTED
from affsup_cli.metrics.labelled_boxes import Array, ClassRows

_EVERY_SIZE = [-math.inf, math.inf]


def pycocotools_precision(detections: ClassRows, objects: ClassRows) -> Array:
    """Return the precision at 10 overlaps and 101 recalls `[10, 101]`; arguments like `coco_precision`."""
    evaluation = _ClassEval(detections, objects)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Array = evaluation.eval["precision"][:, :, 0, 0, 0]
    return precision


class _ClassEval(COCOeval):  # type: ignore[misc]
    """COCO's evaluation of one class, in which a difficult object absorbs any number of detections (VOC's rule).

    COCOeval lets a crowd absorb any number of detections, and any other ignored object only one. So a difficult object
    is a crowd in the matching, but not in the overlap, which for a crowd is over the detection's area.
    """

    def __init__(self, detections: ClassRows, objects: ClassRows) -> None:
        super().__init__(iouType="bbox")
        self._rows = detections, objects
        self.params.imgIds = np.union1d(detections.image, objects.image).tolist()
        self.params.catIds = [0]
        self.params.areaRng = [_EVERY_SIZE]
        self.params.areaRngLbl = ["all"]
        self.params.maxDets = [DETECTIONS_COUNTED]

    def _prepare(self) -> None:
        detections, objects = self._rows
        ignored = (objects.values["crowd"] | objects.values["difficult"]).astype(int)
        self._dts = _grouped(detections, score=detections.values["scores"].astype(np.float64))
        self._gts = _grouped(objects, iscrowd=ignored, ignore=ignored, crowd=objects.values["crowd"].astype(int))

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 (COCOeval's names)
        """Return the overlaps of an image's detections, by descending score, and objects (overrides COCOeval's)."""
        objects, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects or not detections:
            return []
        best = sorted(detections, key=lambda detection: -detection["score"])[: self.params.maxDets[-1]]
        return coco_mask.iou(
            np.array([detection["bbox"] for detection in best]),
            np.array([each["bbox"] for each in objects]),
            np.array([each["crowd"] for each in objects], dtype=np.uint8),
        )


def _grouped(rows: ClassRows, **columns: Array) -> defaultdict[tuple[int, int], list[dict[str, Any]]]:
    """Return the rows in pycocotools' format: lists of dictionaries by (image, category)."""
    # An id of 0 means "unmatched" in pycocotools.
    columns |= {"id": np.arange(1, len(rows.image) + 1), "bbox": rows.boxes, "area": rows.boxes[:, 2:].prod(axis=1)}
    grouped: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for image, *values in zip(rows.image.tolist(), *(column.tolist() for column in columns.values()), strict=True):
        grouped[image, 0].append(dict(zip(columns, values, strict=True)))
    return grouped
