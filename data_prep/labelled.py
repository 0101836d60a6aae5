"""From official labelled images to prepared ones: draw the validation split, write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import SourceError
from data_prep.format import (
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
from data_prep.raw import ImageSet, ProgressCallback, RawImages, RawSplit
from data_prep.source import checksums
from data_prep.storage import ImageCounter, refuse_excess, replacing
from data_prep.version import __version__

VALIDATION = Validation(fraction=0.1, seed=0)


def split_rows(count: int, limit: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the training and the validation rows of `count` official training images, each in official order.

    Always the same draw. A limit takes fewer of both: the smaller splits are subsets of the larger ones.
    """
    order = np.random.RandomState(VALIDATION.seed).permutation(count)  # this stream is frozen for good
    held_out = _validation_size(count)
    wanted = count if limit is None else limit
    chosen = _validation_size(wanted)
    return np.sort(order[held_out : held_out + wanted - chosen]), np.sort(order[:chosen])


def _validation_size(count: int) -> int:
    return max(1, int(count * VALIDATION.fraction))


def write(
    dataset: ImageSet,
    official: RawImages,
    record: SourceRecord,
    home: Path,
    limit: int | None,
    progress: ProgressCallback,
) -> ImageManifest:
    """Write a prepared data set of labelled images in the place of `home`.

    Args:
        dataset: Which.
        official: What its `read` gave.
        record: Where that came from.
        home: The folder to replace.
        limit: How many training images to take, for training and validation together; None for all.
        progress: Told how many images are done.

    Raises:
        UsageError: The limit is larger than the data set.
        SourceError: There are too few images.
    """
    plan = _plan(official, limit)
    total = sum(len(rows) for _, rows in plan.values())
    with replacing(home, total * (int(np.prod(official.image_shape)) + 16)) as folder:
        done = ImageCounter(progress, total)
        splits = {
            name: NewImages(images.labels[rows], images.source_index[rows], _counted(images.blocks(rows), done))
            for name, (images, rows) in plan.items()
        }
        content = write_images(folder, official.classes, official.image_shape, splits)
        counts = {"train": len(official.train.labels), "test": len(official.test.labels)}
        manifest = ImageManifest(
            format=1,
            dataset=dataset.name,
            classes=list(official.classes),
            image_shape=list(official.image_shape),
            channel_mean=content.channel_mean,
            channel_std=content.channel_std,
            splits={name: _split_record(split, len(official.classes)) for name, split in splits.items()},
            validation=VALIDATION,
            limit=limit,
            official_counts=dict(dataset.official_counts),
            complete=limit in (None, counts["train"]) and counts == dataset.official_counts,
            source=record,
            files={IMAGES_FILE: checksums(folder / IMAGES_FILE)[0]},
            digest=content.digest,
            affsup=__version__,
        )
        write_manifest(folder, manifest)
    return manifest


def _plan(official: RawImages, limit: int | None) -> dict[SplitName, tuple[RawSplit, NDArray[np.int64]]]:
    """Which official images, and which rows of them, make each split."""
    count, test_count = len(official.train.labels), len(official.test.labels)
    refuse_excess(limit, count)
    if count < 2 or test_count < 1:
        raise SourceError(f"holds {count} training and {test_count} test images; expected at least 2 and 1")
    train, val = split_rows(count, limit)
    return {
        "train": (official.train, train),
        "val": (official.train, val),
        "test": (official.test, np.arange(test_count)),
    }


def _split_record(split: NewImages, classes: int) -> ImageSplitRecord:
    return ImageSplitRecord(count=len(split.labels), per_class=class_counts(split.labels, classes))


def _counted(blocks: Iterable[NDArray[np.uint8]], done: ImageCounter) -> Iterator[NDArray[np.uint8]]:
    for block in blocks:
        done.add(len(block))
        yield block
