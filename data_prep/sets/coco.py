"""COCO: the images of the validation split of 2014, divided as in detection papers.

The 5,000 of them that are also in the validation split of 2017 ("minival") are the test images; the others are the
training images. All ordered pairs of objects of different classes are related, without crowds.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from data_prep.errors import SourceError, quote
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_prep.sources.scene_files import SceneFiles
    from data_prep.store import Annotations

_ALL = "instances_val2014.json"
_TEST = "instances_val2017.json"


def _read(files: SceneFiles) -> RawScenes:
    import numpy as np

    from data_prep.store import MAX_EXAMPLES, LeftOutRecord

    content, test_ids = _load(files, _ALL), _column(_TEST, "images", _list(_TEST, _load(files, _TEST), "images"), "id")
    names = {int(entry_id): name for entry_id, name in _categories(content)}
    class_ids = sorted(names)
    everything = _annotations(content, np.array(class_ids))
    in_test = np.isin(everything.ids, test_ids)
    unknown = [f"image {number}" for number in test_ids[~np.isin(test_ids, everything.ids)]]
    reason = f"in {_TEST} but not in {_ALL}"
    return RawScenes(
        classes=tuple(names[class_id] for class_id in class_ids),
        predicates=(),
        relations="classes",
        train=everything.take(np.flatnonzero(~in_test)),
        test=everything.take(np.flatnonzero(in_test)),
        pictures=files.pictures(),
        category_ids=tuple(class_ids),
        left_out=(LeftOutRecord(what="images", reason=reason, count=len(unknown), examples=unknown[:MAX_EXAMPLES]),)
        if unknown
        else (),
    )


def _load(files: SceneFiles, name: str) -> dict[str, Any]:
    content = files.json(name)
    if not isinstance(content, dict):
        raise SourceError(f"{name}: is a {type(content).__name__}, expected an object with images and annotations")
    return content


def _categories(content: dict[str, Any]) -> list[tuple[int, str]]:
    entries = _list(_ALL, content, "categories")
    ids = _column(_ALL, "categories", entries, "id")
    if len(set(ids.tolist())) != len(ids) or not len(ids):
        raise SourceError(f"{_ALL}: categories has no entry, or the same id twice")
    for number, entry in enumerate(entries):
        if not isinstance(entry.get("name"), str):
            raise SourceError(f"{_ALL}: categories[{number}] has no 'name'")
    return [(int(number), entry["name"]) for number, entry in zip(ids, entries, strict=True)]


def _annotations(content: dict[str, Any], class_ids: Any) -> Annotations:
    import numpy as np

    from data_prep.annotations import as_boxes
    from data_prep.store import Annotations, offsets_from_counts

    images, objects = _list(_ALL, content, "images"), _list(_ALL, content, "annotations")
    ids = _column(_ALL, "images", images, "id")
    if not len(ids):
        raise SourceError(f"{_ALL}: images is empty")
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order]) == 0).any():
        raise SourceError(f"{_ALL}: images has id {ids[order][:-1][np.diff(ids[order]) == 0][0]} twice")
    image = _rows(ids, order, _column(_ALL, "annotations", objects, "image_id"), "image_id")
    label = _rows(
        class_ids, np.arange(len(class_ids)), _column(_ALL, "annotations", objects, "category_id"), "category_id"
    )
    crowd = _column(_ALL, "annotations", objects, "iscrowd") != 0
    boxes = _column(_ALL, "annotations", objects, "bbox", values=4)
    boxes[:, 2:] += boxes[:, :2]
    by_image = np.argsort(image, kind="stable")
    sizes = [_column(_ALL, "images", images, key) for key in ("width", "height")]
    for number, entry in enumerate(images):
        if not min(entry["width"], entry["height"]) > 0:
            raise SourceError(f"{_ALL}: images[{number}] is {entry['width']} x {entry['height']}")
        if not isinstance(entry.get("file_name"), str):
            raise SourceError(f"{_ALL}: images[{number}] has no 'file_name'")
    return Annotations(
        names=[PurePosixPath(entry["file_name"]).name for entry in images],
        ids=ids,
        sizes=np.stack(sizes, axis=1).astype(np.int32),
        first_object=offsets_from_counts(np.bincount(image, minlength=len(ids))),
        boxes=as_boxes(boxes[by_image]),
        labels=label[by_image],
        difficult=np.zeros(len(objects), dtype=np.bool_),
        crowd=crowd[by_image],
        first_relation=np.zeros(len(ids) + 1, dtype=np.int64),
        relations=np.zeros((0, 2), dtype=np.int64),
        predicates=np.zeros(0, dtype=np.int64),
    )


def _list(name: str, content: dict[str, Any], key: str) -> Sequence[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise SourceError(f"{name}: has no list {key!r}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise SourceError(f"{name}: {key}[{number}] is a {type(entry).__name__}, expected an object")
    return entries


def _column(name: str, where: str, entries: Sequence[dict[str, Any]], key: str, values: int = 0) -> Any:
    """Return a field of all entries: int64 [n], or float64 [n, values] for a list of `values` numbers."""
    import numpy as np

    def is_number(value: object) -> bool:
        return type(value) is float or (type(value) is int and abs(value) < 2**53)

    def valid(value: object) -> bool:
        if not values:
            return type(value) is int and abs(value) < 2**31
        return isinstance(value, list) and len(value) == values and all(map(is_number, value))

    for number, entry in enumerate(entries):
        if not valid(entry.get(key)):
            expected = f"{values} numbers" if values else "a whole number"
            found = f"{key!r} is {quote(entry[key])}" if key in entry else f"has no {key!r}"
            raise SourceError(f"{name}: {where}[{number}] {found}, expected {expected}")
    if values:
        return np.array([entry[key] for entry in entries], dtype=np.float64).reshape(-1, values)
    return np.array([entry[key] for entry in entries], dtype=np.int64)


def _rows(ids: Any, order: Any, wanted: Any, key: str) -> Any:
    """Return the row numbers of the wanted ids."""
    import numpy as np

    found = np.searchsorted(ids, wanted, sorter=order)
    row = order[np.minimum(found, len(ids) - 1)]
    wrong = np.flatnonzero(ids[row] != wanted)
    if len(wrong):
        raise SourceError(f"{_ALL}: annotations[{wrong[0]}] has {key} {wanted[wrong[0]]}, which is not in the file")
    return row


DATASET = SceneSet(
    name="coco",
    summary="COCO: 35,504 + 5,000 photographs (val2014 without and with minival), objects of 80 classes",
    official_counts={"train": 35_504, "test": 5_000},
    read=_read,
    file_pattern=r"(?P<annotation>instances_val201[47]\.json)|(?P<picture>COCO_val2014_\d+\.jpg)",
    source_help="a folder with what val2014.zip, annotations_trainval2014.zip and annotations_trainval2017.zip of "
    f"https://cocodataset.org/#download unpack to (val2014/, {_ALL}, {_TEST}), or several folders",
)
