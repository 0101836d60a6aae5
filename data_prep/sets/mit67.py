"""MIT Indoor 67: photographs of indoor places, each with a category and without annotated objects.

The official lists contain the images of the two splits as `category/file`, relative to `Images/` of the archive. The
pictures may also be those of the hub's data set Voxel51/IndoorSceneRecognition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_prep.errors import SourceError, quote, shorten
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    from data_prep.annotations import SceneAnnotation
    from data_prep.sources.scene_files import FoundPictures, SceneFiles

_TRAIN, _TEST = "TrainImages.txt", "TestImages.txt"
_SAMPLES = "samples.json"


def _read(files: SceneFiles) -> RawScenes:
    from data_prep.annotations import concatenate

    train, test = _read_list(files, _TRAIN), _read_list(files, _TEST)
    both = set(train).intersection(test)
    if both:
        raise SourceError(f"{_TRAIN} and {_TEST} both list {shorten(min(both))}; no official image is in both")
    categories = sorted({_category(name) for name in (*train, *test)})
    pictures = _hub_pictures(files, (*train, *test)) if _SAMPLES in files.annotations else files.pictures("Images/")
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


def _hub_pictures(files: SceneFiles, listed: Sequence[str]) -> FoundPictures:
    """Return the pictures of the hub's data set Voxel51/IndoorSceneRecognition by their names in the official lists.

    Its `samples.json` gives the path and the category of each picture. FiftyOne, which wrote it, appends -2, -3, ... to
    file names that several categories have; its own splits are not used.
    """
    content = files.json(_SAMPLES)
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise SourceError(f"{_SAMPLES}: has no list 'samples'")
    wanted = set(listed)
    exact: dict[str, str] = {}
    numbered: dict[str, list[str]] = {}
    for number, sample in enumerate(samples):
        path = sample.get("filepath") if isinstance(sample, dict) else None
        truth = sample.get("ground_truth") if isinstance(sample, dict) else None
        label = truth.get("label") if isinstance(truth, dict) else None
        if not isinstance(path, str) or not isinstance(label, str):
            raise SourceError(f"{_SAMPLES}: samples[{number}] has no 'filepath' and ground_truth.label")
        file = path.rpartition("/")[2]
        name = f"{label}/{file}"
        if name in wanted:
            exact[name] = path
        else:
            numbered.setdefault(f"{label}/{re.sub(r'-[0-9]+(?=[.][^.]*$)', '', file)}", []).append(path)
    only = {name: paths[0] for name, paths in numbered.items() if name in wanted and len(paths) == 1}
    return files.renamed_pictures({path: name for name, path in (only | exact).items()})


def _category(name: str) -> str:
    return name.partition("/")[0]


def _scene(name: str, number: int, category: int, pictures: FoundPictures) -> SceneAnnotation:
    from data_prep.annotations import SceneAnnotation

    size = pictures.upright_size(name)
    return SceneAnnotation(name=name, id=number, size=size, boxes=(), labels=(), category=category)


DATASET = SceneSet(
    name="mit67",
    summary="MIT Indoor 67: 5,360 + 1,340 photographs, each of one of 67 categories",
    official_counts={"train": 5360, "test": 1340},
    read=_read,
    file_pattern=rf"(?P<annotation>{re.escape(_TRAIN)}|{re.escape(_TEST)}|{re.escape(_SAMPLES)})"
    r"|(?P<picture>Images/[^/]+/[^/]+|data/data_\d+/[^/]+\.(?i:jpe?g|png|gif))",
    source_help=f"indoorCVPR_09.tar or the Images folder unpacked from it, and a folder with {_TRAIN} and {_TEST}, "
    "each with a --from of its own, or one folder with all (https://web.mit.edu/torralba/www/indoor.html); or "
    "hf://datasets/Voxel51/IndoorSceneRecognition and the folder with the lists",
    categories=True,
)
