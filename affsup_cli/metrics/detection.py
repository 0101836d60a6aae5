"""Mean average precision of detections over classes: COCO's, and the 11-point one of VOC 2007."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from affsup_cli.metrics.class_precision import coco_precision, voc_precision
from affsup_cli.metrics.labelled_boxes import Array, LabelledBoxes
from affsup_cli.metrics.pycocotools_precision import pycocotools_precision

Evaluator = Literal["arrays", "pycocotools"]

_COCO_PRECISION = {"arrays": coco_precision, "pycocotools": pycocotools_precision}


class DetectionPrecision:
    """Mean average precision of detections over classes, accumulated image by image.

    Classes without a countable object are left out. Objects marked `difficult` are ignored: a detection of one is
    neither correct nor false. A `crowd` is ignored by COCO's rule: it absorbs any number of detections, and the overlap
    is the intersection over the detection's area.

    Boxes are continuous: a pixel k spans [k, k + 1]. A VOC box of inclusive corners x1..x2, counted from 1, is
    (x1 − 1, x2) here, so that areas and overlaps are those of VOC's devkit, which adds 1 to every width and height.

    Args:
        classes: their names.
        evaluator: of COCO's precision: "arrays", our own, or "pycocotools", which gives equal numbers and is
            many times slower.
    """

    def __init__(self, classes: Sequence[str], evaluator: Evaluator = "arrays") -> None:
        self.classes = tuple(classes)
        self._coco_precision = _COCO_PRECISION[evaluator]
        self._detections = LabelledBoxes(scores=np.float32)
        self._objects = LabelledBoxes(difficult=np.bool_, crowd=np.bool_)

    def update(
        self,
        image_id: int,
        boxes: Tensor | Array,
        scores: Tensor | Array,
        labels: Tensor | Array,
        gt_boxes: Tensor | Array,
        gt_labels: Tensor | Array,
        difficult: Tensor | Array,
        crowd: Tensor | Array,
    ) -> None:
        """Add one image; every image once.

        Args:
            image_id: the data set's number of the image.
            boxes: detections `[D, 4]` as x1, y1, x2, y2 in pixels.
            scores: `[D]`; ties are ranked in the order given.
            labels: indices into the classes `[D]`.
            gt_boxes: annotated objects `[G, 4]`, like `boxes`.
            gt_labels: `[G]`, like `labels`.
            difficult: bool `[G]`.
            crowd: bool `[G]`.

        Raises:
            ValueError: the shapes do not fit, or a label is not one of a class.
        """
        for name, given in (("labels", labels), ("gt_labels", gt_labels)):
            if len(given) and (int(given.min()) < 0 or int(given.max()) >= len(self.classes)):
                raise ValueError(f"image {image_id}: {name} must be in 0..{len(self.classes) - 1}, found {given}")
        self._detections.add(image_id, boxes=boxes, labels=labels, scores=scores)
        self._objects.add(image_id, boxes=gt_boxes, labels=gt_labels, difficult=difficult, crowd=crowd)

    def compute(self) -> dict[str, float]:
        """Return the mean average precisions in 0..1, NaN where no class has a countable object.

        `map_all` is COCO's mean over IoU 0.50 to 0.95, `map_50` that at 0.50, both of up to 100 detections a class and
        image; `map_50_voc07` is the 11-point one of VOC 2007, and `map_50_area` the area under the
        precision-recall curve, VOC's since 2010.
        """
        of_coco, of_voc = [], []
        count = len(self.classes)
        for detections, objects in zip(self._detections.by_class(count), self._objects.by_class(count), strict=True):
            if not (~objects.values["difficult"] & ~objects.values["crowd"]).any():
                continue
            of_coco.append(self._coco_precision(detections, objects))
            of_voc.append(voc_precision(detections, objects))
        if not of_coco:
            return dict.fromkeys(("map_all", "map_50", "map_50_voc07", "map_50_area"), math.nan)
        # The classes last, as in COCOeval: the rounding of a mean depends on the order.
        precision = np.stack(of_coco, axis=-1)
        eleven_points, area = zip(*of_voc, strict=True)
        means = {"map_all": precision, "map_50": precision[0], "map_50_voc07": eleven_points, "map_50_area": area}
        return {name: float(np.mean(values)) for name, values in means.items()}

    def coco_results(self, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the detections in COCO's results format: image_id, category_id, bbox (x, y, width, height), score.

        Args:
            category_ids: the data set's number of each class.

        Raises:
            ValueError: their number is not that of the classes.
        """
        if len(category_ids) != len(self.classes):
            raise ValueError(f"category_ids must be {len(self.classes)}, one a class, found {len(category_ids)}")
        for image_id, columns in self._detections.images():
            rows = zip(*(columns[name].tolist() for name in ("labels", "boxes", "scores")), strict=True)
            for label, box, score in rows:
                yield {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}
