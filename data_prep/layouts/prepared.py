"""A prepared user-defined data set as a `DataSet`, for the commands that describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from data_prep.errors import SourceError
from data_prep.raw import AnyDataSet, ImageSet, Layout, SceneSet
from data_prep.store import ImageManifest, read_manifest


def prepared_data_set(folder: Path) -> AnyDataSet:
    """Return the description of a prepared data set, from its manifest.

    Raises:
        AffsupError: The manifest is damaged.
    """
    manifest = read_manifest(folder)
    argument = manifest.definition.argument if manifest.definition else "folder"
    common: dict[str, Any] = {
        "name": manifest.dataset,
        "summary": f"your own, prepared with `affsup prepare {argument}`",
        "official_counts": manifest.official_counts,
        "read": _read,
        "layout": Layout(argument, "(?!)", "the folder that it was prepared from"),
    }
    if isinstance(manifest, ImageManifest):
        return ImageSet(**common)
    return SceneSet(**common, categories=bool(manifest.categories))


def _read(files: object) -> NoReturn:
    raise SourceError("the files of a prepared data set are not read again")
