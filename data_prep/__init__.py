"""From official files to prepared data sets: one file a data set in `data_prep/sets/`, all in one prepared format.

Importing this package and listing the data sets loads nothing heavy.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep import sets
from data_prep.errors import UsageError, did_you_mean
from data_prep.raw import AnyDataSet, ProgressCallback

if TYPE_CHECKING:
    from data_prep.build import PrepareResult
    from data_prep.format import AnyManifest

__all__ = ["AnyDataSet", "ProgressCallback", "check", "datasets", "get", "prepare"]


@cache
def datasets() -> dict[str, AnyDataSet]:
    """The data sets by name: the `DATASET` of every module in `data_prep/sets/`."""
    modules = (
        importlib.import_module(f"{sets.__name__}.{module.name}") for module in pkgutil.iter_modules(sets.__path__)
    )
    found: list[AnyDataSet] = [module.DATASET for module in modules]
    return {dataset.name: dataset for dataset in found}


def get(name: str) -> AnyDataSet:
    """The data set of that name.

    Raises:
        UsageError: There is none.
    """
    try:
        return datasets()[name]
    except KeyError:
        hint = did_you_mean(name, datasets())
        raise UsageError(f"no data set {name!r}{hint}: choose one of {', '.join(datasets())}") from None


def prepare(
    name: str,
    *,
    sources: Sequence[Path] = (),
    data_dir: Path,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> PrepareResult:
    """Make `<data_dir>/<name>/` from official files; do nothing where it is there already, as asked.

    Args:
        name: The data set.
        sources: The official archive or an extracted folder of it (or the folder's parent); for scenes all the folders
            and archives that hold the needed files together. None to download the archives from their official
            addresses. A downloaded archive stays in `<data_dir>/.downloads/`.
        data_dir: Where prepared data sets live.
        limit: Take this many of the official training images, drawn at random; the test images stay whole.
        progress: Told how far the work is.

    Raises:
        UsageError: The request is wrong.
        AffsupError: It cannot be prepared; what was there before is untouched.
    """
    from data_prep.build import build

    return build(get(name), sources=sources, data_dir=data_dir, limit=limit, progress=progress)


def check(name: str, data_dir: Path) -> AnyManifest:
    """Verify the prepared data set `<data_dir>/<name>/` against its manifest, checksums included.

    Raises:
        UsageError: There is no such data set.
        AffsupError: It is not prepared or damaged; the message says what is wrong.
    """
    from data_prep.format import verify

    return verify(data_dir / get(name).name)
