"""The prepared data set: its files, its keys, its writer and its reader. The one home of the format.

A prepared data set is a folder `<data>/<name>/` of two files:

- `images.h5`: the attribute `digest` of the manifest, and groups `train`, `val` and `test`, each with `images` uint8
  [n, H, W, C], `labels` int64 [n] and `source_index` int64 [n], the row in the official training or test data that each
  image came from;
- `manifest.json`: what the images are and where they came from (`Manifest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from affsup_cli.errors import AffsupError, UsageError

IMAGES_FILE = "images.h5"
MANIFEST_FILE = "manifest.json"
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
BLOCK = 1000  # images a write, a read-back or a decode handles at a time


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileRecord(_Record):
    """One file, or one folder: then the size is the sum, and the checksum that of its `sha256sum` listing by name."""

    sha256: str
    bytes: int


class SourceRecord(_Record):
    """Where the images came from, and whether every checksum that the publisher gives for it matched.

    `official` is None where the publisher gives no checksum for this kind of source.
    """

    kind: Literal["archive", "folder", "download", "embedded"]
    files: dict[str, FileRecord]
    official: bool | None
    algorithm: Literal["md5"] | None


class SplitRecord(_Record):
    """The images of a split, in all and of each class in the order of `Manifest.classes`."""

    count: int
    per_class: list[int]


class Validation(_Record):
    """How the validation split was drawn from the official training images (paper 6.1)."""

    fraction: float
    seed: int


class Manifest(_Record):
    """What a prepared data set holds and where it came from.

    Attributes:
        format: Version of the prepared format.
        dataset: Name of the data set, and of its folder.
        classes: Class names; a label is an index into them.
        image_shape: [C, H, W].
        channel_mean: Mean of each channel over the train split, pixels scaled to 0..1.
        channel_std: Standard deviation (population) of each channel, likewise.
        splits: Counts of `train`, `val` and `test`.
        validation: How `val` was drawn.
        limit: How many official training images were asked for; None for all.
        official_counts: Images that the publisher's data set has for training and for testing.
        complete: All of the official images are here.
        source: Where they came from.
        files: The files beside this manifest.
        digest: SHA-256 of the content (classes, pixels, labels, order): equal for equal data, whatever the source.
        affsup: Version that prepared it.
    """

    format: Literal[1]
    dataset: str
    classes: list[str]
    image_shape: list[int]
    channel_mean: list[float]
    channel_std: list[float]
    splits: dict[SplitName, SplitRecord]
    validation: Validation
    limit: int | None
    official_counts: dict[Literal["train", "test"], int]
    complete: bool
    source: SourceRecord
    files: dict[str, FileRecord]
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    affsup: str

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if set(self.splits) != set(SPLITS) or IMAGES_FILE not in self.files or len(self.image_shape) != 3:
            raise ValueError(f"splits {', '.join(SPLITS)}, file {IMAGES_FILE} and a [C, H, W] image_shape are needed")
        channels = self.image_shape[0]
        if len(self.channel_mean) != channels or [std > 0 for std in self.channel_std] != [True] * channels:
            raise ValueError(f"channel_mean and channel_std need {channels} numbers, the latter above 0")
        for name, split in self.splits.items():
            if len(split.per_class) != len(self.classes) or sum(split.per_class) != split.count:
                raise ValueError(f"splits.{name}.per_class does not add up to {split.count} over the classes")
        return self

    def split_table(self) -> list[tuple[str, int, int, int]]:
        """Rows of (class, train, val, test) images, the last row `total`."""
        train, val, test = (self.splits[name] for name in SPLITS)
        rows = list(zip(self.classes, train.per_class, val.per_class, test.per_class, strict=True))
        return [*rows, ("total", train.count, val.count, test.count)]


@dataclass(frozen=True)
class Split:
    """One split in memory: images uint8 [n, H, W, C], labels int64 [n], source_index int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]


@dataclass(frozen=True)
class NewSplit:
    """One split to be written: labels int64 [n], source_index int64 [n], and its images in blocks, read once."""

    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]
    blocks: Iterable[NDArray[np.uint8]]


@dataclass(frozen=True)
class Content:
    """What writing the images found out about them: the fields of the same names in `Manifest`."""

    digest: str
    channel_mean: list[float]
    channel_std: list[float]


