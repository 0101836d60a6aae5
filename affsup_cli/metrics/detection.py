"""Average precision of detections: COCO's, through pycocotools, and the 11-point one of VOC 2007."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval
from torch import Tensor

Array = npt.NDArray[Any]

_VOC_IOU = 0.5
_EVERY_SIZE = [0.0, 1e10]


@dataclass(frozen=True)
class _ClassRows:
    """One class of a table of boxes: rows of an image stand together, in the order in which they were given.

    Attributes:
        image: int64 [n], ascending.
        boxes: float64 [n, 4] as x, y, width, height.
        values: further columns [n].
    """

    image: Array
    boxes: Array
    values: Mapping[str, Array]

    def images(self) -> dict[int, slice]:
        """Return where each image's rows are."""
        ids, first = np.unique(self.image, return_index=True)
        ends = np.append(first[1:], len(self.image))
        return {int(ids[i]): slice(int(first[i]), int(ends[i])) for i in range(len(ids))}


class _Table:
    """Labelled boxes of many images, kept as they come and read class by class."""

    def __init__(self, **columns: Any) -> None:
        self._types = {"boxes": np.float32, "labels": np.int32, **columns}
        self._images: list[int] = []
        self._columns: dict[str, list[Array]] = {name: [] for name in self._types}

    def add(self, image_id: int, **columns: Tensor | Array) -> None:
        """Add an image's rows."""
        rows = len(columns["labels"])
        for name, kind in self._types.items():
            given = columns[name]
            value = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
            shape = (rows, 4) if name == "boxes" else (rows,)
            if value.shape != shape:
                raise ValueError(f"image {image_id}: {name} must have the shape {shape}, found {value.shape}")
            self._columns[name].append(value.astype(kind))
        self._images.append(image_id)

    def by_class(self, classes: int) -> Iterator[_ClassRows]:
        """Yield the rows of class 0, 1, ... in the order of their images."""
        none = {name: np.zeros((0, 4) if name == "boxes" else 0, kind) for name, kind in self._types.items()}
        columns = {name: np.concatenate([none[name], *parts]) for name, parts in self._columns.items()}
        rows_of = np.array([len(part) for part in self._columns["labels"]], dtype=np.int64)
        image = np.repeat(np.array(self._images, dtype=np.int64), rows_of)
        order = np.lexsort((image, columns["labels"]))  # stable
        bounds = np.searchsorted(columns["labels"][order], np.arange(classes + 1))
        for start, end in itertools.pairwise(bounds):
            rows = order[start:end]
            boxes = columns["boxes"][rows].astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            values = {name: column[rows] for name, column in columns.items() if name not in ("boxes", "labels")}
            yield _ClassRows(image[rows], boxes, values)

    def images(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield each image's id and columns, in the order in which they were added."""
        for index, image_id in enumerate(self._images):
            yield image_id, {name: parts[index] for name, parts in self._columns.items()}


class DetectionPrecision:
    """Mean average precision of detections over classes, gathered image by image.

    Classes without an object to be found do not count. Objects marked `difficult` are ignored: they need not be found,
    and a detection of one counts neither for nor against. A `crowd` is ignored by COCO's rule: it may take any number
    of detections, and the overlap with it is the share of the detection that lies inside.

    Boxes are continuous: a pixel k spans [k, k + 1]. A VOC box of inclusive corners x1..x2, counted from 1, is
    (x1 − 1, x2) here, so that areas and overlaps are those of VOC's devkit, which adds 1 to every width and height.

    Args:
        classes: their names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._detections = _Table(scores=np.float32)
        self._objects = _Table(difficult=np.bool_, crowd=np.bool_)

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
            scores: `[D]`; of equal scores, that which comes first is ranked first.
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
        """Return the mean average precisions in 0..1, NaN where there is no object to be found in any class.

        `map_all` is COCO's mean over IoU 0.50 to 0.95, `map_50` that at 0.50, both of up to 100 detections a class and
        image; `map_50_voc07` is the 11-point one of VOC 2007.
        """
        of_all, of_half, of_voc = [], [], []
        count = len(self.classes)
        for detections, objects in zip(self._detections.by_class(count), self._objects.by_class(count), strict=True):
            if not (~objects.values["difficult"] & ~objects.values["crowd"]).any():
                continue
            precision = _coco_precision(detections, objects)
            of_all.append(precision.mean())
            of_half.append(precision[0].mean())
            of_voc.append(_voc07_precision(detections, objects))
        return {"map_all": _mean(of_all), "map_50": _mean(of_half), "map_50_voc07": _mean(of_voc)}

    def coco_results(self, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the detections in COCO's results format: image_id, category_id, bbox (x, y, width, height), score.

        Args:
            category_ids: the data set's number of each class.

        Raises:
            ValueError: there are not as many as classes.
        """
        if len(category_ids) != len(self.classes):
            raise ValueError(f"category_ids must be {len(self.classes)}, one a class, found {len(category_ids)}")
        for image_id, columns in self._detections.images():
            boxes = columns["boxes"].copy()
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(columns["labels"].tolist(), boxes.tolist(), columns["scores"].tolist(), strict=True)
            for label, box, score in rows:
                yield {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}


class _ClassEval(COCOeval):  # type: ignore[misc]
    """COCO's evaluation of one class, in which difficult objects are ignored as often as they are found (VOC's rule).

    COCOeval ignores any number of detections of a crowd, but only one of another object. So a difficult object is a
    crowd to its matching, but not to its overlap, which a crowd has with any part of itself.
    """

    def __init__(self, detections: _ClassRows, objects: _ClassRows) -> None:
        super().__init__(iouType="bbox")
        self._rows = detections, objects
        self.params.imgIds = np.union1d(detections.image, objects.image).tolist()
        self.params.catIds = [0]
        self.params.areaRng = [_EVERY_SIZE]
        self.params.areaRngLbl = ["all"]
        self.params.maxDets = [100]

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


def _grouped(rows: _ClassRows, **columns: Array) -> defaultdict[tuple[int, int], list[dict[str, Any]]]:
    """Return the rows as pycocotools wants them: dictionaries by (image, category)."""
    # 0 as an id means "unmatched" to pycocotools.
    columns |= {"id": np.arange(1, len(rows.image) + 1), "bbox": rows.boxes, "area": rows.boxes[:, 2:].prod(axis=1)}
    grouped: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for image, *values in zip(rows.image.tolist(), *(column.tolist() for column in columns.values()), strict=True):
        grouped[image, 0].append(dict(zip(columns, values, strict=True)))
    return grouped


def _coco_precision(detections: _ClassRows, objects: _ClassRows) -> Array:
    """Return the precision at 10 overlaps and 101 recalls `[10, 101]`."""
    evaluation = _ClassEval(detections, objects)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Array = evaluation.eval["precision"][:, :, 0, 0, 0]
    return precision


def _voc07_precision(detections: _ClassRows, objects: _ClassRows) -> float:
    """Return the 11-point average precision of a class, by the rules of VOC's devkit (VOCevaldet.m).

    By descending score a detection is compared with the object that it overlaps most: below 0.5 it is false, if that
    object is difficult (or a crowd) it does not count, and if a detection has found it before it is false. The 11
    recalls are reached exactly where found ÷ all is; the devkit's 0.3 is 0.30000000000000004.
    """
    ignored = objects.values["difficult"] | objects.values["crowd"]
    best = np.full(len(detections.image), -1)
    where = objects.images()
    for image, rows in detections.images().items():
        if image in where:
            there = objects.boxes[where[image]]
            overlap = coco_mask.iou(detections.boxes[rows], there, np.zeros(len(there), dtype=np.uint8))
            best[rows] = np.where(overlap.max(axis=1) >= _VOC_IOU, where[image].start + overlap.argmax(axis=1), -1)
    best = best[np.argsort(-detections.values["scores"], kind="stable")]
    best = best[(best < 0) | ~ignored[best]]
    correct = np.zeros(len(best), dtype=np.bool_)
    found, first = np.unique(best, return_index=True)
    correct[first[found >= 0]] = True
    true = np.cumsum(correct)
    precision = true / np.arange(1, len(true) + 1)
    reached = (10 * true >= level * np.count_nonzero(~ignored) for level in range(11))
    return sum(float(precision[enough].max(initial=0)) for enough in reached) / 11


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
