"""Prepare a data set, unless it is already prepared from the same source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep import build_images, build_scenes
from data_prep.errors import AffsupError, SourceError, UsageError, quote
from data_prep.origin import ProgressCallback
from data_prep.raw import AnyDataSet, SceneSet
from data_prep.sources.hub import fetch, is_hub_address
from data_prep.sources.open import (
    RawSource,
    check_sources,
    checksums,
    definition_record,
    open_layout,
    open_scene_source,
    open_source,
)
from data_prep.store import IMAGES_FILE, MANIFEST_FILE, SCENES_FILE, AnyManifest, SceneManifest, read_manifest
from data_prep.writing import exclusive, recover


@dataclass(frozen=True)
class PrepareResult:
    """The result of `build`: whether the data set is new or was up to date, its folder and its manifest."""

    status: Literal["prepared", "up to date"]
    folder: Path
    manifest: AnyManifest


def build(
    dataset: AnyDataSet,
    *,
    sources: Sequence[Path] = (),
    data_dir: Path,
    limit: int | None = None,
    drop_empty: bool = False,
    progress: ProgressCallback | None = None,
) -> PrepareResult:
    """Prepare a data set; see `data_prep.prepare`."""
    sources = [
        fetch(source, data_dir / ".downloads") if is_hub_address(source) and not dataset.embedded else source
        for source in sources
    ]
    check_sources(dataset, sources)
    if limit is not None and isinstance(dataset, SceneSet) and limit < 1:
        raise UsageError(f"--limit {limit}: expected at least 1 image to train on")
    if limit is not None and not isinstance(dataset, SceneSet) and limit < 2:
        raise UsageError(f"--limit {limit}: expected at least 2, one image to train on and one to validate on")
    if drop_empty and not isinstance(dataset, SceneSet):
        raise UsageError(f"--drop-empty is for scenes with relations, and {dataset.name} has labelled images")
    folder = data_dir / dataset.name
    destination = folder.resolve()  # the folder may be a link to another place
    report = progress or _ignore
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(destination):
            recover(destination)
            _require_no_foreign_files(destination)
            present = _find_prepared(folder, dataset, limit, drop_empty)
            if present and not sources:
                return PrepareResult("up to date", folder, present)
            source = _open(dataset, sources, data_dir / ".downloads", report)
            if present and present.source == source.record:
                return PrepareResult("up to date", folder, present)
            return PrepareResult("prepared", folder, _write(dataset, source, destination, limit, report, drop_empty))
    except OSError as error:
        raise AffsupError(f"{error.filename or data_dir}: {error.strerror or error}; nothing was changed") from None


def _open(dataset: AnyDataSet, sources: Sequence[Path], downloads: Path, progress: ProgressCallback) -> RawSource[Any]:
    if dataset.layout:
        return open_layout(dataset.layout, sources[0])
    if isinstance(dataset, SceneSet):
        return open_scene_source(dataset, sources, downloads, progress)
    return open_source(dataset, sources, downloads, progress)


def _write(
    dataset: AnyDataSet,
    source: RawSource[Any],
    destination: Path,
    limit: int | None,
    progress: ProgressCallback,
    drop_empty: bool,
) -> AnyManifest:
    try:
        with source.files as files:
            if isinstance(dataset, SceneSet):
                return build_scenes.write(
                    dataset, dataset.read(files), source.record, destination, limit, progress, drop_empty=drop_empty
                )
            return build_images.write(dataset, dataset.read(files), source.record, destination, limit, progress)
    except SourceError as error:
        raise AffsupError(f"{source.label}: {error}") from None


def _find_prepared(folder: Path, dataset: AnyDataSet, limit: int | None, drop_empty: bool) -> AnyManifest | None:
    """Return the manifest of the prepared data set if it has this limit and its files are undamaged, else None."""
    try:
        manifest = read_manifest(folder)
    except AffsupError:
        return None  # missing or broken: prepare it again
    if manifest.limit != limit or manifest.definition != definition_record(dataset):
        return None
    if isinstance(manifest, SceneManifest) and manifest.drop_empty != drop_empty:
        return None
    for name, record in manifest.files.items():
        path = folder / name
        if not path.exists() or checksums(path)[0] != record:
            return None
    return manifest


def _require_no_foreign_files(destination: Path) -> None:
    """Refuse to replace a folder that contains other files than a prepared data set."""
    ours = {IMAGES_FILE, SCENES_FILE, MANIFEST_FILE}
    foreign = {path.name for path in destination.iterdir()} - ours if destination.exists() else set()
    if foreign:
        raise AffsupError(
            f"{destination} contains {quote(min(foreign))}, which affsup did not write, and preparing replaces the "
            "folder: move it away, or choose another place with --data"
        )


def _ignore(step: str, done: int, total: int) -> None:
    pass
