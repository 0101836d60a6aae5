"""User-defined data sets: common layouts of files in one folder.

A layout is used as `affsup prepare LAYOUT --from DIR --name NAME`. Splits are recognised by the names of folders or
files (`SPLIT_NAMES`). If only one split is found, a fifth of its images, always the same, becomes the test set. If a
validation split but no test split is found, it is the test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from data_prep.errors import SourceError, UsageError, did_you_mean, quote, shorten
from data_prep.raw import AnyDataSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LAYOUT_NAMES = ("folder", "coco-json", "coco-parquet", "voc-xml")
"""The layouts, by their names on the command line."""

SPLIT_NAMES: Mapping[str, Literal["train", "val", "test"]] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The split that the name of a folder, or a word in the name of a file, stands for."""

PICTURE = r"[^/]+\.(?i:jpe?g|png|bmp|gif|tiff?|webp)"
"""Regular expression of the file name of a picture."""

DEFAULT_SIZE = 64
"""Pixels per side of the images that `folder` writes."""


def own_data_set(layout: str, name: str, size: int | None = None) -> AnyDataSet:
    """Return a data set in a layout, which `data_prep.prepare` prepares.

    Args:
        layout: One of `LAYOUT_NAMES`.
        name: Name of the data set, and of its folder.
        size: Pixels per side of the images; only for `folder`. None for `DEFAULT_SIZE`.

    Raises:
        UsageError: The layout or the name is invalid, or the layout takes no size.
    """
    if layout not in LAYOUT_NAMES:
        raise UsageError(f"no layout {quote(layout)}{did_you_mean(layout, LAYOUT_NAMES)}: {', '.join(LAYOUT_NAMES)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name in LAYOUT_NAMES:
        expected = "letters, digits, '.', '_' and '-', beginning with a letter or digit, and not the name of a layout"
        raise UsageError(f"--name {quote(name)}: expected {expected}")
    if layout == "folder":
        from data_prep.layouts.class_folders import data_set

        return data_set(name, DEFAULT_SIZE if size is None else size)
    if size is not None:
        raise UsageError(f"--size {size}: images of {layout} keep their size; recipes scale them")
    if layout == "coco-json":
        from data_prep.layouts.coco_json import DATASET as DATA_SET
    elif layout == "coco-parquet":
        from data_prep.layouts.coco_parquet import DATASET as DATA_SET
    else:
        from data_prep.layouts.voc_xml import DATASET as DATA_SET
    return replace(DATA_SET, name=name)


def split_of(path: str) -> Literal["train", "val", "test"] | None:
    """Return the split that a file name, or else its folder, stands for; None if neither does."""
    file = PurePosixPath(path)
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[^a-z0-9]+", file.stem.lower())]
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if len(found) == 1:
        return found.pop()
    return SPLIT_NAMES.get(file.parent.name.lower())


def draw_test(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the training and the test rows of `count` images: a fifth is the test set. The draw is always the same.

    Raises:
        SourceError: There are fewer than 3 images.
    """
    import numpy as np

    if count < 3:
        raise SourceError(f"contains {count} images; expected at least 3, or folders train and test")
    order = np.random.RandomState(0).permutation(count)  # the legacy generator: its stream never changes
    held_out = max(1, count // 5)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class PictureIndex:
    """Finds the picture that an annotation file names, whatever folder it gives."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(paths)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in sorted(self._paths):
            self._by_name.setdefault(PurePosixPath(path).name, []).append(path)
            self._by_stem.setdefault(PurePosixPath(path).stem, []).append(path)

    def find(self, named: str, folder: PurePosixPath) -> str:
        """Return the path of a picture.

        Args:
            named: File name, with or without folders.
            folder: Folder of the annotation file.

        Returns:
            Its path below the source; `named` if there is no such picture.

        Raises:
            SourceError: Several pictures have this name.
        """
        for path in (str(folder / named), named):
            if path in self._paths:
                return path
        same_name = self._by_name.get(PurePosixPath(named.replace("\\", "/")).name, [])
        return self._only([path for path in same_name if path.endswith(f"/{named}")] or same_name, folder) or named

    def find_stem(self, stem: str, folder: PurePosixPath) -> str | None:
        """Return the path of the picture with this name without its ending; None if there is none.

        Raises:
            SourceError: Several pictures have this name.
        """
        return self._only(self._by_stem.get(stem, []), folder)

    def _only(self, paths: Sequence[str], folder: PurePosixPath) -> str | None:
        near = [path for path in paths if PurePosixPath(path).parent == folder]
        near = near or [path for path in paths if PurePosixPath(path).parent.parent == folder.parent]
        paths = near or paths
        if len(paths) > 1:
            raise SourceError(f"{shorten(paths[0])} and {shorten(paths[1])}: which of them is annotated is ambiguous")
        return paths[0] if paths else None
