"""Preparing a data set: source, split, write, replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from affsup_cli import __version__
from affsup_cli.errors import AffsupError, UsageError
from data_prep.format import (
    IMAGES_FILE,
    MANIFEST_FILE,
    Manifest,
    NewSplit,
    SplitName,
    SplitRecord,
    Validation,
    class_counts,
    read_manifest,
    write_images,
    write_manifest,
)
from data_prep.official import DataSet, Images, Official, Progress, SourceError
from data_prep.source import Source, check_sources, checksums, open_source
from data_prep.storage import locked, replacing, settle

VALIDATION = Validation(fraction=0.1, seed=0)


@dataclass(frozen=True)
class Outcome:
    """What preparing came to: newly prepared or already up to date, the folder, and what it holds."""

    status: Literal["prepared", "up to date"]
    folder: Path
    manifest: Manifest


def build(
    dataset: DataSet,
    *,
    sources: Sequence[Path] = (),
    data_dir: Path,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Prepare a data set; see `data_prep.prepare`."""
    check_sources(dataset, sources)
    if limit is not None and limit < 2:
        raise UsageError(f"--limit {limit}: expected at least 2, one image to train on and one to validate on")
    folder = data_dir / dataset.name
    home = folder.resolve()  # the data set may live elsewhere, behind a link
    tell = progress or _silent
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with locked(home):
            settle(home)
            _refuse_foreign(home)
            present = _present(folder, limit)
            if present and not sources:
                return Outcome("up to date", folder, present)
            source = open_source(dataset, sources, data_dir / ".downloads", tell)
            if present and present.source == source.record:
                return Outcome("up to date", folder, present)
            return Outcome("prepared", folder, _write(dataset, source, home, limit, tell))
    except OSError as error:
        raise AffsupError(f"{error.filename or data_dir}: {error.strerror or error}; nothing was changed") from None


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


def _write(dataset: DataSet, source: Source, home: Path, limit: int | None, progress: Progress) -> Manifest:
    try:
        with source.files as files:
            official = dataset.read(files)
            plan = _plan(official, limit)
            total = sum(len(rows) for _, rows in plan.values())
            with replacing(home, total * (int(np.prod(official.image_shape)) + 16)) as folder:
                told = _told(progress, total)
                splits = {
                    name: NewSplit(images.labels[rows], images.source_index[rows], map(told, images.blocks(rows)))
                    for name, (images, rows) in plan.items()
                }
                content = write_images(folder, official.classes, official.image_shape, splits)
                counts = {"train": len(official.train.labels), "test": len(official.test.labels)}
                manifest = Manifest(
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
                    source=source.record,
                    files={IMAGES_FILE: checksums(folder / IMAGES_FILE)[0]},
                    digest=content.digest,
                    affsup=__version__,
                )
                write_manifest(folder, manifest)
            return manifest
    except SourceError as error:
        raise AffsupError(f"{source.label}: {error}") from None


def _plan(official: Official, limit: int | None) -> dict[SplitName, tuple[Images, NDArray[np.int64]]]:
    """Which official images, and which rows of them, make each split."""
    count, test_count = len(official.train.labels), len(official.test.labels)
    if limit is not None and limit > count:
        raise UsageError(f"--limit {limit}: expected at most {count}, the training images of the source")
    if count < 2 or test_count < 1:
        raise SourceError(f"holds {count} training and {test_count} test images; expected at least 2 and 1")
    train, val = split_rows(count, limit)
    return {
        "train": (official.train, train),
        "val": (official.train, val),
        "test": (official.test, np.arange(test_count)),
    }


def _split_record(split: NewSplit, classes: int) -> SplitRecord:
    return SplitRecord(count=len(split.labels), per_class=class_counts(split.labels, classes))


def _told(progress: Progress, total: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """A function that passes blocks of images on and tells how many have passed."""
    done = 0

    def passed(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        nonlocal done
        done += len(block)
        progress("images", done, total)
        return block

    return passed


def _present(folder: Path, limit: int | None) -> Manifest | None:
    """The manifest of what is there, if it was prepared with this limit and its images are whole."""
    images = folder / IMAGES_FILE
    try:
        manifest = read_manifest(folder)
    except AffsupError:
        return None  # not there, or broken: it is prepared anew
    if manifest.limit != limit or not images.exists() or checksums(images)[0] != manifest.files[IMAGES_FILE]:
        return None
    return manifest


def _refuse_foreign(home: Path) -> None:
    """Never replace a folder that holds anything else than a prepared data set."""
    foreign = {path.name for path in home.iterdir()} - {IMAGES_FILE, MANIFEST_FILE} if home.exists() else set()
    if foreign:
        raise AffsupError(
            f"{home} holds {min(foreign)!r}, which affsup did not write, and preparing replaces the whole folder: "
            "move it away, or choose another place with --data"
        )


def _silent(step: str, done: int, total: int) -> None:
    pass
