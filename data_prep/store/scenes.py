"""The format of prepared scenes: images of any size with annotated objects and relations, a category each, or both.

`scenes.h5` has the attribute `digest`, as in the manifest, and groups `train`, `test` and, if the data set has an
official validation split, `val`. A group with n images, m
objects and r relations has these arrays:

- `ids` int64 [n], `names` [n], `sizes` int32 [n, 2] (width, height);
- `category` int64 [n], only if the data set has categories;
- `first_object` int64 [n + 1]: the objects of image i are rows `first_object[i]:first_object[i + 1]` of `boxes`
  float32 [m, 4], `labels` int64 [m], `difficult` bool [m], `crowd` bool [m];
- `first_relation` int64 [n + 1] in the same way for `relations` int64 [r, 2] (subject, object: indices into the objects
  of the image) and `predicates` int64 [r]; these are empty if relations are derived from the classes;
- `first_byte` int64 [n + 1] in the same way for `encoded` uint8: the original image files. `encoded` may be longer than
  the end of its last image;
- `checksums` uint32 [n]: CRC-32 of each image file, compared whenever it is read. The manifest has the CRC-32 of all
  other arrays of a split. Older data sets have neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from data_prep.decode.pictures import PictureError, pixels
from data_prep.errors import AffsupError, UsageError, quote
from data_prep.hdf5 import Hdf5Error, dataset, open_hdf5, read_strings, subgroup, text_attribute
from data_prep.hdf5 import read as read_array
from data_prep.store.records import (
    CommonManifest,
    Record,
    class_counts,
    not_prepared,
    remedy,
    verify_content,
    verify_file,
)

SCENES_FILE = "scenes.h5"
SceneSplitName = Literal["train", "val", "test"]
SCENE_SPLITS: tuple[SceneSplitName, ...] = ("train", "val", "test")
RelationKind = Literal["annotated", "classes"]
CountRow = tuple[str, *tuple[int, ...]]
"""A row of a table: its name, and a count for each split."""

MAX_EXAMPLES = 5  # that are listed for each kind and reason of what is left out
_DTYPES = {
    "ids": "int64",
    "sizes": "int32",
    "first_object": "int64",
    "boxes": "float32",
    "labels": "int64",
    "difficult": "bool",
    "crowd": "bool",
    "first_relation": "int64",
    "relations": "int64",
    "predicates": "int64",
}


_COLUMNS = {"sizes": (2,), "boxes": (4,), "relations": (2,)}


def _dtypes(categorised: bool) -> dict[str, str]:
    """Return the arrays of a group; `category` only if there are categories, so that older digests remain valid."""
    return _DTYPES | ({"category": "int64"} if categorised else {})


class SceneSplitRecord(Record):
    """The counts of a split.

    Attributes:
        images: Number of images.
        objects: Number of annotated objects.
        pairs: Number of ordered pairs of related objects; a pair with several predicates counts once.
        without_pair: Number of images without such a pair.
        without_object: Number of images without an object.
        per_class: Number of objects of each class, in the order of `SceneManifest.classes`.
        per_category: Number of images of each category, in the order of `SceneManifest.categories`.
    """

    images: int
    objects: int
    pairs: int
    without_pair: int
    without_object: int
    per_class: list[int]
    per_category: list[int] = Field(default=[])


class LeftOutRecord(Record):
    """What the official files contain but the prepared data set does not: number, reason and first examples."""

    what: Literal["images", "objects", "relations"]
    reason: str
    count: int
    examples: list[str]


class SceneManifest(CommonManifest):
    """The manifest of a prepared data set of scenes; further fields are in `CommonManifest`.

    Attributes:
        kind: Constant that marks scenes.
        categories: Names of the image categories; empty if images have no category.
        predicates: Predicate names; empty if relations have no predicates.
        category_ids: The publisher's number of each class, as used in detection files.
        relations: Whether related pairs are annotated, or are all ordered pairs of objects of different classes
            without difficult and crowd objects.
        splits: Counts of `train`, `test` and, if there is one, `val`.
        drop_empty: Whether images without a related pair were left out.
        left_out: What was left out, by kind and reason.
        checksums: CRC-32 of the annotations of each split; None in older data sets.
    """

    kind: Literal["scenes"]
    categories: list[str] = Field(default=[])
    predicates: list[str]
    category_ids: list[int]
    relations: RelationKind
    splits: dict[SceneSplitName, SceneSplitRecord]
    drop_empty: bool = False
    left_out: list[LeftOutRecord]
    checksums: dict[SceneSplitName, int] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SceneManifest:
        if not {"train", "test"} <= set(self.splits) or SCENES_FILE not in self.files:
            raise ValueError(f"splits train and test and file {SCENES_FILE} are needed")
        if len(self.category_ids) != len(self.classes):
            raise ValueError(f"{len(self.category_ids)} category_ids for {len(self.classes)} classes")
        if self.checksums is not None and set(self.checksums) != set(self.splits):
            raise ValueError("checksums of each split are needed")
        for name, split in self.splits.items():
            if len(split.per_class) != len(self.classes) or sum(split.per_class) != split.objects:
                raise ValueError(f"splits.{name}.per_class does not add up to {split.objects} over the classes")
            categorised = split.images if self.categories else 0
            if len(split.per_category) != len(self.categories) or sum(split.per_category) != categorised:
                raise ValueError(f"splits.{name}.per_category does not add up to {categorised} over the categories")
        return self

    def run_record(self) -> dict[str, Any]:
        """Return the description of the data set that a run folder keeps."""
        return super().run_record() | ({"categories": self.categories} if self.categories else {})

    def image_counts(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return {name: self.splits[name].images for name in self.split_names()}

    def split_names(self) -> list[SceneSplitName]:
        """Return the names of the splits, in the order of tables."""
        return [name for name in SCENE_SPLITS if name in self.splits]

    def split_table(self) -> list[CountRow]:
        """Return rows of counts for the splits in the order of `split_names`; only images if there are no classes."""
        splits = [self.splits[name] for name in self.split_names()]
        rows = {
            "images": [split.images for split in splits],
            "objects": [split.objects for split in splits],
            "pairs": [split.pairs for split in splits],
            "images without a pair": [split.without_pair for split in splits],
            "images without an object": [split.without_object for split in splits],
        }
        return [(what, *counts) for what, counts in rows.items() if self.classes or what == "images"]

    def class_table(self) -> list[CountRow]:
        """Return rows of the number of objects of each class, in the columns of `split_table`."""
        counts = zip(*(self.splits[name].per_class for name in self.split_names()), strict=True)
        return [(name, *row) for name, row in zip(self.classes, counts, strict=True)]

    def category_table(self) -> list[CountRow]:
        """Return rows of the number of images of each category, in the columns of `split_table`."""
        counts = zip(*(self.splits[name].per_category for name in self.split_names()), strict=True)
        return [(name, *row) for name, row in zip(self.categories, counts, strict=True)]


@dataclass(frozen=True)
class Annotations:
    """The annotations of n images, m objects and r relations; see the docstring of this module.

    Attributes:
        names: File names of the images.
        ids: int64 [n], the publisher's numbers of the images.
        sizes: int32 [n, 2], width and height.
        first_object: int64 [n + 1].
        boxes: float32 [m, 4], x1, y1, x2, y2 in pixels.
        labels: int64 [m].
        difficult: bool [m].
        crowd: bool [m].
        first_relation: int64 [n + 1].
        relations: int64 [r, 2], subject and object as indices into the objects of their image.
        predicates: int64 [r].
        category: int64 [n]; int64 [0] in data sets without categories.
    """

    names: Sequence[str]
    ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    first_object: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    first_relation: NDArray[np.int64]
    relations: NDArray[np.int64]
    predicates: NDArray[np.int64]
    category: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def image_of_object(self) -> NDArray[np.int64]:
        """Return the image index of each object, int64 [m]."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_object))

    def image_of_relation(self) -> NDArray[np.int64]:
        """Return the image index of each relation, int64 [r]."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_relation))

    def take(self, rows: NDArray[np.int64]) -> Annotations:
        """Return the annotations of the images with indices [k], in that order."""
        objects, first_object = _gather(self.first_object, rows)
        relations, first_relation = _gather(self.first_relation, rows)
        return Annotations(
            names=[self.names[row] for row in rows],
            ids=self.ids[rows],
            sizes=self.sizes[rows],
            first_object=first_object,
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            difficult=self.difficult[objects],
            crowd=self.crowd[objects],
            first_relation=first_relation,
            relations=self.relations[relations],
            predicates=self.predicates[relations],
            category=self.category[rows] if len(self.category) else self.category,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all arrays except the names, by their key in `scenes.h5`."""
        return {key: getattr(self, key) for key in _dtypes(len(self.category) > 0)}

    def store(self, group: h5py.Group) -> None:
        """Write the annotations to a group of `scenes.h5`."""
        group.create_dataset("names", data=list(self.names), dtype=h5py.string_dtype())
        for key, array in self.arrays().items():
            group.create_dataset(key, data=array, dtype=_dtypes(True)[key])

    def record(self, classes: int, kind: RelationKind, categories: int = 0) -> SceneSplitRecord:
        """Return the counts of images, objects and pairs."""
        pairs = self.pairs(classes, kind)
        return SceneSplitRecord(
            images=len(self),
            objects=len(self.labels),
            pairs=int(pairs.sum()),
            without_pair=int((pairs == 0).sum()),
            without_object=int((np.diff(self.first_object) == 0).sum()),
            per_class=class_counts(self.labels, classes),
            per_category=class_counts(self.category, categories),
        )

    def pairs(self, classes: int, kind: RelationKind) -> NDArray[np.int64]:
        """Return the number of ordered pairs of related objects of each image, int64 [n]."""
        return self._annotated_pairs() if kind == "annotated" else self._class_pairs(classes)

    def _annotated_pairs(self) -> NDArray[np.int64]:
        ends = self.first_object[self.image_of_relation(), None] + self.relations
        key = np.unique(ends[:, 0] * (len(self.labels) + 1) + ends[:, 1])
        subjects = key // (len(self.labels) + 1)
        return np.bincount(self.image_of_object()[subjects], minlength=len(self))

    def _class_pairs(self, classes: int) -> NDArray[np.int64]:
        """Count ordered pairs of different classes: g^2 - sum n_c^2 for g objects, n_c of them of class c."""
        counted = ~(self.difficult | self.crowd)
        image = self.image_of_object()[counted]
        objects = np.bincount(image, minlength=len(self))
        keys, of_class = np.unique(image * classes + self.labels[counted], return_counts=True)
        same = np.zeros(len(self), dtype=np.int64)
        np.add.at(same, keys // classes, of_class**2)
        return objects**2 - same


@dataclass(frozen=True)
class Objects:
    """The annotated objects of an image and their relations.

    Attributes:
        boxes: float32 [G, 4], x1, y1, x2, y2 in pixels, within the image.
        labels: int64 [G], indices into the classes.
        difficult: bool [G].
        crowd: bool [G], whether the box is a region with many objects.
        relations: int64 [R, 2], subject and object as indices into the objects.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    relations: NDArray[np.int64]

    def without_ignored(self) -> Objects:
        """Return the objects that are neither difficult nor a crowd, and the relations among them."""
        kept = ~(self.difficult | self.crowd)
        number = np.cumsum(kept) - 1
        among = self.relations[kept[self.relations].all(axis=1)]
        return Objects(self.boxes[kept], self.labels[kept], self.difficult[kept], self.crowd[kept], number[among])


@dataclass(frozen=True)
class Scenes:
    """A split of scenes: annotations in memory, images on disk, read on access.

    It may be used by several threads and sent to other processes.
    """

    path: Path
    kind: RelationKind
    annotations: Annotations
    first_byte: NDArray[np.int64]
    offset: int
    checksums: NDArray[np.uint32] | None

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def ids(self) -> NDArray[np.int64]:
        """The publisher's numbers of the images, int64 [n]."""
        return self.annotations.ids

    @property
    def names(self) -> Sequence[str]:
        """File names of the images."""
        return self.annotations.names

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height of the images, int32 [n, 2]."""
        return self.annotations.sizes

    @property
    def categories(self) -> NDArray[np.int64]:
        """Category index of each image, int64 [n]; int64 [0] if there are no categories."""
        return self.annotations.category

    def objects(self, index: int) -> Objects:
        """Return the objects of an image."""
        annotations = self.annotations
        rows = slice(*annotations.first_object[index : index + 2])
        labels, difficult, crowd = annotations.labels[rows], annotations.difficult[rows], annotations.crowd[rows]
        if self.kind == "annotated":
            relations = annotations.relations[slice(*annotations.first_relation[index : index + 2])]
        else:
            counted = ~(difficult | crowd)
            different = labels[:, None] != labels
            relations = np.argwhere(different & counted[:, None] & counted).astype(np.int64)
        return Objects(annotations.boxes[rows], labels, difficult, crowd, relations)

    def encoded(self, index: int) -> bytes:
        """Return the original image file.

        Raises:
            AffsupError: `scenes.h5` is missing or damaged.
        """
        start, end = (int(byte) for byte in self.first_byte[index : index + 2])
        try:
            with self.path.open("rb", buffering=0) as file:
                read = os.pread(file.fileno(), end - start, self.offset + start)
        except OSError as error:
            raise AffsupError(f"{self.path} cannot be read ({error.strerror}): {remedy(self.path.parent)}") from None
        if len(read) != end - start:
            raise AffsupError(f"{self.path} is cut off: {remedy(self.path.parent)}")
        if self.checksums is not None and zlib.crc32(read) != self.checksums[index]:
            raise AffsupError(f"{self.path}: image {self.names[index]} is damaged: {remedy(self.path.parent)}")
        return read

    def pixels(self, index: int, at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Decode an image.

        Args:
            index: Index of the image.
            at_most: Width and height that suffice: a JPEG may be decoded at a half, a quarter or an eighth of its
                size, as long as the result is not smaller than this.

        Returns:
            uint8 [H, W, 3], red, green, blue; of the size in `sizes`, or smaller if `at_most` is given.

        Raises:
            AffsupError: `scenes.h5` is missing or damaged.
        """
        width, height = self.sizes[index]
        try:
            return pixels(self.encoded(index), (int(width), int(height)), at_most)
        except PictureError as error:
            raise AffsupError(f"{self.path}: image {self.names[index]} {error}: {remedy(self.path.parent)}") from None


@dataclass(frozen=True)
class NewScenes:
    """One split to be written: annotations, and for each image its file content, or None to leave the image out.

    `capacity` is the maximum total size of the images in bytes.
    """

    annotations: Annotations
    encoded: Iterable[bytes | None]
    capacity: int


@dataclass(frozen=True)
class WrittenScenes:
    """The result of `write_scenes`: digest of the content, counts and checksums of each split."""

    digest: str
    splits: dict[SceneSplitName, SceneSplitRecord]
    checksums: dict[SceneSplitName, int]


def write_scenes(
    folder: Path,
    classes: Sequence[str],
    predicates: Sequence[str],
    kind: RelationKind,
    splits: dict[SceneSplitName, NewScenes],
    categories: Sequence[str] = (),
) -> WrittenScenes:
    """Write `scenes.h5` into a folder, image by image.

    Args:
        folder: An existing folder.
        classes: Class names.
        predicates: Predicate names.
        kind: Whether relations are annotated or derived from the classes.
        splits: `train`, `test` and perhaps `val`.
        categories: Category names; empty if images have no category.

    Raises:
        OSError: The file cannot be written, as on a full disk.
    """
    digest = _SceneDigest(classes, predicates, kind, categories)
    records, checksums = {}, {}
    # Through a Python file: HDF5's driver fails to close the file on a full disk, and crashes the interpreter at exit.
    with (folder / SCENES_FILE).open("w+b") as raw, h5py.File(raw, "w") as h5:
        for name in SCENE_SPLITS:
            if name not in splits:
                continue
            split = splits[name]
            group = h5.create_group(name)
            # contiguous, so that readers can seek to an image; the space of left-out images stays unwritten
            encoded = group.create_dataset("encoded", (split.capacity,), dtype=np.uint8)
            kept, first_byte, crcs = [], [0], []
            for row, picture in enumerate(split.encoded):
                if picture is None:
                    continue
                encoded[first_byte[-1] : first_byte[-1] + len(picture)] = np.frombuffer(picture, dtype=np.uint8)
                digest.add_picture(picture)
                crcs.append(zlib.crc32(picture))
                kept.append(row)
                first_byte.append(first_byte[-1] + len(picture))
            offsets, picture_checksums = np.array(first_byte, dtype=np.int64), np.array(crcs, dtype=np.uint32)
            group.create_dataset("first_byte", data=offsets)
            group.create_dataset("checksums", data=picture_checksums)
            annotations = split.annotations.take(np.array(kept, dtype=np.int64))
            annotations.store(group)
            digest.end_split(name, annotations)
            records[name] = annotations.record(len(classes), kind, len(categories))
            checksums[name] = _checksum(annotations, offsets, picture_checksums)
        h5.attrs["digest"] = digest.hexdigest()
    return WrittenScenes(digest.hexdigest(), records, checksums)


def read_scenes(folder: Path, manifest: CommonManifest, split: str) -> Scenes:
    """Open a split of a prepared data set of scenes, `<data>/<name>`, and check it against the manifest.

    Args:
        folder: The prepared data set.
        manifest: Its manifest, from `read_manifest`.
        split: `train`, `test` or, if the data set has it, `val`.

    Raises:
        AffsupError: It is not prepared, damaged, or does not match the manifest.
        UsageError: There is no such split, or the data set does not contain scenes.
    """
    if not isinstance(manifest, SceneManifest):
        raise UsageError(f"data set {quote(manifest.dataset)} holds labelled images, expected scenes")
    if split not in manifest.split_names():
        raise UsageError(f"no split {quote(split)}: known are {', '.join(manifest.split_names())}")
    path = folder / SCENES_FILE
    if not path.exists():
        raise not_prepared(folder)
    dtypes = _dtypes(bool(manifest.categories))
    images, size = manifest.splits[split].images, path.stat().st_size
    try:
        with open_hdf5(path) as h5:
            group = subgroup(h5, split)
            arrays = {key: read_array(group, key, "iufb", (None, *_COLUMNS.get(key, ())), size) for key in dtypes}
            names = read_strings(group, "names", images)
            first_byte = read_array(group, "first_byte", "i", (images + 1,), size)
            encoded = dataset(group, "encoded", "u", (None,), size)
            capacity, offset = encoded.shape[0], encoded.id.get_offset() or 0
            crcs = None if manifest.checksums is None else read_array(group, "checksums", "u", (images,), size)
            digest = text_attribute(h5, "digest")
    except (Hdf5Error, FileNotFoundError) as error:
        raise AffsupError(f"{path} is damaged ({error}): {remedy(folder)}") from None
    if {key: array.dtype.name for key, array in arrays.items()} != dtypes:
        raise AffsupError(f"{path} is not in the prepared format (split {split}): {remedy(folder)}")
    verify_content(folder, manifest, SCENES_FILE, digest)
    annotations = Annotations(names, **arrays)
    wrong = _inconsistency(annotations, first_byte, capacity, manifest)
    counted = (len(manifest.classes), manifest.relations, len(manifest.categories))
    if not wrong and annotations.record(*counted) != manifest.splits[split]:
        wrong = "other counts than its manifest"
    if wrong:
        raise AffsupError(f"{path}: split {split} has {wrong}: {remedy(folder)}")
    if (
        manifest.checksums
        and crcs is not None
        and _checksum(annotations, first_byte, crcs) != manifest.checksums[split]
    ):
        raise AffsupError(f"{path}: the annotations of split {split} are damaged: {remedy(folder)}")
    return Scenes(path, manifest.relations, annotations, first_byte, offset, crcs)


def verify_scenes(folder: Path, manifest: SceneManifest) -> None:
    """Check a prepared data set against its manifest: checksum, layout, ranges, boxes, relations, counts and content.

    Raises:
        AffsupError: A check failed; the message says which.
    """
    verify_file(folder, manifest, SCENES_FILE)
    digest = _SceneDigest(manifest.classes, manifest.predicates, manifest.relations, manifest.categories)
    for name in manifest.split_names():
        scenes = read_scenes(folder, manifest, name)
        for index in range(len(scenes)):
            digest.add_picture(scenes.encoded(index))
        digest.end_split(name, scenes.annotations)
    verify_content(folder, manifest, SCENES_FILE, digest.hexdigest())


def _inconsistency(
    annotations: Annotations, first_byte: NDArray[np.int64], capacity: int, manifest: SceneManifest
) -> str:
    """Return what is wrong with shapes or ranges, or "" if nothing is."""
    images, objects, relations = len(annotations.ids), len(annotations.labels), len(annotations.predicates)
    shapes = (
        (annotations.sizes, (images, 2)),
        (annotations.boxes, (objects, 4)),
        (annotations.difficult, (objects,)),
        (annotations.crowd, (objects,)),
        (annotations.relations, (relations, 2)),
        (annotations.category, (images if manifest.categories else 0,)),
    )
    if len(annotations.names) != images or any(array.shape != shape for array, shape in shapes):
        return "arrays of different lengths"
    for key, first, total in (
        ("first_object", annotations.first_object, objects),
        ("first_relation", annotations.first_relation, relations),
        ("first_byte", first_byte, min(capacity, int(first_byte.max(initial=0)))),
    ):
        if first.shape != (images + 1,) or first[0] != 0 or (np.diff(first) < 0).any() or first[-1] != total:
            return f"{key} that does not count up to {total}"
    if objects and (annotations.labels.min() < 0 or annotations.labels.max() >= len(manifest.classes)):
        return f"labels outside 0..{len(manifest.classes) - 1}"
    if annotations.category.size and (
        annotations.category.min() < 0 or annotations.category.max() >= len(manifest.categories)
    ):
        return f"categories outside 0..{len(manifest.categories) - 1}"
    x1, y1, x2, y2 = annotations.boxes.T
    width, height = annotations.sizes[annotations.image_of_object()].T
    if not ((x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= width) & (y2 <= height)).all():
        return "boxes that are empty or outside their image"
    if relations:
        in_image = np.diff(annotations.first_object)[annotations.image_of_relation(), None]
        if not ((annotations.relations >= 0) & (annotations.relations < in_image)).all():
            return "relations of objects that do not exist"
        if annotations.predicates.min() < 0 or annotations.predicates.max() >= len(manifest.predicates):
            return f"predicates outside 0..{len(manifest.predicates) - 1}"
    return ""


def _checksum(annotations: Annotations, first_byte: NDArray[np.int64], picture_checksums: NDArray[np.uint32]) -> int:
    """Return the CRC-32 of all arrays of a split but the encoded images."""
    crc = zlib.crc32("\n".join(annotations.names).encode())
    for array in (*annotations.arrays().values(), first_byte, picture_checksums):
        crc = zlib.crc32(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes(), crc)
    return crc


class _SceneDigest:
    """SHA-256 of the data, independent of the HDF5 layout."""

    def __init__(
        self, classes: Sequence[str], predicates: Sequence[str], kind: RelationKind, categories: Sequence[str]
    ) -> None:
        names = [list(classes), list(predicates), kind, *([list(categories)] if categories else [])]
        self._hash = hashlib.sha256(json.dumps(names).encode())

    def add_picture(self, encoded: bytes) -> None:
        self._hash.update(f"picture {len(encoded)}".encode())
        self._hash.update(encoded)

    def end_split(self, name: str, annotations: Annotations) -> None:
        self._hash.update(json.dumps([name, list(annotations.names), len(annotations.labels)]).encode())
        for array in annotations.arrays().values():
            self._hash.update(array.astype(array.dtype.newbyteorder("<")).tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def offsets_from_counts(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offset of each image's first entry, and the total number of entries: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _gather(first: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the entries of the given images, and the new offsets of these images."""
    counts = np.diff(first)[rows]
    begins = offsets_from_counts(counts)
    return np.arange(begins[-1]) + np.repeat(first[rows] - begins[:-1], counts), begins
