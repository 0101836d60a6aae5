"""Prepare data sets from their official files: one module per data set in `data_prep/sets/`, one prepared format.

Importing this package and listing the data sets imports no large library.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep import sets
from data_prep.errors import UsageError, did_you_mean, quote, shorten
from data_prep.origin import ProgressCallback
from data_prep.raw import AnyDataSet

if TYPE_CHECKING:
    from data_prep.build import PrepareResult
    from data_prep.store import AnyManifest

__all__ = ["AnyDataSet", "ProgressCallback", "check", "dataset_names", "datasets", "get", "load_file", "prepare"]

ENTRY_POINTS = "affsup.datasets"
"""The group of entry points through which other installed packages define data sets."""


@cache
def datasets() -> dict[str, AnyDataSet]:
    """Return the installed data sets by name.

    These are the `DATASET` of every module in `data_prep/sets/`, and the entry points of the group `affsup.datasets`
    of other installed packages, which cannot replace one of the former.

    Raises:
        UsageError: An entry point cannot be loaded or is not a data set.
    """
    modules = (
        importlib.import_module(f"{sets.__name__}.{module.name}") for module in pkgutil.iter_modules(sets.__path__)
    )
    found: dict[str, AnyDataSet] = {module.DATASET.name: module.DATASET for module in modules}
    for entry_point in entry_points(group=ENTRY_POINTS):
        dataset = _loaded(entry_point.load, f"entry point {entry_point.name!r} ({entry_point.value})")
        found.setdefault(dataset.name, dataset)
    return found


def dataset_names(data_dir: Path) -> list[str]:
    """Return the names of the installed data sets, then of the user-defined ones that are prepared in `data_dir`."""
    prepared = sorted(path.parent.name for path in data_dir.glob("*/manifest.json"))
    return list(dict.fromkeys((*datasets(), *prepared)))


def get(name: str, data_dir: Path | None = None) -> AnyDataSet:
    """Return the installed data set of that name, or a user-defined one that is prepared in `data_dir`.

    A user-defined data set is described by its manifest; it cannot be read again without its source.

    Raises:
        UsageError: There is no such data set.
        AffsupError: The manifest of the user-defined data set is damaged.
    """
    if name in datasets():
        return datasets()[name]
    if data_dir and name in dataset_names(data_dir):
        from data_prep.layouts.prepared import prepared_data_set

        return prepared_data_set(data_dir / name)
    hint = did_you_mean(name, datasets())
    raise UsageError(
        f"no data set {quote(name)}{hint}: known are {', '.join(datasets())}, or prepare your own with "
        "`affsup prepare folder|coco-json|coco-parquet|voc-xml --from DIR --name NAME`"
    )


def load_file(path: Path) -> AnyDataSet:
    """Return the `DATASET` that a Python file defines.

    The file is run: read it before.

    Raises:
        UsageError: The file cannot be run, or defines no data set.
    """

    def run() -> object:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ValueError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.DATASET

    return replace(_loaded(run, str(path)), defined_in=str(path.resolve()))


def _loaded(load: Callable[[], object], origin: str) -> AnyDataSet:
    try:
        dataset = load()
    except Exception as error:  # code of others may raise anything
        raise UsageError(f"{origin} cannot be loaded: {type(error).__name__}: {shorten(error)}") from error
    if not isinstance(dataset, AnyDataSet):
        raise UsageError(f"{origin} is a {type(dataset).__name__}, expected an ImageSet or a SceneSet")
    return dataset


def prepare(
    dataset: str | AnyDataSet,
    *,
    sources: Sequence[Path] = (),
    data_dir: Path,
    limit: int | None = None,
    drop_empty: bool = False,
    progress: ProgressCallback | None = None,
) -> PrepareResult:
    """Create `<data_dir>/<name>/` from the files of a data set; do nothing if it is prepared with the same request.

    Args:
        dataset: Name of an installed data set, or a data set: your own from `data_prep.layouts.own_data_set` or
            `load_file`.
        sources: The official archive, its extracted folder or the parent of that folder; for scenes, all folders and
            archives that contain the required files. If empty, the archives are downloaded from their official
            addresses and kept in `<data_dir>/.downloads/`.
        data_dir: Folder of the prepared data sets.
        limit: Use only this many of the official training images, drawn at random; all test images are used.
        drop_empty: Leave out images without a related pair, as papers on scene graphs do; only for scenes.
        progress: Called with the progress of the work.

    Raises:
        UsageError: The request is invalid.
        AffsupError: The data set cannot be prepared; an existing one is unchanged.
    """
    from data_prep.build import build

    if isinstance(dataset, str):
        dataset = get(dataset)
    return build(dataset, sources=sources, data_dir=data_dir, limit=limit, drop_empty=drop_empty, progress=progress)


def check(name: str, data_dir: Path) -> AnyManifest:
    """Verify the prepared data set `<data_dir>/<name>/` against its manifest, checksums included.

    Raises:
        UsageError: There is no such data set.
        AffsupError: It is not prepared or is damaged; the message says what is wrong.
    """
    from data_prep.store import verify

    return verify(data_dir / get(name, data_dir).name)
