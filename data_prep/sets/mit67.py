"""MIT Indoor 67: photographs of indoor places, each with a category and without annotated objects.

The official lists contain the images of the two splits as `category/file`, relative to `Images/` of the archive.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from data_prep.errors import SourceError, quote, shorten
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    from data_prep.annotations import SceneAnnotation
    from data_prep.sources.scene_files import FoundPictures, SceneFiles

_TRAIN, _TEST = "TrainImages.txt", "TestImages.txt"


def _read(files: SceneFiles) -> RawScenes:
    from data_prep.annotations import concatenate

    train, test = _read_list(files, _TRAIN), _read_list(files, _TEST)
    both = set(train).intersection(test)
    if both:
        raise SourceError(f"{_TRAIN} and {_TEST} both list {shorten(min(both))}; no official image is in both")
    categories = sorted({_category(name) for name in (*train, *test)})
    pictures = files.pictures("Images/")
    scenes = [
        _scene(name, number, categories.index(_category(name)), pictures)
        for number, name in enumerate((*train, *test), start=1)
    ]
    return RawScenes(
        classes=(),
        predicates=(),
        relations="classes",
        train=concatenate(scenes[: len(train)]),
        test=concatenate(scenes[len(train) :]),
        pictures=pictures,
        categories=tuple(categories),
    )


def _read_list(files: SceneFiles, listing: str) -> list[str]:
    lines = files.annotation(listing).decode("utf-8-sig", errors="replace").splitlines()
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        if not re.fullmatch(r"[^/.][^/]*/[^/]+", name):
            raise SourceError(f"{listing} line {number}: {quote(name)} is not an image such as bookstore/CIMG2743.jpg")
        if name in names:
            raise SourceError(f"{listing} line {number}: {shorten(name)} is already in line {names[name]}")
        names[name] = number
    return list(names)


def _category(name: str) -> str:
    return name.partition("/")[0]


def _scene(name: str, number: int, category: int, pictures: FoundPictures) -> SceneAnnotation:
    from data_prep.annotations import SceneAnnotation
    from data_prep.decode.pictures import size_or_unknown

    size = size_or_unknown(name, pictures)
    return SceneAnnotation(name=name, id=number, size=size, boxes=(), labels=(), category=category)


DATASET = SceneSet(
    name="mit67",
    summary="MIT Indoor 67: 5,360 + 1,340 photographs, each of one of 67 categories",
    official_counts={"train": 5360, "test": 1340},
    read=_read,
    file_pattern=rf"(?P<annotation>{re.escape(_TRAIN)}|{re.escape(_TEST)})|(?P<picture>Images/[^/]+/[^/]+)",
    source_help=f"indoorCVPR_09.tar or the Images folder unpacked from it, and a folder with {_TRAIN} and {_TEST}, "
    "each with a --from of its own, or one folder with all (https://web.mit.edu/torralba/www/indoor.html)",
    categories=True,
)
