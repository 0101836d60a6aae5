"""Relationship proposals and detections of a split, as files in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from affsup_cli.metrics.relationship import Floats, Indices
from affsup_cli.runs.folder import atomic_file

PAIRS_KEPT = 100  # of an image's pairs; 300 proposals have 89,700


class RelationshipProposals:
    """The strongest pairs of each image; memory is linear in the number of images."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]] = []

    def add(self, image_id: int, boxes: Tensor, ranked: Indices, weights: Floats) -> None:
        """Add the strongest pairs of boxes `[N, 4]`, as ranked by `top_pairs`."""
        ends = boxes.float().cpu().numpy()[ranked[:PAIRS_KEPT]]
        self._parts.append((image_id, ends[:, 0], ends[:, 1], weights[:PAIRS_KEPT]))

    def merge(self, other: RelationshipProposals) -> None:
        """Add the pairs of other images."""
        self._parts += other._parts

    def write(self, path: Path) -> None:
        """Write HDF5: `image_id` int64 [P], `subject` and `object` float32 [P, 4] in pixels, `weight` float32 [P].

        Rows are grouped by image, in descending order of weight.
        """
        with atomic_file(path) as temporary, h5py.File(temporary, "w") as h5:
            counts = [len(weight) for *_, weight in self._parts]
            h5["image_id"] = np.repeat(np.array([number for number, *_ in self._parts], dtype=np.int64), counts)
            for place, (name, shape) in enumerate((("subject", (0, 4)), ("object", (0, 4)), ("weight", (0,))), start=1):
                h5[name] = np.concatenate([np.zeros(shape, np.float32), *(part[place] for part in self._parts)])


def write_detections(path: Path, detections: Iterable[dict[str, Any]]) -> None:
    """Write detections in COCO's results format, one a line."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for detection in detections:
            file.write(separator + json.dumps(detection))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
