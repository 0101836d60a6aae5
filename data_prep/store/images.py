"""The format of prepared labelled images of one size.

`images.h5` has the attribute `digest`, as in the manifest, and groups `train`, `val` and `test`, each with `images`
uint8 [n, H, W, C], `labels` int64 [n] and `source_index` int64 [n], the row of each image in the official training or
test data.

The manifest has CRC-32 checksums of the labels and of each block of images, compared whenever a split is read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from data_prep.errors import AffsupError, UsageError, quote
from data_prep.hdf5 import Hdf5Error, open_hdf5, subgroup, text_attribute
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

IMAGES_FILE = "images.h5"
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
BLOCK = 1000  # images that are written, read or decoded at a time


class ImageSplitRecord(Record):
    """Number of images of a split: total, and per class in the order of `ImageManifest.classes`."""

    count: int
    per_class: list[int]


class ImageChecksums(Record):
    """CRC-32 of the data of a split.

    Attributes:
        images: Of each block of `BLOCK` images; the last block may be smaller.
        labels: Of the labels and the source indices.
    """

    images: list[int]
    labels: int


class Validation(Record):
    """How the validation split was drawn from the official training images (paper 6.1)."""

    fraction: float
    seed: int


class ImageManifest(CommonManifest):
    """The manifest of a prepared data set of labelled images; further fields are in `CommonManifest`.

    Attributes:
        kind: Constant that marks labelled images.
        image_shape: [C, H, W].
        channel_mean: Mean of each channel over the train split, for pixel values in 0..1.
        channel_std: Population standard deviation of each channel over the train split.
        splits: Number of images of `train`, `val` and `test`.
        validation: How `val` was drawn; None if it is the official validation split.
        checksums: Checksums of each split; None in older data sets.
    """

    kind: Literal["images"] = "images"
    image_shape: list[int]
    channel_mean: list[float]
    channel_std: list[float]
    splits: dict[SplitName, ImageSplitRecord]
    validation: Validation | None
    checksums: dict[SplitName, ImageChecksums] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ImageManifest:
        if set(self.splits) != set(SPLITS) or IMAGES_FILE not in self.files or len(self.image_shape) != 3:
            raise ValueError(f"splits {', '.join(SPLITS)}, file {IMAGES_FILE} and a [C, H, W] image_shape are needed")
        channels = self.image_shape[0]
        if len(self.channel_mean) != channels or [std > 0 for std in self.channel_std] != [True] * channels:
            raise ValueError(f"channel_mean and channel_std need {channels} numbers, the latter greater than 0")
        for name, split in self.splits.items():
            if len(split.per_class) != len(self.classes) or sum(split.per_class) != split.count:
                raise ValueError(f"splits.{name}.per_class does not add up to {split.count} over the classes")
            if self.checksums and (
                name not in self.checksums or len(self.checksums[name].images) != -(-split.count // BLOCK)
            ):
                raise ValueError(f"checksums.{name} does not have one number for each block of {BLOCK} images")
        return self

    def image_counts(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return {name: self.splits[name].count for name in SPLITS}

    def split_table(self) -> list[tuple[str, int, int, int]]:
        """Return rows of (class, train, val, test) image counts; the last row is the total."""
        train, val, test = (self.splits[name] for name in SPLITS)
        rows = list(zip(self.classes, train.per_class, val.per_class, test.per_class, strict=True))
        return [*rows, ("total", train.count, val.count, test.count)]


@dataclass(frozen=True)
class ImageSplit:
    """One split in memory: images uint8 [n, H, W, C], labels int64 [n], source_index int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]


@dataclass(frozen=True)
class NewImages:
    """One split to be written: labels int64 [n], source_index int64 [n], and the images in blocks, iterated once."""

    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]
    blocks: Iterable[NDArray[np.uint8]]


@dataclass(frozen=True)
class WrittenImages:
    """Values that are computed while writing the images; see the fields of `ImageManifest`."""

    digest: str
    channel_mean: list[float]
    channel_std: list[float]
    checksums: dict[SplitName, ImageChecksums]


def write_images(
    folder: Path, classes: Sequence[str], image_shape: Sequence[int], splits: Mapping[SplitName, NewImages]
) -> WrittenImages:
    """Write `images.h5` into a folder, block by block.

    Args:
        folder: An existing folder.
        classes: Class names.
        image_shape: [C, H, W].
        splits: `train`, `val` and `test`.

    Raises:
        OSError: The file cannot be written, as on a full disk.
    """
    channels, height, width = image_shape
    digest = _ImageDigest(classes)
    histogram = np.zeros((channels, 256), dtype=np.int64)
    checksums = {}
    # Through a Python file: HDF5's driver fails to close the file on a full disk, and crashes the interpreter at exit.
    with (folder / IMAGES_FILE).open("w+b") as raw, h5py.File(raw, "w") as h5:
        for name in SPLITS:
            split = splits[name]
            group = h5.create_group(name)
            images = group.create_dataset("images", (len(split.labels), height, width, channels), dtype=np.uint8)
            start, crcs = 0, _BlockChecksums()
            for block in split.blocks:
                images[start : start + len(block)] = block
                start += len(block)
                digest.add_images(block)
                crcs.add(block)
                if name == "train":
                    histogram += [np.bincount(block[..., c].ravel(), minlength=256) for c in range(channels)]
            if start != len(split.labels):
                raise ValueError(f"split {name}: {start} images for {len(split.labels)} labels")
            group.create_dataset("labels", data=split.labels, dtype=np.int64)
            group.create_dataset("source_index", data=split.source_index, dtype=np.int64)
            digest.end_split(name, split.labels, split.source_index)
            checksums[name] = ImageChecksums(
                images=crcs.values, labels=_labels_checksum(split.labels, split.source_index)
            )
        h5.attrs["digest"] = digest.hexdigest()
    levels = np.arange(256) / 255
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    return WrittenImages(digest.hexdigest(), mean.tolist(), np.sqrt(variance).tolist(), checksums)


