"""Read annotation files in the JSON format of COCO.

Relations between objects are optional: `rel_categories` (`id`, `name`) and `rel_annotations` (`image_id`, `subject_id`,
`object_id`, `predicate_id`), in which subject and object are ids of `annotations`, as SGG-Benchmark writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.annotations import as_boxes
from data_prep.errors import SourceError, quote
from data_prep.store import Annotations, offsets_from_counts

if TYPE_CHECKING:
    from data_prep.sources.scene_files import SceneFiles

Content = Mapping[str, Any]
"""The parsed content of a file."""


def load(files: SceneFiles, name: str) -> Content:
    """Parse a file.

    Raises:
        SourceError: It was not found, or is not a JSON object.
    """
    content = files.json(name)
    if not isinstance(content, dict):
        raise SourceError(f"{name}: is a {type(content).__name__}, expected an object with images and annotations")
    return content


def image_ids(name: str, content: Content) -> NDArray[np.int64]:
    """Return the ids of the images, int64 [n].

    Raises:
        SourceError: An image has no valid id.
    """
    return _integers(name, "images", _entries(name, content, "images"), "id")


def file_names(name: str, content: Content) -> list[str]:
    """Return the field `file_name` of the images.

    Raises:
        SourceError: An image has no such field.
    """
    entries = _entries(name, content, "images")
    for number, entry in enumerate(entries):
        if not isinstance(entry.get("file_name"), str):
            raise SourceError(f"{name}: images[{number}] has no 'file_name'")
    return [entry["file_name"] for entry in entries]


def names_by_id(name: str, content: Content, key: str) -> dict[int, str]:
    """Return the names of `categories` or `rel_categories` by their ids.

    Raises:
        SourceError: There are none, or an id occurs twice, or a name is missing.
    """
    entries = _entries(name, content, key)
    ids = _integers(name, key, entries, "id").tolist()
    if len(set(ids)) != len(ids) or not ids:
        raise SourceError(f"{name}: {key} has no entry, or the same id twice")
    for number, entry in enumerate(entries):
        if not isinstance(entry.get("name"), str):
            raise SourceError(f"{name}: {key}[{number}] has no 'name'")
    return {number: entry["name"] for number, entry in zip(ids, entries, strict=True)}


def parent_categories(content: Content) -> set[int]:
    """Return the ids of the categories that only group others, as Roboflow writes one before the classes.

    No annotation has them, and other categories name them as their supercategory. `names_by_id` must have accepted
    the categories.
    """
    entries = [entry for entry in content.get("categories", []) if isinstance(entry, dict)]
    objects = [entry for entry in content.get("annotations", []) if isinstance(entry, dict)]
    annotated = {entry["category_id"] for entry in objects if isinstance(entry.get("category_id"), int | float)}
    members = Counter(
        entry["supercategory"]
        for entry in entries
        if isinstance(entry.get("supercategory"), str) and entry["supercategory"] != entry.get("name")
    )
    return {entry["id"] for entry in entries if entry["id"] not in annotated and members[entry["name"]]}


def read_annotations(
    name: str,
    content: Content,
    class_ids: Sequence[int],
    pictures: Sequence[str],
    predicate_ids: Sequence[int] = (),
    *,
    crowd_required: bool = True,
) -> Annotations:
    """Return the annotations of all images.

    Args:
        name: File name, for messages.
        content: Content of the file.
        class_ids: Ids of the categories in the order of the labels.
        pictures: File name of each image.
        predicate_ids: Ids of the predicates in their order; empty if relations are not annotated.
        crowd_required: Whether every annotation must have `iscrowd`; if not, 0 is the default.

    Raises:
        SourceError: A field is missing, has another type, or refers to an unknown id.
    """
    images, objects = _entries(name, content, "images"), _entries(name, content, "annotations")
    ids = image_ids(name, content)
    if not len(ids):
        raise SourceError(f"{name}: images is empty")
    image = _rows(name, "annotations", ids, _integers(name, "annotations", objects, "image_id"), "image_id")
    wanted = _integers(name, "annotations", objects, "category_id")
    label = _rows(name, "annotations", np.array(class_ids, dtype=np.int64), wanted, "category_id")
    crowd = _integers(name, "annotations", objects, "iscrowd", None if crowd_required else 0) != 0
    boxes = _boxes(name, objects)
    by_image = np.argsort(image, kind="stable")
    sizes = np.stack([_integers(name, "images", images, key) for key in ("width", "height")], axis=1)
    for number in np.flatnonzero((sizes <= 0).any(axis=1))[:1]:
        raise SourceError(f"{name}: images[{number}] is {sizes[number, 0]} x {sizes[number, 1]}")
    first_object = offsets_from_counts(np.bincount(image, minlength=len(ids)))
    counts, ends, predicates = _relations(name, content, objects, predicate_ids, image, by_image, first_object)
    return Annotations(
        names=list(pictures),
        ids=ids,
        sizes=sizes.astype(np.int32),
        first_object=first_object,
        boxes=as_boxes(boxes[by_image]),
        labels=label[by_image],
        difficult=np.zeros(len(objects), dtype=np.bool_),
        crowd=crowd[by_image],
        first_relation=offsets_from_counts(counts),
        relations=ends,
        predicates=predicates,
    )


def _relations(
    name: str,
    content: Content,
    objects: Sequence[Mapping[str, Any]],
    predicate_ids: Sequence[int],
    image: NDArray[np.int64],
    by_image: NDArray[np.int64],
    first_object: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of relations of each image, and subject, object [r, 2] and predicate [r] of all."""
    images = len(first_object) - 1
    if not predicate_ids:
        return np.zeros(images, np.int64), np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    entries, key = _entries(name, content, "rel_annotations"), "rel_annotations"
    object_ids = _integers(name, "annotations", objects, "id")
    position = np.empty(len(objects), dtype=np.int64)
    position[by_image] = np.arange(len(objects))
    columns = [
        _rows(name, key, object_ids, _integers(name, key, entries, field), field)
        for field in ("subject_id", "object_id")
    ]
    subject, other = columns
    wrong = np.flatnonzero(image[subject] != image[other])
    if len(wrong):
        raise SourceError(f"{name}: {key}[{wrong[0]}] relates objects of different images")
    wanted = _integers(name, key, entries, "predicate_id")
    predicate = _rows(name, key, np.array(predicate_ids, dtype=np.int64), wanted, "predicate_id")
    order = np.argsort(image[subject], kind="stable")
    image_of_relation = image[subject][order]
    ends = np.stack([position[subject], position[other]], axis=1)[order] - first_object[image_of_relation, None]
    return np.bincount(image_of_relation, minlength=images), ends, predicate[order]


