"""The layout `coco-json`: one annotation file in COCO's JSON format for each split, and the pictures it names.

The name of a file (`train.json`, `instances_val2017.json`) or of its folder (`train/_annotations.coco.json`) tells its
split. A category without objects that is the supercategory of others is no class. Pictures are found by `file_name`
anywhere in the source. All ordered pairs of objects of different classes are related, without crowds, unless the files
annotate relations (see `data_prep.sources.coco_json`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from data_prep.errors import SourceError, quote, shorten
from data_prep.layouts import PICTURE, PictureIndex, draw_test, split_of
from data_prep.raw import Layout, Pictures, RawScenes, SceneSet

if TYPE_CHECKING:
    from data_prep.sources import coco_json
    from data_prep.sources.scene_files import SceneFiles

Split = Literal["train", "val", "test"]


def _read(files: SceneFiles) -> RawScenes:
    from data_prep.sources import coco_json

    paths = _files_of_splits(files)
    contents = {split: coco_json.load(files, path) for split, path in paths.items()}
    pictures = files.pictures()
    index = PictureIndex(pictures)

    def names(split: Split) -> list[str]:
        folder = PurePosixPath(paths[split]).parent
        return [index.find(name, folder) for name in coco_json.file_names(paths[split], contents[split])]

    return raw_scenes(paths, contents, names, pictures)


def raw_scenes(
    paths: Mapping[Split, str],
    contents: Mapping[Split, coco_json.Content],
    names: Callable[[Split], Sequence[str]],
    pictures: Pictures,
) -> RawScenes:
    """Return the data set of the contents of COCO's files.

    Args:
        paths: Name of each split's file, for messages.
        contents: Content of each split's file.
        names: Returns the name of each image of a split in `pictures`.
        pictures: The pictures.

    Raises:
        SourceError: See `data_prep.sources.coco_json.read_annotations`.
    """
    from data_prep.sources import coco_json

    classes, predicates = (
        _union({paths[split]: content for split, content in contents.items() if key in content}, key)
        for key in ("categories", "rel_categories")
    )
    if not classes:
        raise SourceError(f"{paths['train']}: has no list 'categories'")
    groups = set.intersection(
        *(coco_json.parent_categories(each) for each in contents.values() if "categories" in each)
    )
    classes = {number: name for number, name in classes.items() if number not in groups}
    parts = {
        split: coco_json.read_annotations(
            paths[split], content, list(classes), names(split), list(predicates), crowd_required=False
        )
        for split, content in contents.items()
    }
    val = None
    if set(parts) == {"train"}:
        train, test = (parts["train"].take(rows) for rows in draw_test(len(parts["train"])))
    else:
        train, test = parts["train"], parts["test" if "test" in parts else "val"]
        val = parts["val"] if len(parts) == 3 else None
    return RawScenes(
        classes=tuple(classes.values()),
        predicates=tuple(predicates.values()),
        relations="annotated" if predicates else "classes",
        train=train,
        test=test,
        pictures=pictures,
        category_ids=tuple(classes),
        val=val,
    )


def _files_of_splits(files: SceneFiles) -> dict[Split, str]:
    """Return the annotation file of each split; a single file is "train", whatever its name."""
    found: dict[Split, list[str]] = {}
    for path in sorted(files.annotations):
        split = split_of(path)
        if split or len(files.annotations) == 1:
            found.setdefault(split if split and len(files.annotations) > 1 else "train", []).append(path)
    for split, paths in found.items():
        instances = [path for path in paths if PurePosixPath(path).name.startswith(("instances", "_annotations"))]
        if len(instances or paths) > 1:
            both = " and ".join(map(shorten, (instances or paths)[:2]))
            raise SourceError(f"several files of split {split}: {both}; move all but one away")
        found[split] = instances or paths
    if "train" not in found:
        shown = ", ".join(map(shorten, files.annotations[:4])) or "no JSON file"
        raise SourceError(f"has no JSON file of training images such as train.json; found {shown}")
    return {split: path for split, (path,) in found.items()}


def _union(contents: dict[str, coco_json.Content], key: str) -> dict[int, str]:
    """Return the names of all files by their ids, in the order of the ids."""
    from data_prep.sources import coco_json

    names: dict[int, str] = {}
    for path, content in contents.items():
        for number, name in coco_json.names_by_id(path, content, key).items():
            if names.setdefault(number, name) != name:
                raise SourceError(
                    f"{path}: {key} gives id {number} the name {quote(name)}, another file {quote(names[number])}"
                )
    return dict(sorted(names.items()))


DATASET = SceneSet(
    name="coco-json",
    summary="photographs annotated in COCO's JSON format",
    official_counts={},
    read=_read,
    layout=Layout(
        "coco-json",
        rf"(?P<annotation>(?:[^/]+/)*[^/]+\.json)|(?P<picture>(?:[^/]+/)*{PICTURE})",
        "a folder with a JSON file for each split, such as train.json and test.json, and the pictures",
    ),
)
