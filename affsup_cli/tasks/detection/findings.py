"""Relationship proposals and detections of a split, as files in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from affsup_cli.metrics.relationship import Floats, Indices
from affsup_cli.runs.folder import atomic_file

PAIRS_KEPT = 100  # of an image's pairs; 300 proposals have 89,700


class _ImagePairs(NamedTuple):
    """The strongest pairs of an image, by descending weight: indices of `boxes` and `labels`."""

    image_id: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    pairs: Indices
    weights: Floats


class RelationshipProposals:
    """The strongest pairs of each image; memory is linear in the number of images."""

    def __init__(self) -> None:
        self._images: list[_ImagePairs] = []

    def add(self, image_id: int, boxes: Tensor, labels: Tensor, ranked: Indices, weights: Floats) -> None:
        """Add the strongest pairs of an image.

        Args:
            image_id: the data set's number of the image.
            boxes: proposals `[N, 4]` in pixels.
            labels: their most probable classes, int64 `[N]`.
            ranked: pairs from `top_pairs`.
            weights: their weights.
        """
        used, places = np.unique(ranked[:PAIRS_KEPT], return_inverse=True)
        self._images.append(
            _ImagePairs(
                image_id,
                boxes.float().cpu().numpy()[used],
                labels.cpu().numpy()[used],
                places.reshape(-1, 2),
                weights[:PAIRS_KEPT],
            )
        )

    def merge(self, other: RelationshipProposals) -> None:
        """Add the pairs of other images."""
        self._images += other._images

    def write(self, path: Path) -> None:
        """Write HDF5: `image_id` int64 [P], `subject` and `object` float32 [P, 4] in pixels, `weight` float32 [P].

        Rows are grouped by image, in descending order of weight.
        """
        with atomic_file(path) as temporary, h5py.File(temporary, "w") as h5:
            ids = np.array([image.image_id for image in self._images], dtype=np.int64)
            h5["image_id"] = np.repeat(ids, [len(image.weights) for image in self._images])
            for column, name in enumerate(("subject", "object")):
                ends = [image.boxes[image.pairs[:, column]] for image in self._images]
                h5[name] = np.concatenate([np.zeros((0, 4), np.float32), *ends])
            h5["weight"] = np.concatenate([np.zeros(0, np.float32), *(image.weights for image in self._images)])

    def write_scene_graphs(self, path: Path) -> None:
        """Write the proposals and pairs in the JSON format of SGBench (Lorenz et al., CVPR Workshops 2024).

        The categories are indices of the data set's classes. The predicate of all triplets is 0: none is predicted.
        """
        images = [
            {
                "id": str(image.image_id),
                "bboxes": [[round(side, 2) for side in box] for box in image.boxes.tolist()],
                "categories": image.labels.tolist(),
                "triplets": [[subject, other, 0] for subject, other in image.pairs.tolist()],
            }
            for image in self._images
        ]
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            json.dump({"version": 1, "images": images}, file)


def write_detections(path: Path, detections: Iterable[dict[str, Any]]) -> None:
    """Write detections in COCO's results format, one a line."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for detection in detections:
            file.write(separator + json.dumps(detection))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
