"""From official scenes to prepared ones: what is sound is kept, what is not is left out, counted and named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import SourceError
from data_prep.format import (
    EXAMPLES,
    SCENE_SPLITS,
    SCENES_FILE,
    Annotations,
    LeftOutRecord,
    NewScenes,
    SceneManifest,
    SceneSplitName,
    SourceRecord,
    offsets_from_counts,
    write_manifest,
    write_scenes,
)
from data_prep.pictures import PictureError, examine
from data_prep.raw import Pictures, ProgressCallback, RawScenes, SceneSet
from data_prep.source import checksums
from data_prep.storage import ImageCounter, refuse_excess, replacing
from data_prep.version import __version__

_What = Literal["images", "objects", "relations"]
_AHEAD = 64  # pictures in memory at a time
_MOST_MISSING = 0.01
_THREADS = min(4, os.cpu_count() or 1)


class LeftOutLog:
    """What is left out, by kind and reason, with the first examples of each."""

    def __init__(self) -> None:
        self._counts: dict[tuple[_What, str], int] = {}
        self._examples: dict[tuple[_What, str], list[str]] = {}

    def add(self, what: _What, reason: str, count: int, examples: Sequence[str]) -> None:
        """Count some more."""
        if count:
            key = (what, reason)
            self._counts[key] = self._counts.get(key, 0) + count
            held = self._examples.setdefault(key, [])
            held.extend(examples[: EXAMPLES - len(held)])

    def records(self) -> list[LeftOutRecord]:
        """What the manifest keeps."""
        return [
            LeftOutRecord(what=what, reason=reason, count=count, examples=self._examples[what, reason])
            for (what, reason), count in self._counts.items()
        ]


def tidy(annotations: Annotations, ledger: LeftOutLog) -> Annotations:
    """Clip boxes to their images; leave out objects without a box there and relations that make no sense without them.

    Args:
        annotations: As the publisher has them.
        ledger: Told what is left out.
    """
    image = annotations.image_of_object()
    limits = np.tile(annotations.sizes, 2)[image].astype(np.float32)
    finite = np.all(np.isfinite(annotations.boxes), axis=1)
    boxes = np.clip(annotations.boxes, 0, limits)
    sound = finite & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])

    def leave_out(reason: str, wrong: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(wrong)
        examples = [
            f"{annotations.names[image[row]]} object {row - annotations.first_object[image[row]] + 1} "
            f"[{', '.join(f'{number:g}' for number in annotations.boxes[row])}]"
            for row in rows[:EXAMPLES]
        ]
        ledger.add("objects", reason, len(rows), examples)

    leave_out("box with numbers that are not finite", ~finite)
    leave_out("box empty or outside the image", finite & ~sound)

    related_image = annotations.image_of_relation()
    ends = annotations.first_object[related_image, None] + annotations.relations
    has_ends = sound[ends].all(axis=1)
    to_itself = has_ends & (ends[:, 0] == ends[:, 1])
    for reason, wrong in (("of an object that is left out", ~has_ends), ("of an object with itself", to_itself)):
        rows = np.flatnonzero(wrong)
        numbers = rows - annotations.first_relation[related_image[rows]] + 1
        shown = zip(related_image[rows[:EXAMPLES]], numbers, strict=False)
        examples = [f"{annotations.names[i]} relation {number}" for i, number in shown]
        ledger.add("relations", reason, len(rows), examples)

    kept = has_ends & ~to_itself
    first_object = offsets_from_counts(np.bincount(image[sound], minlength=len(annotations)))
    new_index = np.cumsum(sound) - 1
    return replace(
        annotations,
        first_object=first_object,
        boxes=boxes[sound],
        labels=annotations.labels[sound],
        difficult=annotations.difficult[sound],
        crowd=annotations.crowd[sound],
        first_relation=offsets_from_counts(np.bincount(related_image[kept], minlength=len(annotations))),
        relations=new_index[ends[kept]] - first_object[related_image[kept], None],
        predicates=annotations.predicates[kept],
    )


def write(
    dataset: SceneSet,
    official: RawScenes,
    record: SourceRecord,
    home: Path,
    limit: int | None,
    progress: ProgressCallback,
) -> SceneManifest:
    """Write a prepared data set of scenes in the place of `home`.

    Args:
        dataset: Which.
        official: What its `read` gave.
        record: Where that came from.
        home: The folder to replace.
        limit: How many training images to take; None for all.
        progress: Told how many images are done.

    Raises:
        UsageError: The limit is larger than the data set.
        SourceError: Too many pictures are missing.
    """
    ledger = LeftOutLog()
    counts = {"train": len(official.train), "test": len(official.test)}
    if not all(counts.values()):
        raise SourceError(f"holds {counts['train']} training and {counts['test']} test images; expected some of both")
    parts: dict[SceneSplitName, Annotations] = {"train": _limited(official.train, limit), "test": official.test}
    _refuse_missing([name for part in parts.values() for name in part.names], official.pictures)
    parts = {name: tidy(part, ledger) for name, part in parts.items()}
    done = ImageCounter(progress, sum(map(len, parts.values())))
    new = {
        name: NewScenes(
            part, _sound_pictures(part, official.pictures, ledger, done), _capacity(part, official.pictures)
        )
        for name, part in parts.items()
    }
    size = sum(split.capacity for split in new.values()) + sum(64 * len(part.labels) for part in parts.values())
    with replacing(home, size) as folder:
        written = write_scenes(
            folder, official.classes, official.predicates, official.relations, new, official.categories
        )
        for name in SCENE_SPLITS:
            if not written.splits[name].images:
                raise SourceError(f"none of its {len(parts[name]):,} {name} images can be used: {_summary(ledger)}")
        manifest = SceneManifest(
            format=1,
            kind="scenes",
            dataset=dataset.name,
            classes=list(official.classes),
            categories=list(official.categories),
            predicates=list(official.predicates),
            category_ids=list(official.category_ids or range(1, len(official.classes) + 1)),
            relations=official.relations,
            splits=written.splits,
            left_out=[*official.left_out, *ledger.records()],
            limit=limit,
            official_counts=dict(dataset.official_counts),
            complete={name: split.images for name, split in written.splits.items()} == dataset.official_counts,
            source=record,
            files={SCENES_FILE: checksums(folder / SCENES_FILE)[0]},
            digest=written.digest,
            affsup=__version__,
        )
        write_manifest(folder, manifest)
    return manifest


def _limited(train: Annotations, limit: int | None) -> Annotations:
    """A random part of the training images, always the same, a smaller one within a larger one, in official order."""
    refuse_excess(limit, len(train))
    if limit is None:
        return train
    order = np.random.RandomState(0).permutation(len(train))  # this stream is frozen for good
    return train.take(np.sort(order[:limit]))


def _refuse_missing(names: Sequence[str], pictures: Pictures) -> None:
    missing = [name for name in names if name not in pictures]
    if len(missing) > _MOST_MISSING * len(names):
        shown = ", ".join(pictures.where(name) for name in missing[:EXAMPLES])
        raise SourceError(
            f"{len(missing):,} of {len(names):,} images are missing, more than {_MOST_MISSING:.0%}; expected {shown}"
            f"{', ...' if len(missing) > EXAMPLES else ''}. Give every folder that holds some with a --from of its own"
        )


def _capacity(part: Annotations, pictures: Pictures) -> int:
    return sum(pictures.size(name) for name in part.names if name in pictures)


def _sound_pictures(
    part: Annotations, pictures: Pictures, ledger: LeftOutLog, done: ImageCounter
) -> Iterator[bytes | None]:
    """The pictures in order, each examined; None for those to be left out."""

    def examined(row: int) -> bytes | PictureError:
        name = part.names[row]
        if name not in pictures:
            return PictureError("missing", f"expected {pictures.where(name)}")
        encoded = pictures[name]
        try:
            examine(encoded, (int(part.sizes[row, 0]), int(part.sizes[row, 1])))
        except PictureError as error:
            return error
        return encoded

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(part), _AHEAD):
            rows = range(start, min(start + _AHEAD, len(part)))
            for row, found in zip(rows, pool.map(examined, rows), strict=True):
                if isinstance(found, bytes):
                    yield found
                else:
                    _enter(ledger, part, row, found)
                    yield None
            done.add(len(rows))


def _enter(ledger: LeftOutLog, part: Annotations, row: int, error: PictureError) -> None:
    name, reason = part.names[row], "image left out"
    ledger.add("images", error.reason, 1, [f"{name} {error}"])
    ledger.add("objects", reason, int(np.diff(part.first_object[row : row + 2])[0]), [name])
    ledger.add("relations", reason, int(np.diff(part.first_relation[row : row + 2])[0]), [name])


def _summary(ledger: LeftOutLog) -> str:
    return "; ".join(
        f"{entry.count:,} {entry.reason} ({entry.examples[0]})" for entry in ledger.records() if entry.what == "images"
    )