def read_split(folder: Path, manifest: CommonManifest, split: str) -> ImageSplit:
    """Read a split of a prepared data set, `<data>/<name>`, into memory, and check it against the manifest.

    Args:
        folder: The prepared data set.
        manifest: Its manifest, from `read_manifest`.
        split: `train`, `val` or `test`.

    Raises:
        AffsupError: It is not prepared, or the images are damaged or do not match the manifest.
        UsageError: There is no such split, or the data set does not contain labelled images.
    """
    if not isinstance(manifest, ImageManifest):
        raise UsageError(f"data set {quote(manifest.dataset)} holds scenes, expected labelled images")
    if split not in SPLITS:
        raise UsageError(f"no split {quote(split)}: choose one of {', '.join(SPLITS)}")
    path = folder / IMAGES_FILE
    if not path.exists():
        raise not_prepared(folder)
    record, (channels, height, width) = manifest.splits[split], manifest.image_shape
    size = path.stat().st_size
    try:
        with open_hdf5(path) as h5:
            verify_content(folder, manifest, IMAGES_FILE, text_attribute(h5, "digest"))
            group = subgroup(h5, split)
            read = ImageSplit(
                read_array(group, "images", "u", (record.count, height, width, channels), size),
                read_array(group, "labels", "i", (record.count,), size),
                read_array(group, "source_index", "i", (record.count,), size),
            )
    except (Hdf5Error, FileNotFoundError) as error:
        raise AffsupError(f"{path} is damaged ({error}): {remedy(folder)}") from None
    if [array.dtype.name for array in vars(read).values()] != ["uint8", "int64", "int64"]:
        raise AffsupError(f"{path} is not in the prepared format (split {split}): {remedy(folder)}")
    if read.labels.min() < 0 or read.labels.max() >= len(manifest.classes):
        raise AffsupError(f"{path}: split {split} has labels outside 0..{len(manifest.classes) - 1}: {remedy(folder)}")
    if class_counts(read.labels, len(manifest.classes)) != record.per_class:
        raise AffsupError(f"{path}: split {split} has other class counts than its manifest: {remedy(folder)}")
    if manifest.checksums:
        _verify_checksums(path, split, read, manifest.checksums[split])
    return read


def _verify_checksums(path: Path, name: str, split: ImageSplit, expected: ImageChecksums) -> None:
    """Compare the data of a split with the checksums of its manifest.

    Raises:
        AffsupError: The data differ.
    """
    found = [zlib.crc32(block.data) for block in _blocks(split.images)]
    for number, (crc, expected_crc) in enumerate(zip(found, expected.images, strict=True)):
        if crc != expected_crc:
            first, last = BLOCK * number, min(BLOCK * (number + 1), len(split.labels)) - 1
            raise AffsupError(f"{path}: images {first} to {last} of split {name} are damaged: {remedy(path.parent)}")
    if _labels_checksum(split.labels, split.source_index) != expected.labels:
        raise AffsupError(f"{path}: the labels of split {name} are damaged: {remedy(path.parent)}")


def verify_images(folder: Path, manifest: ImageManifest) -> None:
    """Check a prepared data set against its manifest: checksum, counts, shapes, labels and content.

    Raises:
        AffsupError: A check failed; the message says which.
    """
    verify_file(folder, manifest, IMAGES_FILE)
    digest = _ImageDigest(manifest.classes)
    for name in SPLITS:
        split = read_split(folder, manifest, name)
        for block in _blocks(split.images):
            digest.add_images(block)
        digest.end_split(name, split.labels, split.source_index)
    verify_content(folder, manifest, IMAGES_FILE, digest.hexdigest())


class _ImageDigest:
    """SHA-256 of the data, independent of the HDF5 layout."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._hash = hashlib.sha256(json.dumps(list(classes)).encode())

    def add_images(self, block: NDArray[np.uint8]) -> None:
        self._hash.update(np.ascontiguousarray(block).data)

    def end_split(self, name: str, labels: NDArray[np.int64], source_index: NDArray[np.int64]) -> None:
        self._hash.update(f"{name} {len(labels)}".encode())
        self._hash.update(labels.astype("<i8").tobytes())
        self._hash.update(source_index.astype("<i8").tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _BlockChecksums:
    """CRC-32 of each `BLOCK` images of a split that is written in blocks of any size."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self._count = 0

    def add(self, images: NDArray[np.uint8]) -> None:
        while len(images):
            filled = self._count % BLOCK
            if not filled:
                self.values.append(0)
            part, images = images[: BLOCK - filled], images[BLOCK - filled :]
            self.values[-1] = zlib.crc32(np.ascontiguousarray(part).data, self.values[-1])
            self._count += len(part)


def _labels_checksum(labels: NDArray[np.int64], source_index: NDArray[np.int64]) -> int:
    return zlib.crc32(source_index.astype("<i8").tobytes(), zlib.crc32(labels.astype("<i8").tobytes()))


def _blocks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), BLOCK):
        yield images[start : start + BLOCK]
