"""Write prepared scenes: valid annotations and pictures are kept, others are left out and recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.decode.pictures import PictureError, check_picture
from data_prep.errors import SourceError
from data_prep.origin import ProgressCallback
from data_prep.raw import MAX_NAME, Pictures, RawScenes, SceneSet, check_names
from data_prep.sources.open import checksums, definition_record
from data_prep.store import (
    MAX_EXAMPLES,
    SCENES_FILE,
    Annotations,
    LeftOutRecord,
    NewScenes,
    RelationKind,
    SceneManifest,
    SceneSplitName,
    SourceRecord,
    offsets_from_counts,
    write_manifest,
    write_scenes,
)
from data_prep.version import __version__
from data_prep.writing import ImageCounter, refuse_excess, replace_folder

_What = Literal["images", "objects", "relations"]
_BATCH = 64  # pictures in memory at the same time
_MAX_MISSING = 0.01
_MAX_PATH = 1000  # characters of the path of an image
_MAX_PICTURE = 50_000_000  # bytes of an image file
_THREADS = min(4, os.cpu_count() or 1)


class LeftOutLog:
    """Counts of what is left out, by kind and reason, with the first examples of each."""

    def __init__(self) -> None:
        self._counts: dict[tuple[_What, str], int] = {}
        self._examples: dict[tuple[_What, str], list[str]] = {}

    def add(self, what: _What, reason: str, count: int, examples: Sequence[str]) -> None:
        """Add to a count."""
        if count:
            key = (what, reason)
            self._counts[key] = self._counts.get(key, 0) + count
            recorded = self._examples.setdefault(key, [])
            recorded.extend(examples[: MAX_EXAMPLES - len(recorded)])

    def records(self) -> list[LeftOutRecord]:
        """Return the records for the manifest."""
        return [
            LeftOutRecord(what=what, reason=reason, count=count, examples=self._examples[what, reason])
            for (what, reason), count in self._counts.items()
        ]


def clean_annotations(annotations: Annotations, log: LeftOutLog) -> Annotations:
    """Clip boxes to their images; leave out objects whose box is then empty, and relations of such objects.

    Args:
        annotations: The official annotations.
        log: Receives the counts of what is left out.
    """
    image = annotations.image_of_object()
    limits = np.tile(annotations.sizes, 2)[image].astype(np.float32)
    finite = np.all(np.isfinite(annotations.boxes), axis=1)
    boxes = np.clip(annotations.boxes, 0, limits)
    valid = finite & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])

    def leave_out(reason: str, wrong: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(wrong)
        examples = [
            f"{annotations.names[image[row]]} object {row - annotations.first_object[image[row]] + 1} "
            f"[{', '.join(f'{number:g}' for number in annotations.boxes[row])}]"
            for row in rows[:MAX_EXAMPLES]
        ]
        log.add("objects", reason, len(rows), examples)

    leave_out("box with numbers that are not finite", ~finite)
    leave_out("box empty or outside the image", finite & ~valid)

    related_image = annotations.image_of_relation()
    ends = annotations.first_object[related_image, None] + annotations.relations
    has_ends = valid[ends].all(axis=1)
    to_itself = has_ends & (ends[:, 0] == ends[:, 1])
    for reason, wrong in (("of an object that is left out", ~has_ends), ("of an object with itself", to_itself)):
        rows = np.flatnonzero(wrong)
        numbers = rows - annotations.first_relation[related_image[rows]] + 1
        shown = zip(related_image[rows[:MAX_EXAMPLES]], numbers, strict=False)
        examples = [f"{annotations.names[i]} relation {number}" for i, number in shown]
        log.add("relations", reason, len(rows), examples)

    kept = has_ends & ~to_itself
    first_object = offsets_from_counts(np.bincount(image[valid], minlength=len(annotations)))
    new_index = np.cumsum(valid) - 1
    return replace(
        annotations,
        first_object=first_object,
        boxes=boxes[valid],
        labels=annotations.labels[valid],
        difficult=annotations.difficult[valid],
        crowd=annotations.crowd[valid],
        first_relation=offsets_from_counts(np.bincount(related_image[kept], minlength=len(annotations))),
        relations=new_index[ends[kept]] - first_object[related_image[kept], None],
        predicates=annotations.predicates[kept],
    )


def write(
    dataset: SceneSet,
    raw: RawScenes,
    record: SourceRecord,
    destination: Path,
    limit: int | None,
    progress: ProgressCallback,
    *,
    drop_empty: bool = False,
) -> SceneManifest:
    """Write a prepared data set of scenes, replacing `destination`.

    Args:
        dataset: The data set.
        raw: The result of its `read`.
        record: The source of the scenes.
        destination: The folder to replace.
        limit: Number of training images to use; None for all.
        progress: Called with the number of written images.
        drop_empty: Whether to leave out images without a related pair, as papers on scene graphs do.

    Raises:
        UsageError: The limit is larger than the data set.
        SourceError: Too many pictures are missing.
    """
    for kind, names in (("class", raw.classes), ("predicate", raw.predicates), ("category", raw.categories)):
        check_names(kind, names, MAX_NAME)
    parts: dict[SceneSplitName, Annotations] = {"train": raw.train, "test": raw.test}
    if raw.val is not None and len(raw.val):
        parts["val"] = raw.val
    check_names("image", [name for part in parts.values() for name in part.names], _MAX_PATH)
    log = LeftOutLog()
    counts: dict[Literal["train", "test"], int] = {"train": len(raw.train), "test": len(raw.test)}
    official_counts = dict(dataset.official_counts) or counts
    if not all(counts.values()):
        raise SourceError(
            f"contains {counts['train']} training and {counts['test']} test images; expected at least one of each"
        )
    parts["train"] = _limited(raw.train, limit)
    advice = "Put them there" if dataset.layout else "Give each folder that contains some with --from"
    _refuse_missing([name for part in parts.values() for name in part.names], raw.pictures, advice)
    parts = {name: clean_annotations(part, log) for name, part in parts.items()}
    if drop_empty:
        parts = {name: _without_empty(part, len(raw.classes), raw.relations, log) for name, part in parts.items()}
    done = ImageCounter(progress, sum(map(len, parts.values())))
    new = {
        name: NewScenes(part, _usable_pictures(part, raw.pictures, log, done), _capacity(part, raw.pictures))
        for name, part in parts.items()
    }
    size = sum(split.capacity for split in new.values()) + sum(64 * len(part.labels) for part in parts.values())
    with replace_folder(destination, size) as folder:
        written = write_scenes(folder, raw.classes, raw.predicates, raw.relations, new, raw.categories)
        for name in parts:
            if not written.splits[name].images:
                raise SourceError(f"none of its {len(parts[name]):,} {name} images can be used: {_summary(log)}")
        manifest = SceneManifest(
            format=1,
            kind="scenes",
            dataset=dataset.name,
            classes=list(raw.classes),
            categories=list(raw.categories),
            predicates=list(raw.predicates),
            category_ids=list(raw.category_ids or range(1, len(raw.classes) + 1)),
            relations=raw.relations,
            splits=written.splits,
            left_out=[*raw.left_out, *log.records()],
            limit=limit,
            official_counts=official_counts,
            definition=definition_record(dataset),
            complete={name: split.images for name, split in written.splits.items() if name != "val"} == official_counts,
            drop_empty=drop_empty,
            source=record,
            files={SCENES_FILE: checksums(folder / SCENES_FILE)[0]},
            digest=written.digest,
            checksums=written.checksums,
            affsup=__version__,
        )
        write_manifest(folder, manifest)
    return manifest


def _limited(train: Annotations, limit: int | None) -> Annotations:
    """Return a random subset of the training images in official order: always the same, smaller ones within larger."""
    refuse_excess(limit, len(train))
    if limit is None:
        return train
    order = np.random.RandomState(0).permutation(len(train))  # the legacy generator: its stream never changes
    return train.take(np.sort(order[:limit]))


def _without_empty(part: Annotations, classes: int, kind: RelationKind, log: LeftOutLog) -> Annotations:
    """Return the annotations of the images that have a related pair."""
    empty = part.pairs(classes, kind) == 0
    examples = [part.names[int(row)] for row in np.flatnonzero(empty)[:MAX_EXAMPLES]]
    log.add("images", "without a related pair", int(empty.sum()), examples)
    return part.take(np.flatnonzero(~empty))


def _refuse_missing(names: Sequence[str], pictures: Pictures, advice: str) -> None:
    missing = [name for name in names if name not in pictures]
    if len(missing) > _MAX_MISSING * len(names):
        shown = ", ".join(pictures.location(name) for name in missing[:MAX_EXAMPLES])
        raise SourceError(
            f"{len(missing):,} of {len(names):,} images are missing, more than {_MAX_MISSING:.0%}; expected {shown}"
            f"{', ...' if len(missing) > MAX_EXAMPLES else ''}. {advice}"
        )


def _capacity(part: Annotations, pictures: Pictures) -> int:
    return sum(pictures.size(name) for name in part.names if name in pictures)


def _usable_pictures(
    part: Annotations, pictures: Pictures, log: LeftOutLog, done: ImageCounter
) -> Iterator[bytes | None]:
    """Yield the pictures in order after checking them; None for those to be left out."""

    def examined(row: int) -> bytes | PictureError:
        name = part.names[row]
        if name not in pictures:
            return PictureError("missing", f"expected {pictures.location(name)}")
        if pictures.size(name) > _MAX_PICTURE:
            return PictureError("too large", f"has {pictures.size(name):,} bytes, expected at most {_MAX_PICTURE:,}")
        encoded = pictures[name]
        try:
            check_picture(encoded, (int(part.sizes[row, 0]), int(part.sizes[row, 1])))
        except PictureError as error:
            return error
        return encoded

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(part), _BATCH):
            rows = range(start, min(start + _BATCH, len(part)))
            for row, found in zip(rows, pool.map(examined, rows), strict=True):
                if isinstance(found, bytes):
                    yield found
                else:
                    _log_left_out_image(log, part, row, found)
                    yield None
            done.add(len(rows))


def _log_left_out_image(log: LeftOutLog, part: Annotations, row: int, error: PictureError) -> None:
    name, reason = part.names[row], "image left out"
    log.add("images", error.reason, 1, [f"{name} {error}"])
    log.add("objects", reason, int(np.diff(part.first_object[row : row + 2])[0]), [name])
    log.add("relations", reason, int(np.diff(part.first_relation[row : row + 2])[0]), [name])


def _summary(log: LeftOutLog) -> str:
    return "; ".join(
        f"{entry.count:,} {entry.reason} ({entry.examples[0]})" for entry in log.records() if entry.what == "images"
    )
