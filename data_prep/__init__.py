"""Prepare data sets from their official files: one module per data set in `data_prep/sets/`, one prepared format.

Importing this package and listing the data sets imports no large library.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep import sets
from data_prep.errors import UsageError, did_you_mean, quote
from data_prep.origin import ProgressCallback
from data_prep.raw import AnyDataSet

if TYPE_CHECKING:
    from data_prep.build import PrepareResult
    from data_prep.store import AnyManifest

__all__ = ["AnyDataSet", "ProgressCallback", "check", "datasets", "get", "prepare"]


@cache
def datasets() -> dict[str, AnyDataSet]:
    """Return the data sets by name: the `DATASET` of every module in `data_prep/sets/`."""
    modules = (
        importlib.import_module(f"{sets.__name__}.{module.name}") for module in pkgutil.iter_modules(sets.__path__)
    )
    found: list[AnyDataSet] = [module.DATASET for module in modules]
    return {dataset.name: dataset for dataset in found}


def get(name: str) -> AnyDataSet:
    """Return the data set of that name.

    Raises:
        UsageError: There is no such data set.
    """
    try:
        return datasets()[name]
    except KeyError:
        hint = did_you_mean(name, datasets())
        raise UsageError(f"no data set {quote(name)}{hint}: known are {', '.join(datasets())}") from None


def prepare(
    name: str,
    *,
    sources: Sequence[Path] = (),
    data_dir: Path,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> PrepareResult:
    """Create `<data_dir>/<name>/` from official files; do nothing if it is already prepared with the same request.

    Args:
        name: Name of the data set.
        sources: The official archive, its extracted folder or the parent of that folder; for scenes, all folders and
            archives that contain the required files. If empty, the archives are downloaded from their official
            addresses and kept in `<data_dir>/.downloads/`.
        data_dir: Folder of the prepared data sets.
        limit: Use only this many of the official training images, drawn at random; all test images are used.
        progress: Called with the progress of the work.

    Raises:
        UsageError: The request is invalid.
        AffsupError: The data set cannot be prepared; an existing one is unchanged.
    """
    from data_prep.build import build

    return build(get(name), sources=sources, data_dir=data_dir, limit=limit, progress=progress)


def check(name: str, data_dir: Path) -> AnyManifest:
    """Verify the prepared data set `<data_dir>/<name>/` against its manifest, checksums included.

    Raises:
        UsageError: There is no such data set.
        AffsupError: It is not prepared or is damaged; the message says what is wrong.
    """
    from data_prep.store import verify

    return verify(data_dir / get(name).name)