def _entries(name: str, content: Content, key: str) -> Sequence[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise SourceError(f"{name}: has no list {key!r}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise SourceError(f"{name}: {key}[{number}] is a {type(entry).__name__}, expected an object")
    return entries


def _integers(
    name: str, where: str, entries: Sequence[Mapping[str, Any]], key: str, default: int | None = None
) -> NDArray[np.int64]:
    """Return a field of all entries, int64 [n]; tools also write whole numbers as 1.0, and `iscrowd` as false."""
    values = [entry.get(key, default) for entry in entries]
    kinds = (int, float, bool) if key == "iscrowd" else (int, float)
    for number, value in enumerate(values):
        if type(value) not in kinds or not abs(value) < 2**31 or value != int(value):
            raise _wrong(name, f"{where}[{number}]", entries[number], key, "a whole number")
    return np.array(values, dtype=np.int64)


def _boxes(name: str, entries: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return the field `bbox` of all entries as x1, y1, x2, y2: float64 [n, 4]."""

    def valid(value: object) -> bool:
        return type(value) is float or (type(value) is int and abs(value) < 2**53)

    for number, entry in enumerate(entries):
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(valid, box)):
            raise _wrong(name, f"annotations[{number}]", entry, "bbox", "4 numbers")
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _wrong(name: str, where: str, entry: Mapping[str, Any], key: str, expected: str) -> SourceError:
    found = f"{key!r} is {quote(entry[key])}" if key in entry else f"has no {key!r}"
    return SourceError(f"{name}: {where} {found}, expected {expected}")


def _rows(name: str, where: str, ids: NDArray[np.int64], wanted: NDArray[np.int64], key: str) -> NDArray[np.int64]:
    """Return the row of each wanted id among `ids`."""
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(twice):
        what = {"image_id": "images", "subject_id": "annotations", "object_id": "annotations"}.get(key, where)
        raise SourceError(f"{name}: {what} has id {ids[order][twice[0]]} twice")
    if not len(ids) and len(wanted):
        raise SourceError(f"{name}: {where}[0] has {key} {wanted[0]}, which is not in the file")
    found = np.searchsorted(ids, wanted, sorter=order)
    row: NDArray[np.int64] = order[np.minimum(found, len(ids) - 1)] if len(ids) else np.zeros(0, dtype=np.int64)
    wrong = np.flatnonzero(ids[row] != wanted)
    if len(wrong):
        raise SourceError(f"{name}: {where}[{wrong[0]}] has {key} {wanted[wrong[0]]}, which is not in the file")
    return row
