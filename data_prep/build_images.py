"""Write prepared labelled images: draw the validation split, and write the images with their manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import SourceError
from data_prep.origin import ProgressCallback
from data_prep.raw import MAX_NAME, ImageSet, RawImages, RawSplit, check_names
from data_prep.sources.open import checksums, definition_record
from data_prep.store import (
    IMAGES_FILE,
    ImageManifest,
    ImageSplitRecord,
    NewImages,
    SourceRecord,
    SplitName,
    Validation,
    class_counts,
    write_images,
    write_manifest,
)
from data_prep.version import __version__
from data_prep.writing import ImageCounter, refuse_excess, replace_folder

VALIDATION = Validation(fraction=0.1, seed=0)


def split_rows(count: int, limit: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the training and the validation rows of `count` official training images, each in official order.

    The draw is always the same. With a limit both are subsets of those without a limit.
    """
    order = np.random.RandomState(VALIDATION.seed).permutation(count)  # the legacy generator: its stream never changes
    full_val_size = _validation_size(count)
    used = count if limit is None else limit
    val_size = _validation_size(used)
    return np.sort(order[full_val_size : full_val_size + used - val_size]), np.sort(order[:val_size])


def _validation_size(count: int) -> int:
    return max(1, int(count * VALIDATION.fraction))


def write(
    dataset: ImageSet,
    raw: RawImages,
    record: SourceRecord,
    destination: Path,
    limit: int | None,
    progress: ProgressCallback,
) -> ImageManifest:
    """Write a prepared data set of labelled images, replacing `destination`.

    Args:
        dataset: The data set.
        raw: The result of its `read`.
        record: The source of the images.
        destination: The folder to replace.
        limit: Number of official training images to use, for training and validation; None for all.
        progress: Called with the number of written images.

    Raises:
        UsageError: The limit is larger than the data set.
        SourceError: There are too few images.
    """
    check_names("class", raw.classes, MAX_NAME)
    plan = _plan(raw, limit)
    total = sum(len(rows) for _, rows in plan.values())
    with replace_folder(destination, total * (int(np.prod(raw.image_shape)) + 16)) as folder:
        done = ImageCounter(progress, total)
        splits = {
            name: NewImages(images.labels[rows], images.source_index[rows], _counted(images.blocks(rows), done))
            for name, (images, rows) in plan.items()
        }
        content = write_images(folder, raw.classes, raw.image_shape, splits)
        if 0 in content.channel_std:
            raise SourceError(
                f"channel {content.channel_std.index(0) + 1} has the same value in all training pixels; "
                "images cannot be normalised"
            )
        counts: dict[Literal["train", "test"], int] = {"train": len(raw.train.labels), "test": len(raw.test.labels)}
        official_counts = dict(dataset.official_counts) or counts
        manifest = ImageManifest(
            format=1,
            dataset=dataset.name,
            classes=list(raw.classes),
            image_shape=list(raw.image_shape),
            channel_mean=content.channel_mean,
            channel_std=content.channel_std,
            splits={name: _split_record(split, len(raw.classes)) for name, split in splits.items()},
            validation=None if raw.val else VALIDATION,
            limit=limit,
            official_counts=official_counts,
            definition=definition_record(dataset),
            complete=limit in (None, counts["train"]) and counts == official_counts,
            source=record,
            files={IMAGES_FILE: checksums(folder / IMAGES_FILE)[0]},
            digest=content.digest,
            checksums=content.checksums,
            affsup=__version__,
        )
        write_manifest(folder, manifest)
    return manifest


def _plan(raw: RawImages, limit: int | None) -> dict[SplitName, tuple[RawSplit, NDArray[np.int64]]]:
    """Return the official part and the rows of it for each split."""
    count, test_count = len(raw.train.labels), len(raw.test.labels)
    refuse_excess(limit, count)
    if count < 2 or test_count < 1:
        raise SourceError(f"contains {count} training and {test_count} test images; expected at least 2 and 1")
    train, val = split_rows(count, limit)
    if raw.val:
        train = np.sort(np.random.RandomState(VALIDATION.seed).permutation(count)[:limit])
        val = np.arange(len(raw.val.labels))
    return {
        "train": (raw.train, train),
        "val": (raw.val or raw.train, val),
        "test": (raw.test, np.arange(test_count)),
    }


def _split_record(split: NewImages, classes: int) -> ImageSplitRecord:
    return ImageSplitRecord(count=len(split.labels), per_class=class_counts(split.labels, classes))


def _counted(blocks: Iterable[NDArray[np.uint8]], done: ImageCounter) -> Iterator[NDArray[np.uint8]]:
    for block in blocks:
        done.add(len(block))
        yield block
