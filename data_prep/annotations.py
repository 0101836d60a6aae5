"""Concatenate the annotations of scenes that are read one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_prep.store import Annotations, offsets_from_counts


@dataclass(frozen=True)
class SceneAnnotation:
    """The annotations of one image: G objects, R relations.

    Attributes:
        name: File name of the image.
        id: The publisher's number of the image.
        size: Width and height.
        boxes: x1, y1, x2, y2 of each object.
        labels: Class index of each object.
        difficult: Whether each object is difficult; empty if none is.
        relations: Subject, object and predicate of each relation, the former as indices into the objects.
        category: Category index of the image; None in data sets without categories.
    """

    name: str
    id: int
    size: tuple[int, int]
    boxes: Sequence[tuple[float, float, float, float]]
    labels: Sequence[int]
    difficult: Sequence[bool] = ()
    relations: Sequence[tuple[int, int, int]] = field(default=())
    category: int | None = None


def concatenate(scenes: Sequence[SceneAnnotation]) -> Annotations:
    """Return the annotations of several images, in their order."""
    relations = np.array([row for scene in scenes for row in scene.relations], dtype=np.int64).reshape(-1, 3)
    labels = np.array([label for scene in scenes for label in scene.labels], dtype=np.int64)
    difficult = [flag for scene in scenes for flag in scene.difficult or [False] * len(scene.labels)]
    return Annotations(
        names=[scene.name for scene in scenes],
        ids=np.array([scene.id for scene in scenes], dtype=np.int64),
        sizes=np.array([scene.size for scene in scenes], dtype=np.int32).reshape(-1, 2),
        first_object=offsets_from_counts([len(scene.labels) for scene in scenes]),
        boxes=as_boxes(np.array([box for scene in scenes for box in scene.boxes], dtype=np.float64)),
        labels=labels,
        difficult=np.array(difficult, dtype=np.bool_),
        crowd=np.zeros(len(labels), dtype=np.bool_),
        first_relation=offsets_from_counts([len(scene.relations) for scene in scenes]),
        relations=relations[:, :2],
        predicates=relations[:, 2],
        category=np.array([scene.category for scene in scenes if scene.category is not None], dtype=np.int64),
    )


def as_boxes(corners: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return boxes [m, 4] as float32; values beyond its range become infinite, and such boxes are left out later."""
    with np.errstate(over="ignore"):
        return corners.reshape(-1, 4).astype(np.float32)
