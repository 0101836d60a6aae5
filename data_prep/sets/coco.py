"""COCO: the images of the validation split of 2014, divided as in detection papers.

The 5,000 of them that are also in the validation split of 2017 ("minival") are the test images; the others are the
training images. All ordered pairs of objects of different classes are related, without crowds.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    from data_prep.sources.scene_files import SceneFiles

_ALL = "instances_val2014.json"
_TEST = "instances_val2017.json"


def _read(files: SceneFiles) -> RawScenes:
    import numpy as np

    from data_prep.sources import coco_json
    from data_prep.store import MAX_EXAMPLES, LeftOutRecord

    content = coco_json.load(files, _ALL)
    test_ids = coco_json.image_ids(_TEST, coco_json.load(files, _TEST))
    names = coco_json.names_by_id(_ALL, content, "categories")
    class_ids = sorted(names)
    file_names = [PurePosixPath(name).name for name in coco_json.file_names(_ALL, content)]
    everything = coco_json.read_annotations(_ALL, content, class_ids, file_names)
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


DATASET = SceneSet(
    name="coco",
    summary="COCO: 35,504 + 5,000 photographs (val2014 without and with minival), objects of 80 classes",
    official_counts={"train": 35_504, "test": 5_000},
    read=_read,
    file_pattern=r"(?P<annotation>instances_val201[47]\.json)|(?P<picture>COCO_val2014_\d+\.jpg)",
    source_help="a folder with what val2014.zip, annotations_trainval2014.zip and annotations_trainval2017.zip of "
    f"https://cocodataset.org/#download unpack to (val2014/, {_ALL}, {_TEST}), or several folders",
)