def write_images(
    folder: Path, classes: Sequence[str], image_shape: Sequence[int], splits: Mapping[SplitName, NewSplit]
) -> Content:
    """Write `images.h5` into a folder, block by block.

    Args:
        folder: Where to; it exists.
        classes: Class names.
        image_shape: [C, H, W].
        splits: `train`, `val` and `test`.

    Raises:
        OSError: The file cannot be written, as on a full disk.
    """
    channels, height, width = image_shape
    digest = _ContentDigest(classes)
    histogram = np.zeros((channels, 256), dtype=np.int64)
    # Through a Python file: HDF5's own driver cannot close on a full disk and crashes the interpreter at exit.
    with (folder / IMAGES_FILE).open("w+b") as raw, h5py.File(raw, "w") as h5:
        for name in SPLITS:
            split = splits[name]
            group = h5.create_group(name)
            images = group.create_dataset("images", (len(split.labels), height, width, channels), dtype=np.uint8)
            start = 0
            for block in split.blocks:
                images[start : start + len(block)] = block
                start += len(block)
                digest.add_images(block)
                if name == "train":
                    histogram += [np.bincount(block[..., c].ravel(), minlength=256) for c in range(channels)]
            if start != len(split.labels):
                raise ValueError(f"split {name}: {start} images for {len(split.labels)} labels")
            group.create_dataset("labels", data=split.labels, dtype=np.int64)
            group.create_dataset("source_index", data=split.source_index, dtype=np.int64)
            digest.end_split(name, split.labels, split.source_index)
        h5.attrs["digest"] = digest.hexdigest()
    levels = np.arange(256) / 255
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    return Content(digest.hexdigest(), mean.tolist(), np.sqrt(variance).tolist())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a folder."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read what a prepared data set, `<data>/<name>`, says of itself.

    Raises:
        AffsupError: It is not prepared, or its manifest is broken, of another data set or of another format.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _not_prepared(folder) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AffsupError(f"{path} cannot be read ({error}): {_again(folder)}") from None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise AffsupError(
            f"{path} is not a manifest of this affsup: {where}: {first['msg']}. {_again(folder)}"
        ) from None
    if manifest.dataset != folder.name:
        raise AffsupError(f"{path} is of data set {manifest.dataset!r}, expected {folder.name!r}: {_again(folder)}")
    return manifest


def read_split(folder: Path, manifest: Manifest, split: str) -> Split:
    """Read a split of a prepared data set, `<data>/<name>`, into memory, and see that it is what its manifest says.

    Args:
        folder: The prepared data set.
        manifest: What `read_manifest` gave for it.
        split: `train`, `val` or `test`.

    Raises:
        AffsupError: It is not prepared, or its images are damaged or of another preparation.
        UsageError: There is no such split.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}: choose one of {', '.join(SPLITS)}")
    path = folder / IMAGES_FILE
    if not path.exists():
        raise _not_prepared(folder)
    try:
        with h5py.File(path, "r") as h5:
            group = h5[split]
            read = Split(group["images"][:], group["labels"][:], group["source_index"][:])
            digest = h5.attrs["digest"]
    except (OSError, KeyError, RuntimeError) as error:
        raise AffsupError(f"{path} is damaged ({error}): {_again(folder)}") from None
    found = [(a.dtype.name, a.ndim) for a in (read.images, read.labels, read.source_index)]
    if found != [("uint8", 4), ("int64", 1), ("int64", 1)] or len({len(a) for a in vars(read).values()}) != 1:
        raise AffsupError(f"{path} is not in the prepared format (split {split}): {_again(folder)}")
    if digest != manifest.digest:
        raise AffsupError(f"{path} has content {digest}, its manifest says {manifest.digest}: {_again(folder)}")
    record, (channels, height, width) = manifest.splits[split], manifest.image_shape
    if read.images.shape != (record.count, height, width, channels):
        raise AffsupError(
            f"{path}: split {split} has images {list(read.images.shape)}, "
            f"its manifest says {[record.count, height, width, channels]}: {_again(folder)}"
        )
    if read.labels.min() < 0 or read.labels.max() >= len(manifest.classes):
        raise AffsupError(f"{path}: split {split} has labels outside 0..{len(manifest.classes) - 1}: {_again(folder)}")
    if class_counts(read.labels, len(manifest.classes)) != record.per_class:
        raise AffsupError(f"{path}: split {split} has other class counts than its manifest: {_again(folder)}")
    return read


def verify(folder: Path) -> Manifest:
    """Check a prepared data set against its manifest: checksum, counts, shapes, labels and content.

    Raises:
        AffsupError: Something is wrong; the message says what.
    """
    manifest = read_manifest(folder)
    path = folder / IMAGES_FILE
    if not path.exists():
        raise _not_prepared(folder)
    expected = manifest.files[IMAGES_FILE]
    size = path.stat().st_size
    if size != expected.bytes:
        raise AffsupError(f"{path} has {size:,} bytes, its manifest says {expected.bytes:,}: {_again(folder)}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != expected.sha256:
        raise AffsupError(f"{path} has SHA-256 {sha256}, its manifest says {expected.sha256}: {_again(folder)}")
    digest = _ContentDigest(manifest.classes)
    for name in SPLITS:
        split = read_split(folder, manifest, name)
        for block in _blocks(split.images):
            digest.add_images(block)
        digest.end_split(name, split.labels, split.source_index)
    if digest.hexdigest() != manifest.digest:
        raise AffsupError(
            f"{path} has content {digest.hexdigest()}, its manifest says {manifest.digest}: {_again(folder)}"
        )
    return manifest


def class_counts(labels: NDArray[np.int64], classes: int) -> list[int]:
    """How many labels there are of each class."""
    return [int(n) for n in np.bincount(labels, minlength=classes)]


class _ContentDigest:
    """SHA-256 over the data themselves, free of how HDF5 lays them out."""

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


def _blocks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), BLOCK):
        yield images[start : start + BLOCK]


def _not_prepared(folder: Path) -> AffsupError:
    return AffsupError(f"data set {folder.name!r} is not prepared in {folder.parent}/: run `{_command(folder)}`")


def _again(folder: Path) -> str:
    return f"run `{_command(folder)}` to prepare it again"


def _command(folder: Path) -> str:
    return f"affsup prepare {folder.name}" + ("" if folder.parent == Path("data") else f" --data {folder.parent}")
