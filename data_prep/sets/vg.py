"""Visual Genome in the format of scene-graph papers: 150 classes and 50 predicates in `VG-SGG.h5`.

The rows of this file are the images of `image_data.json` without the four corrupt ones. Boxes are centre, width and
height in an image scaled to a longer side of 1,024.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import SourceError
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.sources.scene_files import SceneFiles
    from data_prep.store import Annotations

_CORRUPT = (1592, 1722, 4616, 4617)
_LONG_SIDE = 1024
_H5 = ("VG-SGG.h5", "VG-SGG-with-attri.h5")
_DICTS = ("VG-SGG-dicts.json", "VG-SGG-dicts-with-attri.json")
_IMAGE_DATA = "image_data.json"
_MAX_BYTES = 400_000_000  # of one data set in memory; the official 1.1 million boxes take 37 million as int64
_COLUMNS = {  # of each HDF5 data set that is read
    "split": None,
    "boxes_1024": 4,
    "labels": 1,
    "img_to_first_box": None,
    "img_to_last_box": None,
    "relationships": 2,
    "predicates": 1,
    "img_to_first_rel": None,
    "img_to_last_rel": None,
}


def _read(files: SceneFiles) -> RawScenes:
    import numpy as np

    from data_prep.store import MAX_EXAMPLES, LeftOutRecord

    h5_name, dicts_name = _either(files, _H5), _either(files, _DICTS)
    dicts = files.json(dicts_name)
    classes, predicates = (_vocabulary(dicts_name, dicts, key) for key in ("idx_to_label", "idx_to_predicate"))
    ids, sizes = _images(files)
    arrays = _datasets(h5_name, files)
    if len(ids) != len(arrays["split"]):
        raise SourceError(
            f"{h5_name}: split has {len(arrays['split']):,} rows, "
            f"{_IMAGE_DATA} {len(ids):,} images without the corrupt ones"
        )
    everything, unused = _annotations(h5_name, arrays, ids, sizes, len(classes), len(predicates))
    wrong = np.flatnonzero(~np.isin(arrays["split"], (0, 2)))
    if len(wrong):
        raise SourceError(f"{h5_name}: split row {wrong[0]} is {arrays['split'][wrong[0]]}, expected 0 or 2")
    left_out = [
        LeftOutRecord(
            what=what,
            reason="of no image",
            count=len(rows),
            examples=[f"{h5_name} row {row}" for row in rows[:MAX_EXAMPLES]],
        )
        for what, rows in unused.items()
        if len(rows)
    ]
    return RawScenes(
        classes=classes,
        predicates=predicates,
        relations="annotated",
        train=everything.take(np.flatnonzero(arrays["split"] == 0)),
        test=everything.take(np.flatnonzero(arrays["split"] == 2)),
        pictures=files.pictures(),
        left_out=tuple(left_out),
    )


def _either(files: SceneFiles, names: tuple[str, str]) -> str:
    return names[1] if names[1] in files.annotations and names[0] not in files.annotations else names[0]


def _vocabulary(name: str, dicts: Any, key: str) -> tuple[str, ...]:
    """Return the names with numbers 1, 2, ..."""
    entries = dicts.get(key) if isinstance(dicts, dict) else None
    if not isinstance(entries, dict) or set(entries) != {str(i + 1) for i in range(len(entries))} or not entries:
        raise SourceError(f"{name}: {key!r} is not a table of names numbered from 1")
    names = [entries[str(i + 1)] for i in range(len(entries))]
    wrong = [i + 1 for i, value in enumerate(names) if not isinstance(value, str)]
    if wrong:
        raise SourceError(f"{name}: the name of {key!r} number {wrong[0]} is not text")
    return tuple(names)


def _images(files: SceneFiles) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    import numpy as np

    entries = files.json(_IMAGE_DATA)
    if not isinstance(entries, list):
        raise SourceError(f"{_IMAGE_DATA}: is a {type(entries).__name__}, expected a list of images")
    keys = ("image_id", "width", "height")
    for number, entry in enumerate(entries):
        for key in keys:
            if not isinstance(entry, dict) or type(entry.get(key)) is not int or not 0 < entry[key] < 2**31:
                raise SourceError(f"{_IMAGE_DATA}: entry {number} has no valid {key!r}")
    rows = [[entry[key] for key in keys] for entry in entries if entry["image_id"] not in _CORRUPT]
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    if len(np.unique(table[:, 0])) != len(table):
        raise SourceError(f"{_IMAGE_DATA}: has an image_id that occurs twice")
    return table[:, 0], table[:, 1:].astype(np.int32)


def _datasets(name: str, files: SceneFiles) -> dict[str, NDArray[np.int64]]:
    import numpy as np

    from data_prep.hdf5 import Hdf5Error, open_hdf5, read

    try:
        with open_hdf5(io.BytesIO(files.annotation(name))) as h5:
            return {
                key: read(h5, key, "iu", (None,) if columns is None else (None, columns), _MAX_BYTES).astype(np.int64)
                for key, columns in _COLUMNS.items()
            }
    except Hdf5Error as error:
        raise SourceError(f"{name}: truncated or damaged ({error}); get it again") from None


def _annotations(
    name: str,
    arrays: dict[str, NDArray[np.int64]],
    ids: NDArray[np.int64],
    sizes: NDArray[np.int32],
    classes: int,
    predicates: int,
) -> tuple[Annotations, dict[Literal["objects", "relations"], NDArray[np.int64]]]:
    """Return the annotations of all images, and the rows of objects and relations that belong to no image."""
    import numpy as np

    from data_prep.annotations import as_boxes
    from data_prep.store import Annotations, offsets_from_counts

    for key, rows_of in (("labels", "boxes_1024"), ("predicates", "relationships")):
        if len(arrays[key]) != len(arrays[rows_of]):
            raise SourceError(f"{name}: {key} has {len(arrays[key]):,} rows, {rows_of} {len(arrays[rows_of]):,}")
    objects, object_counts = _rows_of_images(name, arrays, "box", "boxes_1024")
    relations, relation_counts = _rows_of_images(name, arrays, "rel", "relationships")

    first_object = offsets_from_counts(object_counts)
    image_of_relation = np.repeat(np.arange(len(ids)), relation_counts)
    # index into the objects of the image: absolute row minus the first row of the image
    inner = arrays["relationships"][relations] - arrays["img_to_first_box"][image_of_relation, None]
    wrong = np.flatnonzero(((inner < 0) | (inner >= object_counts[image_of_relation, None])).any(axis=1))
    if len(wrong):
        row, image = relations[wrong[0]], image_of_relation[wrong[0]]
        first, last = arrays["img_to_first_box"][image], arrays["img_to_last_box"][image]
        raise SourceError(
            f"{name}: relationships row {row} is {arrays['relationships'][row].tolist()}, outside the boxes "
            f"{first} to {last} of its image (row {image})"
        )

    image_of_object = np.repeat(np.arange(len(ids)), object_counts)
    scale = (sizes.max(axis=1) / _LONG_SIDE)[image_of_object, None]
    centre, extent = np.split(arrays["boxes_1024"][objects] * scale, 2, axis=1)
    annotations = Annotations(
        names=[f"{number}.jpg" for number in ids],
        ids=ids,
        sizes=sizes,
        first_object=first_object,
        boxes=as_boxes(np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)),
        labels=_from_zero(name, arrays["labels"], "labels", classes)[objects],
        difficult=np.zeros(len(objects), dtype=np.bool_),
        crowd=np.zeros(len(objects), dtype=np.bool_),
        first_relation=offsets_from_counts(relation_counts),
        relations=inner,
        predicates=_from_zero(name, arrays["predicates"], "predicates", predicates)[relations],
    )
    return annotations, {
        "objects": np.flatnonzero(np.bincount(objects, minlength=len(arrays["labels"])) == 0),
        "relations": np.flatnonzero(np.bincount(relations, minlength=len(arrays["predicates"])) == 0),
    }


def _rows_of_images(
    name: str, arrays: dict[str, NDArray[np.int64]], kind: str, table: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a table in the order of their images, and the number of rows of each image."""
    import numpy as np

    first, last = arrays[f"img_to_first_{kind}"], arrays[f"img_to_last_{kind}"]
    if not len(first) == len(last) == len(arrays["split"]):
        raise SourceError(
            f"{name}: img_to_first_{kind} and img_to_last_{kind} have {len(first):,} and {len(last):,} rows, "
            f"split {len(arrays['split']):,}"
        )
    none = (first == -1) & (last == -1)
    wrong = np.flatnonzero(~none & ~((first >= 0) & (first <= last) & (last < len(arrays[table]))))
    if len(wrong):
        row = wrong[0]
        raise SourceError(
            f"{name}: row {row} of img_to_first_{kind} and img_to_last_{kind} is {first[row]} and {last[row]}, "
            f"expected -1 twice or a range within the {len(arrays[table]):,} rows of {table}"
        )
    counts = np.where(none, 0, last - first + 1)
    before = np.cumsum(counts) - counts
    rows = np.arange(counts.sum()) + np.repeat(first - before, counts)
    twice = np.flatnonzero(np.bincount(rows) > 1)
    if len(twice):
        raise SourceError(f"{name}: img_to_first_{kind} and img_to_last_{kind} give row {twice[0]} of {table} twice")
    return rows, counts


def _from_zero(name: str, numbered: NDArray[np.int64], key: str, count: int) -> NDArray[np.int64]:
    import numpy as np

    wrong = np.flatnonzero((numbered[:, 0] < 1) | (numbered[:, 0] > count))
    if len(wrong):
        raise SourceError(f"{name}: {key} row {wrong[0]} is {numbered[wrong[0], 0]}, expected 1 to {count}")
    return numbered[:, 0] - 1


DATASET = SceneSet(
    name="vg",
    summary="Visual Genome (VG150): 75,651 + 32,422 photographs, 150 classes, 50 predicates, annotated relations",
    official_counts={"train": 75_651, "test": 32_422},
    read=_read,
    file_pattern=r"(?P<annotation>VG-SGG(?:-with-attri)?\.h5|VG-SGG-dicts(?:-with-attri)?\.json|image_data\.json)"
    r"|(?P<picture>\d+\.jpg)",
    source_help=f"the folders with VG_100K/, VG_100K_2/ and {_IMAGE_DATA} of Visual Genome 1.2 "
    f"(https://homes.cs.washington.edu/~ranjay/visualgenome), and with {_H5[0]} and {_DICTS[0]} as scene-graph papers "
    "publish them",
)
