"""Preparing a data set: is it there, is it the same, else read, write and replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep import labelled, scenes
from data_prep.errors import AffsupError, SourceError, UsageError
from data_prep.format import IMAGES_FILE, MANIFEST_FILE, SCENES_FILE, AnyManifest, read_manifest
from data_prep.raw import AnyDataSet, ProgressCallback, SceneSet
from data_prep.source import RawSource, check_sources, checksums, open_scene_source, open_source
from data_prep.storage import locked, settle


@dataclass(frozen=True)
class PrepareResult:
    """What preparing came to: newly prepared or already up to date, the folder, and what it holds."""

    status: Literal["prepared", "up to date"]
    folder: Path
    manifest: AnyManifest


def build(
    dataset: AnyDataSet,
    *,
    sources: Sequence[Path] = (),
    data_dir: Path,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> PrepareResult:
    """Prepare a data set; see `data_prep.prepare`."""
    check_sources(dataset, sources)
    if limit is not None and isinstance(dataset, SceneSet) and limit < 1:
        raise UsageError(f"--limit {limit}: expected at least 1 image to train on")
    if limit is not None and not isinstance(dataset, SceneSet) and limit < 2:
        raise UsageError(f"--limit {limit}: expected at least 2, one image to train on and one to validate on")
    folder = data_dir / dataset.name
    home = folder.resolve()  # the data set may live elsewhere, behind a link
    tell = progress or _silent
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with locked(home):
            settle(home)
            _refuse_foreign(home)
            present = _present(folder, limit)
            if present and not sources:
                return PrepareResult("up to date", folder, present)
            source = _open(dataset, sources, data_dir / ".downloads", tell)
            if present and present.source == source.record:
                return PrepareResult("up to date", folder, present)
            return PrepareResult("prepared", folder, _write(dataset, source, home, limit, tell))
    except OSError as error:
        raise AffsupError(f"{error.filename or data_dir}: {error.strerror or error}; nothing was changed") from None


def _open(dataset: AnyDataSet, sources: Sequence[Path], downloads: Path, progress: ProgressCallback) -> RawSource[Any]:
    if isinstance(dataset, SceneSet):
        return open_scene_source(dataset, sources, downloads, progress)
    return open_source(dataset, sources, downloads, progress)


def _write(
    dataset: AnyDataSet, source: RawSource[Any], home: Path, limit: int | None, progress: ProgressCallback
) -> AnyManifest:
    try:
        with source.files as files:
            if isinstance(dataset, SceneSet):
                return scenes.write(dataset, dataset.read(files), source.record, home, limit, progress)
            return labelled.write(dataset, dataset.read(files), source.record, home, limit, progress)
    except SourceError as error:
        raise AffsupError(f"{source.label}: {error}") from None


def _present(folder: Path, limit: int | None) -> AnyManifest | None:
    """The manifest of what is there, if it was prepared with this limit and its data are whole."""
    try:
        manifest = read_manifest(folder)
    except AffsupError:
        return None  # not there, or broken: it is prepared anew
    if manifest.limit != limit:
        return None
    for name, record in manifest.files.items():
        path = folder / name
        if not path.exists() or checksums(path)[0] != record:
            return None
    return manifest


def _refuse_foreign(home: Path) -> None:
    """Never replace a folder that holds anything else than a prepared data set."""
    ours = {IMAGES_FILE, SCENES_FILE, MANIFEST_FILE}
    foreign = {path.name for path in home.iterdir()} - ours if home.exists() else set()
    if foreign:
        raise AffsupError(
            f"{home} holds {min(foreign)!r}, which affsup did not write, and preparing replaces the whole folder: "
            "move it away, or choose another place with --data"
        )


def _silent(step: str, done: int, total: int) -> None:
    pass
