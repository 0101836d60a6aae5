"""PASCAL VOC 2007: the official tar archives, or the extracted `VOCdevkit` folder.

Box corners are 1-based and inclusive in the official files: pixel k spans [k - 1, k]. All ordered pairs of objects of
different classes are related, without difficult objects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from data_prep.errors import SourceError
from data_prep.origin import Archive
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from data_prep.annotations import SceneAnnotation
    from data_prep.sources.scene_files import SceneFiles
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
_LARGEST = 2**16  # pixels per side, the maximum of JPEG
_SERVER = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007"


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

    listing = f"ImageSets/Main/{part}.txt"
    names = files.annotation(listing).decode("utf-8", errors="replace").split()
    for name in names:
        if not re.fullmatch(r"\d+(_\d+)?", name):
            raise SourceError(f"{listing}: {name!r} is not an image number such as 000005")
    if len(set(names)) != len(names):
        raise SourceError(f"{listing}: lists an image twice")
    return concatenate([_scene(name, *_parsed(files, f"Annotations/{name}.xml")) for name in names])


def _parsed(files: SceneFiles, path: str) -> tuple[str, Element]:
    from xml.etree import ElementTree

    text = files.annotation(path).decode("utf-8", errors="replace")
    if "<!DOCTYPE" in text:  # entities can be declared only there
        raise SourceError(f"{path}: declares a document type, which no official file does; refused")
    try:
        return path, ElementTree.fromstring(text)  # noqa: S314
    except (ElementTree.ParseError, ValueError) as error:
        raise SourceError(f"{path}: is not XML ({error})") from None


def _scene(name: str, path: str, root: Element) -> SceneAnnotation:
    from data_prep.annotations import SceneAnnotation

    boxes, labels, difficult = [], [], []
    for number, each in enumerate(root.findall("object"), start=1):
        where = f"{path} object {number}"
        label = _text(each, "name", where)
        if label not in _LABELS:
            raise SourceError(f"{where}: class {label!r} is not one of the {len(_CLASSES)} of VOC")
        x1, y1, x2, y2 = (_number(each, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((x1 - 1, y1 - 1, x2, y2))
        labels.append(_LABELS[label])
        difficult.append(each.findtext("difficult", "0").strip() == "1")
    width, height = (_number(root, f"size/{key}", path) for key in ("width", "height"))
    if not (0 < width < _LARGEST and 0 < height < _LARGEST):
        raise SourceError(f"{path}: <size> is {width:g} x {height:g}, expected an image's width and height")
    return SceneAnnotation(
        name=f"{name}.jpg",
        id=int(name.replace("_", "")),
        size=(int(width), int(height)),
        boxes=boxes,
        labels=labels,
        difficult=difficult,
    )


def _text(element: Element, path: str, where: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise SourceError(f"{where}: has no <{path}>")
    return text.strip()


def _number(element: Element, path: str, where: str) -> float:
    text = _text(element, path, where)
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"{where}: <{path}> is {text!r}, expected a number") from None


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
        Archive(f"{_SERVER}/VOCtrainval_06-Nov-2007.tar", "c52e279531787972c589f7e41ab4ae64", 460_032_000),
        Archive(f"{_SERVER}/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800),
    ),
)
