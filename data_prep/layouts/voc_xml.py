"""The layout `voc-xml`: one annotation file in the XML format of PASCAL VOC for each picture.

Classes are read from the files. Splits are those of `ImageSets/Main/*.txt` if there are such lists, else folders named
`train`, `val` and `test`. A picture has the name of its annotation file, or the one in `<filename>`, anywhere in the
source. If the file states no size, or 0 x 0, the size is that of the picture. All ordered pairs of objects of different
classes are related, without difficult objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from data_prep.errors import SourceError, quote, shorten
from data_prep.layouts import PICTURE, SPLIT_NAMES, PictureIndex, draw_test
from data_prep.raw import Layout, RawScenes, SceneSet

if TYPE_CHECKING:
    from data_prep.annotations import SceneAnnotation
    from data_prep.sources.scene_files import FoundPictures, SceneFiles
    from data_prep.sources.voc_xml import VocAnnotation


def _read(files: SceneFiles) -> RawScenes:
    from data_prep.annotations import concatenate
    from data_prep.sources.voc_xml import read_xml

    paths = sorted(path for path in files.annotations if path.endswith(".xml"))
    if not paths:
        raise SourceError("contains no XML file: expected one for each picture")
    splits = _listed_splits(files, paths) or _folder_splits(paths)
    listed = {path for members in splits.values() for path in members}
    annotations = {path: read_xml(files, path, size_required=False) for path in paths if path in listed}
    classes = tuple(sorted({label for annotation in annotations.values() for label in annotation.labels}))
    pictures = files.pictures()
    index = PictureIndex(pictures)
    labels = {name: label for label, name in enumerate(classes)}

    def scenes(members: Iterable[str]) -> list[SceneAnnotation]:
        return [
            _scene(number, path, annotations[path], labels, index, pictures)
            for number, path in enumerate(members, start=1)
        ]

    val = None
    if len(splits) == 1:
        (members,) = splits.values()
        everything = concatenate(scenes(members))
        train, test = (everything.take(rows) for rows in draw_test(len(everything)))
    else:
        train = concatenate(scenes(splits["train"]))
        test = concatenate(scenes(splits["test" if "test" in splits else "val"]))
        val = concatenate(scenes(splits["val"])) if len(splits) == 3 else None
    return RawScenes(classes, (), "classes", train, test, pictures, val=val)


def _listed_splits(files: SceneFiles, paths: Sequence[str]) -> dict[str, dict[str, None]]:
    """Return the annotation files of each list in `ImageSets/Main`; `trainval` takes the place of `train` and `val`."""
    from data_prep.sources.voc_xml import read_lines

    lists = {PurePosixPath(path).stem: path for path in files.annotations if path.endswith(".txt")}
    if "trainval" in lists and "test" in lists:
        lists = {"train": lists["trainval"], "test": lists["test"]}
    by_stem: dict[str, str] = {}
    for path in paths:
        if by_stem.setdefault(PurePosixPath(path).stem, path) != path and lists:
            raise SourceError(f"{shorten(path)} and {shorten(by_stem[PurePosixPath(path).stem])} have the same name")
    splits: dict[str, dict[str, None]] = {}
    for name, listing in lists.items():
        if name not in SPLIT_NAMES:
            continue  # lists of single classes, such as cat_train.txt
        for image in read_lines(files, listing):
            if image not in by_stem:
                raise SourceError(f"{listing}: {quote(image)} has no annotation file {shorten(image)}.xml")
            splits.setdefault(SPLIT_NAMES[name], {})[by_stem[image]] = None
    return _checked(splits)


def _folder_splits(paths: Sequence[str]) -> dict[str, dict[str, None]]:
    """Return the annotation files of each split by the name of a folder; all are "train" if no folder is named so."""
    splits: dict[str, dict[str, None]] = {}
    for path in paths:
        named = [SPLIT_NAMES[part.lower()] for part in PurePosixPath(path).parts[:-1] if part.lower() in SPLIT_NAMES]
        splits.setdefault(named[0] if named else "", {})[path] = None
    if set(splits) == {""}:
        return {"train": splits[""]}
    if "" in splits:
        raise SourceError(f"{shorten(next(iter(splits[''])))} is in no folder train, val or test, as other files are")
    return _checked(splits)


def _checked(splits: dict[str, dict[str, None]]) -> dict[str, dict[str, None]]:
    if splits and "train" not in splits:
        raise SourceError(f"has a split {min(splits)}, but none of training images: expected train and test")
    return splits


def _scene(
    number: int,
    path: str,
    annotation: VocAnnotation,
    labels: Mapping[str, int],
    index: PictureIndex,
    pictures: FoundPictures,
) -> SceneAnnotation:
    from data_prep.annotations import SceneAnnotation

    file = PurePosixPath(path)
    picture = index.find_stem(file.stem, file.parent)
    if picture is None:
        picture = index.find(annotation.filename or f"{file.stem}.jpg", file.parent)
    return SceneAnnotation(
        name=picture,
        id=number,
        size=pictures.upright_size(picture) if annotation.size == (0, 0) else annotation.size,
        boxes=annotation.boxes,
        labels=[labels[label] for label in annotation.labels],
        difficult=annotation.difficult,
    )


DATASET = SceneSet(
    name="voc-xml",
    summary="photographs annotated in the XML format of PASCAL VOC",
    official_counts={},
    read=_read,
    layout=Layout(
        "voc-xml",
        rf"(?P<annotation>(?:[^/]+/)*(?:[^/]+\.xml|ImageSets/Main/[^/]+\.txt))|(?P<picture>(?:[^/]+/)*{PICTURE})",
        "a folder with an XML file for each picture, and the pictures",
    ),
)
