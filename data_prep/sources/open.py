"""Open the source of the official files: an archive, an extracted folder, a download, or an installed library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from data_prep.errors import AffsupError, SourceError, UsageError
from data_prep.origin import Files, Origin, ProgressCallback
from data_prep.raw import AnyDataSet, DataSet, ImageSet, Layout, SceneSet
from data_prep.sources.archive import open_archive, require_members, select
from data_prep.sources.download import download
from data_prep.sources.parquet import parquet_files
from data_prep.sources.scene_files import SceneFiles
from data_prep.store import DefinitionRecord, FileRecord, SourceRecord

FilesT = TypeVar("FilesT")

_EMBEDDED = SourceRecord(kind="embedded", files={}, official=None, algorithm=None)


@dataclass(frozen=True)
class RawSource(Generic[FilesT]):
    """The source of the official files: its record for the manifest, its name for messages, and its files."""

    record: SourceRecord
    label: str
    files: AbstractContextManager[FilesT]


def check_sources(dataset: AnyDataSet, sources: Sequence[Path]) -> None:
    """Refuse invalid sources before any work is done.

    Raises:
        UsageError: A source does not exist, or the number of sources is wrong: any for an embedded data set, none for
            one that cannot be downloaded, several for labelled images.
    """
    if dataset.layout:
        if len(sources) != 1 or not sources[0].is_dir():
            raise UsageError(
                f"--from {', '.join(map(str, sources)) or 'is missing'}: expected {dataset.layout.source_help}"
            )
        return
    if sources and dataset.embedded:
        raise UsageError(f"data set {dataset.name!r} needs no source, found {sources[0]}: run it without one")
    if isinstance(dataset, SceneSet):
        expected = dataset.source_help
        if not sources and not dataset.embedded and not dataset.archives:
            raise UsageError(f"data set {dataset.name!r} cannot be downloaded: give with --from {expected}")
    else:
        expected = f"{dataset.origin.filename} or the folder extracted from it" if dataset.origin else ""
        expected += ", or a folder of its parquet files" if dataset.from_parquet else ""
        if len(sources) > 1:
            raise UsageError(
                f"data set {dataset.name!r} has one source, found {len(sources)}: give the archive or its folder"
            )
    for path in sources:
        if not path.is_file() and not path.is_dir():
            raise UsageError(f"{path} is not a file or folder: expected {expected}")


def open_source(
    dataset: ImageSet, sources: Sequence[Path], downloads: Path, progress: ProgressCallback
) -> RawSource[Files]:
    """Open the official files, downloading them if no source is given, and compute their checksums.

    Raises:
        SourceError: A folder lacks a file.
        AffsupError: The download failed.
    """
    origin = dataset.origin
    if origin is None:
        return RawSource(_EMBEDDED, dataset.name, nullcontext({}))
    if not sources:
        return _archive_source(download(origin, downloads, progress), origin, "download")
    path = sources[0]
    if dataset.from_parquet and path.is_dir() and parquet_files(path):
        return _parquet_source(path, dataset.from_parquet)
    return _folder_source(path, origin) if path.is_dir() else _archive_source(path, origin, "archive")


def open_scene_source(
    dataset: SceneSet, sources: Sequence[Path], downloads: Path, progress: ProgressCallback
) -> RawSource[SceneFiles]:
    """Open the official files of scenes, downloading them if no source is given, and compute their checksums.

    Raises:
        AffsupError: An archive is damaged, or the download failed.
    """
    if dataset.file_pattern is None:
        return RawSource(_EMBEDDED, dataset.name, nullcontext(SceneFiles((), "", "")))
    paths = list(sources) or [download(archive, downloads, progress) for archive in dataset.archives]
    files = SceneFiles(paths, dataset.file_pattern, dataset.source_help)
    archives = [path for path in paths if path.is_file()]
    records, md5s = {}, set()
    for path in archives:
        records[path.name], md5 = checksums(path)
        md5s.add(md5)
    only_archives = len(archives) == len(paths)
    kind: Literal["download", "archive", "folder"] = "archive" if only_archives else "folder"
    record = SourceRecord(
        kind=kind if sources else "download",
        files=records | ({} if only_archives else files.records()),
        official=md5s == {archive.md5 for archive in dataset.archives} if only_archives else None,
        algorithm="md5" if only_archives else None,
    )
    return RawSource(record, ", ".join(map(str, paths)), nullcontext(files))


def open_layout(layout: Layout, folder: Path) -> RawSource[SceneFiles]:
    """Open the files of a user-defined data set, and compute their checksums."""
    files = SceneFiles([folder], layout.file_pattern, layout.source_help, anchored=True)
    record = SourceRecord(kind="folder", files=files.records(), official=None, algorithm=None)
    return RawSource(record, str(folder), nullcontext(files))


def _archive_source(path: Path, origin: Origin, kind: Literal["archive", "download"]) -> RawSource[Files]:
    record, md5 = checksums(path)
    record_of_source = SourceRecord(kind=kind, files={path.name: record}, official=md5 == origin.md5, algorithm="md5")
    return RawSource(record_of_source, str(path), open_archive(path, origin))


def _parquet_source(folder: Path, read: Callable[[Path], Files]) -> RawSource[Files]:
    try:
        files = read(folder)
    except SourceError as error:
        raise AffsupError(f"{folder}: {error}") from None
    lists = [path for path in folder.glob("*.txt") if path.name in files]
    records = {path.name: checksums(path)[0] for path in (*parquet_files(folder), *lists)}
    record = SourceRecord(kind="folder", files=records, official=None, algorithm=None)
    return RawSource(record, str(folder), nullcontext(files))


def _folder_source(path: Path, origin: Origin) -> RawSource[Files]:
    try:
        files = _FolderFiles(path, origin)
        listing, size, official = hashlib.sha256(), 0, True
        for name in files:
            record, md5 = checksums(files.path(name))
            listing.update(f"{record.sha256}  {name}\n".encode())
            size += record.bytes
            official = official and md5 == origin.member_md5.get(name)
    except SourceError as error:
        raise AffsupError(f"{path}: {error}") from None
    known = bool(origin.member_md5)
    source_record = SourceRecord(
        kind="folder",
        files={origin.root: FileRecord(sha256=listing.hexdigest(), bytes=size)},
        official=official if known else None,
        algorithm="md5" if known else None,
    )
    return RawSource(source_record, str(path), nullcontext(files))


class _FolderFiles(Mapping[str, bytes]):
    """The required files of an extracted folder, sorted by name."""

    def __init__(self, path: Path, origin: Origin) -> None:
        self._root = path / origin.root if (path / origin.root).is_dir() else path
        present = [name for name in origin.members if self.path(name).is_file()]
        require_members(present, (entry.name for entry in self._root.iterdir()), origin)
        self._names = sorted(set(present).union(select(self._walk(), origin)) if origin.images else present)
        self._known = frozenset(self._names)
        total = 0
        for name in self._names:
            size = self.path(name).stat().st_size
            if size > origin.max_member_bytes:
                raise SourceError(f"{name} has {size:,} bytes, expected at most {origin.max_member_bytes:,}")
            total += size
        if total > origin.max_bytes:
            raise SourceError(
                f"contains {total:,} bytes, more than the maximum of {origin.max_bytes:,} for this data set"
            )

    def path(self, name: str) -> Path:
        return self._root / name

    def _walk(self) -> Iterator[str]:
        for folder, _, names in os.walk(self._root):
            inner = Path(folder).relative_to(self._root).as_posix()
            yield from (f"{inner}/{name}" for name in names)

    def __getitem__(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def definition_record(dataset: DataSet) -> DefinitionRecord | None:
    """Return the definition of a data set for its manifest."""
    if dataset.layout:
        return DefinitionRecord(argument=dataset.layout.name, size=dataset.layout.size)
    return DefinitionRecord(argument=dataset.defined_in, size=None) if dataset.defined_in else None


def checksums(path: Path) -> tuple[FileRecord, str]:
    """Return SHA-256 and size of a file, and its MD5, which is the checksum that publishers give."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
    return FileRecord(sha256=sha256.hexdigest(), bytes=size), md5.hexdigest()
