"""Labelled boxes of many images as arrays: added image by image, read class by class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ClassRows:
    """The boxes of one class: grouped by image, within an image in the order in which they were added.

    Attributes:
        image: int64 [n], ascending.
        boxes: float64 [n, 4] as x, y, width, height.
        values: further columns [n].
    """

    image: Array
    boxes: Array
    values: Mapping[str, Array]

    def __getitem__(self, rows: Array) -> ClassRows:
        """Return the chosen rows; the images must stay in ascending order."""
        values = {name: column[rows] for name, column in self.values.items()}
        return ClassRows(self.image[rows], self.boxes[rows], values)


class LabelledBoxes:
    """Labelled boxes of many images, stored by image and read by class.

    Args:
        columns: names and types of further columns.
    """

    def __init__(self, **columns: Any) -> None:
        self._types = {"boxes": np.float32, "labels": np.int32, **columns}
        self._images: list[int] = []
        self._columns: dict[str, list[Array]] = {name: [] for name in self._types}

    def add(self, image_id: int, **columns: Tensor | Array) -> None:
        """Add an image's rows: `boxes` `[n, 4]` as x1, y1, x2, y2, and `[n]` of every other column.

        Raises:
            ValueError: the shapes do not fit.
        """
        rows = len(columns["labels"])
        for name, kind in self._types.items():
            given = columns[name]
            value = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
            shape = (rows, 4) if name == "boxes" else (rows,)
            if value.shape != shape:
                raise ValueError(f"image {image_id}: {name} must have the shape {shape}, found {value.shape}")
            self._columns[name].append(value.astype(kind))
        self._images.append(image_id)

    def by_class(self, classes: int) -> Iterator[ClassRows]:
        """Yield the rows of class 0, 1, ... in the order of their images."""
        none = {name: np.zeros((0, 4) if name == "boxes" else 0, kind) for name, kind in self._types.items()}
        columns = {name: np.concatenate([none[name], *parts]) for name, parts in self._columns.items()}
        rows_of = np.array([len(part) for part in self._columns["labels"]], dtype=np.int64)
        image = np.repeat(np.array(self._images, dtype=np.int64), rows_of)
        order = np.lexsort((image, columns["labels"]))  # stable
        bounds = np.searchsorted(columns["labels"][order], np.arange(classes + 1))
        for start, end in itertools.pairwise(bounds):
            rows = order[start:end]
            values = {name: column[rows] for name, column in columns.items() if name not in ("boxes", "labels")}
            yield ClassRows(image[rows], _sized(columns["boxes"][rows]), values)

    def images(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield each image's id and columns in the order in which they were added, boxes as x, y, width, height."""
        for index, image_id in enumerate(self._images):
            columns = {name: parts[index] for name, parts in self._columns.items()}
            yield image_id, columns | {"boxes": _sized(columns["boxes"])}


def _sized(corners: Array) -> Array:
    """Return float64 x, y, width, height of float32 x1, y1, x2, y2."""
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
