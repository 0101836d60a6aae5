"""The layout `coco-parquet`: COCO's annotations with relations in parquet files, as SGG-Benchmark publishes them.

`data/train-*.parquet`, `val-*` and `test-*` hold pictures and annotations (see `data_prep.sources.coco_parquet`), and
`categories.json` the names of classes and predicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from data_prep.errors import SourceError, shorten
from data_prep.layouts import split_of
from data_prep.layouts.coco_json import Split, raw_scenes
from data_prep.raw import Layout, RawScenes, SceneSet

if TYPE_CHECKING:
    from pathlib import Path

    from data_prep.sources.scene_files import SceneFiles

_NAMES = "categories.json"


def _read(files: SceneFiles) -> RawScenes:
    from data_prep.sources import coco_json
    from data_prep.sources.coco_parquet import ParquetPictures, read_split

    content = coco_json.load(files, _NAMES)
    vocabulary = {key: content[key] for key in ("categories", "rel_categories") if key in content}
    paths: dict[Split, list[Path]] = {}
    for name in sorted(files.annotations):
        if name.endswith(".parquet"):
            named = split_of(PurePosixPath(name).name.partition("-")[0])
            if named is None:
                raise SourceError(f"{shorten(name)}: expected a name such as train-00000-of-00001.parquet")
            paths.setdefault(named, []).append(files.path(name))
    if not {"train"} < set(paths):
        raise SourceError(f"has parquet files of {', '.join(sorted(paths)) or 'no split'}: expected train and test")
    pictures = ParquetPictures()
    contents: dict[Split, coco_json.Content] = {}
    names: dict[Split, Sequence[str]] = {}
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        if split in paths:
            contents[split], names[split] = read_split(split, paths[split], vocabulary, pictures)
    return raw_scenes({split: f"{split}-*.parquet" for split in contents}, contents, names.__getitem__, pictures)


DATASET = SceneSet(
    name="coco-parquet",
    summary="photographs with COCO's annotations in parquet files",
    official_counts={},
    read=_read,
    layout=Layout(
        "coco-parquet",
        rf"(?P<annotation>{_NAMES}|(?:data/)?[^/]+\.parquet)|(?P<picture>(?!))",
        f"a folder with {_NAMES} and data/train-*.parquet, val-* and test-*",
    ),
)
