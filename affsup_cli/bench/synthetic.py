"""Generated data sets with the names and shapes of real ones, a few images each; step times depend on shape alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

import data_prep
from data_prep import build_images, build_scenes
from data_prep.annotations import SceneAnnotation, concatenate
from data_prep.drawing import DrawnPictures
from data_prep.raw import ImageSet, RawImages, RawScenes, RawSplit, SceneSet
from data_prep.store import SourceRecord

_SOURCE = SourceRecord(kind="embedded", files={}, official=None, algorithm=None)
_BATCH = 128
_TRAIN_SCENES = 8


@dataclass(frozen=True)
class _TestSplits:
    images: int
    scenes: int


_ON_CPU, _ON_GPU = _TestSplits(2 * _BATCH, 2), _TestSplits(40 * _BATCH, 64)
"""On a GPU a few images would measure the first batches and the fixed cost of a pass."""


@dataclass(frozen=True)
class _Images:
    """Image size, number of classes, and number of training batches: whole ones, as a smaller last one costs more."""

    side: int
    classes: int
    batches: int


@dataclass(frozen=True)
class _Scenes:
    """The most frequent image size, and the typical number of objects and annotated relations of an image."""

    width: int
    height: int
    classes: int
    objects: int
    relations: int = 0


_SHAPES: dict[str, _Images | _Scenes] = {
    "cifar10": _Images(32, 10, 100),
    "cifar100": _Images(32, 100, 100),
    "tiny-imagenet": _Images(64, 200, 25),
    "voc07": _Scenes(500, 375, 20, 3),
    "coco": _Scenes(640, 480, 80, 7),
    "vg": _Scenes(800, 600, 150, 10, 6),
}


def make(name: str, data_dir: Path, *, test_of_gpu: bool = False) -> None:
    """Prepare `<data_dir>/<name>` with the shape of that data set; embedded data sets are prepared unchanged.

    Args:
        name: of the data set.
        data_dir: folder of the prepared data sets.
        test_of_gpu: make the test split as large as timing a GPU needs.

    Raises:
        KeyError: The shape of the data set is not known.
    """
    dataset = data_prep.get(name)
    if dataset.embedded:
        data_prep.prepare(name, data_dir=data_dir)
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    shape, tested = _SHAPES[name], _ON_GPU if test_of_gpu else _ON_CPU
    if isinstance(dataset, ImageSet) and isinstance(shape, _Images):
        build_images.write(dataset, _images(shape, tested.images), _SOURCE, data_dir / name, None, _silent)
    if isinstance(dataset, SceneSet) and isinstance(shape, _Scenes):
        build_scenes.write(dataset, _scenes(shape, tested.scenes), _SOURCE, data_dir / name, None, _silent)


def _images(shape: _Images, test_images: int) -> RawImages:
    random = np.random.default_rng(0)
    train, test = (
        RawSplit.from_arrays(
            random.integers(0, 256, (count, shape.side, shape.side, 3), dtype=np.uint8),
            random.integers(0, shape.classes, count),
        )
        for count in (int(shape.batches * _BATCH / (1 - build_images.VALIDATION.fraction)), test_images)
    )
    return RawImages(_classes(shape.classes), (3, shape.side, shape.side), train, test)


def _scenes(shape: _Scenes, test_scenes: int) -> RawScenes:
    random = np.random.default_rng(0)
    pictures = DrawnPictures()
    parts: dict[str, Sequence[SceneAnnotation]] = {}
    for part, count in (("train", _TRAIN_SCENES), ("test", test_scenes)):
        parts[part] = [_scene(f"{part}{number}.jpg", number, shape, random) for number in range(count)]
        for scene in parts[part]:
            pictures[scene.name] = _picture(shape, random)
    kind: Literal["annotated", "classes"] = "annotated" if shape.relations else "classes"
    predicates = ("related",) if shape.relations else ()
    train, test = concatenate(parts["train"]), concatenate(parts["test"])
    return RawScenes(_classes(shape.classes), predicates, kind, train, test, pictures)


def _scene(name: str, number: int, shape: _Scenes, random: np.random.Generator) -> SceneAnnotation:
    size = np.array([shape.width, shape.height])
    extent = random.uniform(0.1, 0.6, (shape.objects, 2)) * size
    corner = random.uniform(0, 1, (shape.objects, 2)) * (size - extent)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corner.tolist(), extent.tolist(), strict=True)]
    labels = random.permutation(shape.classes)[: shape.objects].tolist()
    relations = [(i, i + 1, 0) for i in range(shape.relations)]
    return SceneAnnotation(name, number, (shape.width, shape.height), boxes, labels, relations=relations)


def _picture(shape: _Scenes, random: np.random.Generator) -> bytes:
    """Return a JPEG that is as smooth as a photograph and so decodes as fast."""
    coarse = random.integers(0, 256, (shape.height // 8, shape.width // 8, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize((shape.width, shape.height)).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def _classes(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(count))


def _silent(step: str, done: int, total: int) -> None:
    pass
