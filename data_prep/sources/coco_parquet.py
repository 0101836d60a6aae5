"""Read parquet files with COCO's annotations and relations, as SGG-Benchmark publishes them on the Hugging Face hub.

A row is an image: `image` {bytes, path}, `image_id`, `width`, `height`, `file_name`, `objects` (a list of `id`,
`category_id`, `bbox`, `iscrowd`) and `relations` (a list of `subject_id`, `object_id`, `predicate_id`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import SourceError, quote, shorten
from data_prep.sources.parquet import check_size, open_parquet

_BATCH = 8  # rows in memory at the same time
_MAX_ROWS = 1_000_000
_MAX_GROUP = 1_000_000_000  # bytes of a row group
_MAX_VALUES = 8_000_000  # of a column of a row group; with 100 images it has some thousand objects
_MAX_OBJECTS = 5_000_000  # Visual Genome has 1.1 million
_KEPT_GROUPS = 2
_FIELDS = ("image_id", "width", "height", "file_name", "objects", "relations")


@dataclass(frozen=True)
class _Place:
    """Where a picture is: file, row group and row in it, and its size in bytes."""

    path: Path
    group: int
    row: int
    size: int


class ParquetPictures:
    """Encoded pictures in parquet files by their names; implements `data_prep.raw.Pictures`.

    The last row groups stay in memory, as pictures are read in their order.
    """

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, place: _Place) -> None:
        """Add a picture.

        Raises:
            SourceError: There is one of this name.
        """
        if name in self._places:
            raise SourceError(f"{place.path.name}: has several images {quote(name)}")
        self._places[name] = place

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> bytes:
        place = self._places[name]
        with self._lock:
            content = self._images(place.path, place.group)[place.row].as_py()
        if not isinstance(content, bytes) or len(content) != place.size:
            raise SourceError(f"{place.path}: changed while it was read; run the command again")
        return content

    def _images(self, path: Path, group: int) -> Any:
        key = (path, group)
        if key not in self._groups:
            with open_parquet(path) as file:
                images = file.read_row_group(group, columns=["image.bytes"], use_threads=False).column("image")
            self._groups[key] = [value for chunk in images.chunks for value in chunk.field("bytes")]
            if len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def size(self, name: str) -> int:
        """Return the size of a picture in bytes."""
        return self._places[name].size

    def location(self, name: str) -> str:
        """Return the file that has a picture; the name if none has it."""
        return str(self._places[name].path) if name in self._places else name


def read_split(
    split: str, paths: Sequence[Path], vocabulary: dict[str, Any], pictures: ParquetPictures
) -> tuple[dict[str, Any], list[str]]:
    """Read the files of a split.

    Args:
        split: Name of the split, the folder of its pictures' names.
        paths: The files.
        vocabulary: The content of `categories.json`: `categories` and `rel_categories`.
        pictures: Receives the pictures.

    Returns:
        The content of a file in COCO's JSON format, for `data_prep.sources.coco_json`, and the name of each picture.

    Raises:
        SourceError: A file is damaged, too large, or has other columns.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    relations: list[dict[str, Any]] = []
    names: list[str] = []
    for path in paths:
        with open_parquet(path) as file:
            check_size(path.name, file, _MAX_ROWS, _MAX_GROUP, _MAX_VALUES)
            for group in range(file.num_row_groups):
                row = 0
                batches = file.iter_batches(
                    batch_size=_BATCH, row_groups=[group], columns=["image.bytes", *_FIELDS], use_threads=False
                )
                for batch in batches:
                    missing = {"image", *_FIELDS}.difference(batch.schema.names)
                    if missing:
                        raise SourceError(f"{path.name}: has no column {min(missing)!r}")
                    for entry in batch.to_pylist():
                        name = f"{split}/{_text(path, entry)}"
                        pictures.add(name, _Place(path, group, row, _size(path, entry)))
                        row += 1
                        names.append(name)
                        images.append({"id": entry["image_id"], "width": entry["width"], "height": entry["height"]})
                        _add_annotations(path, entry, annotations, relations)
    content = {"images": images, "annotations": annotations, "rel_annotations": relations, **vocabulary}
    return content, names


def _add_annotations(
    path: Path, entry: dict[str, Any], annotations: list[dict[str, Any]], relations: list[dict[str, Any]]
) -> None:
    """Append the objects and relations of an image, with ids that are unique in the split."""
    image = entry["image_id"]
    number_of: dict[object, int] = {}
    for item in _entries(path, entry, "objects"):
        number = len(annotations)
        if number_of.setdefault(_hashable(item.get("id")), number) != number:
            raise SourceError(f"{path.name}: image {quote(image)} has two objects with id {quote(item.get('id'))}")
        annotations.append({**item, "id": number, "image_id": image})
    if len(annotations) > _MAX_OBJECTS:
        raise SourceError(f"{path.name}: more than {_MAX_OBJECTS:,} objects; refused")
    for item in _entries(path, entry, "relations"):
        ends = {}
        for key in ("subject_id", "object_id"):
            found = number_of.get(_hashable(item.get(key)))
            if found is None:
                raise SourceError(
                    f"{path.name}: image {quote(image)} has a relation with {key} {quote(item.get(key))}, "
                    "which is none of its objects"
                )
            ends[key] = found
        relations.append({"predicate_id": item.get("predicate_id"), **ends})


def _entries(path: Path, entry: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = entry[key] if entry[key] is not None else []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise SourceError(f"{path.name}: the column {key!r} is {quote(items)}, expected a list of objects")
    return items


def _hashable(value: object) -> object:
    return value if isinstance(value, int | str) else shorten(value)


def _text(path: Path, entry: dict[str, Any]) -> str:
    if not isinstance(entry["file_name"], str):
        raise SourceError(f"{path.name}: a 'file_name' is {quote(entry['file_name'])}, expected text")
    return entry["file_name"]


def _size(path: Path, entry: dict[str, Any]) -> int:
    image = entry["image"]
    content = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(content, bytes):
        raise SourceError(f"{path.name}: image {quote(entry['image_id'])} has no bytes")
    return len(content)
