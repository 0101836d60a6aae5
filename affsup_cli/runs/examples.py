"""A few test images of a run with their attention between objects, for pictures of relations. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from affsup_cli.runs.folder import atomic_file
from data_prep.errors import AffsupError
from data_prep.hdf5 import Hdf5Error, open_hdf5, read, subgroup


@dataclasses.dataclass(frozen=True)
class Example:
    """One image, its annotated objects, and for each object the proposals that its own proposal attends to most.

    Boxes are float32 x1, y1, x2, y2 in pixels of `image`. G objects, R relations, P partners (NaN where there are
    fewer).

    Attributes:
        image_id: the data set's number of the image.
        name: its name, for people.
        image: uint8 [H, W, 3], RGB.
        gt_boxes: the objects [G, 4]; difficult ones and crowds are none.
        gt_labels: their classes, int64 [G].
        gt_pairs: relations, int64 [R, 2], subject and object as indices of objects.
        reference_boxes: the proposal that covers each object best [G, 4].
        partner_boxes: its strongest partners, the strongest first [G, P, 4].
        partner_weights: the weights in the reference's row, under a softmax without itself, float32 [G, P] in 0..1.
    """

    image_id: int
    name: str
    image: NDArray[np.uint8]
    gt_boxes: NDArray[np.float32]
    gt_labels: NDArray[np.int64]
    gt_pairs: NDArray[np.int64]
    reference_boxes: NDArray[np.float32]
    partner_boxes: NDArray[np.float32]
    partner_weights: NDArray[np.float32]

    def partners(self, reference: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the boxes [p, 4] and weights [p] of the partners that object `reference` has."""
        valid = np.isfinite(self.partner_weights[reference])
        return self.partner_boxes[reference, valid], self.partner_weights[reference, valid]


_MAX_BYTES = 200_000_000  # of one array
_SHAPES: dict[str, tuple[type[np.generic], tuple[str | int, ...]]] = {
    "image": (np.uint8, ("H", "W", 3)),
    "gt_boxes": (np.float32, ("G", 4)),
    "gt_labels": (np.int64, ("G",)),
    "gt_pairs": (np.int64, ("R", 2)),
    "reference_boxes": (np.float32, ("G", 4)),
    "partner_boxes": (np.float32, ("G", "P", 4)),
    "partner_weights": (np.float32, ("G", "P")),
}


def write_examples(path: Path, classes: Sequence[str], examples: Sequence[Example]) -> None:
    """Write HDF5: the attribute `classes`, and one group for each image, in order."""
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["classes"] = list(classes)
        for place, example in enumerate(examples):
            group = file.create_group(f"{place:06d}")
            group.attrs["image_id"] = example.image_id
            group.attrs["name"] = example.name
            for name, (kind, _) in _SHAPES.items():
                value = np.asarray(getattr(example, name), dtype=kind)
                group.create_dataset(name, data=value, compression="gzip" if name == "image" else None)


def read_examples(path: Path) -> tuple[tuple[str, ...], list[Example]]:
    """Read the classes' names and the examples.

    Raises:
        AffsupError: the file is missing or damaged.
    """
    try:
        with open_hdf5(path) as file:
            classes = tuple(map(str, file.attrs["classes"]))
            return classes, [_read(subgroup(file, name), len(classes)) for name in file]
    except FileNotFoundError:
        raise AffsupError(f"{path} is missing: `affsup evaluate` writes it") from None
    except Hdf5Error as error:
        raise AffsupError(f"{path} is damaged ({error}): `affsup evaluate` writes it again") from error


def _read(group: h5py.Group, classes: int) -> Example:
    sizes: dict[str, int] = {}
    values: dict[str, Any] = {}
    for name, (kind, shape) in _SHAPES.items():
        shape_pattern = [size if isinstance(size, int) else None for size in shape]
        value = read(group, name, np.dtype(kind).kind, shape_pattern, _MAX_BYTES)
        wanted = tuple(
            size if isinstance(size, int) else sizes.setdefault(size, found)
            for size, found in zip(shape, value.shape, strict=True)
        )
        if value.dtype != kind or value.shape != wanted:
            raise ValueError(
                f"{group.name}/{name}: found {value.dtype} {value.shape}, expected {kind.__name__} {wanted}"
            )
        values[name] = value
    for name, bound in (("gt_labels", classes), ("gt_pairs", sizes["G"])):
        if values[name].size and not (values[name].min() >= 0 and values[name].max() < bound):
            raise ValueError(f"{group.name}/{name}: expected indices below {bound}")
    return Example(image_id=int(group.attrs["image_id"]), name=str(group.attrs["name"]), **values)
