"""Find the official files of a data set of scenes in folders and tar archives."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.errors import AffsupError, SourceError, shorten
from data_prep.sources.archive import tar_index
from data_prep.store import FileRecord

_VISIBLE = r"[^/]*/(?!(?:.*/)?(?:\.|__MACOSX/))"  # the source folder, and no hidden folder or file in it
_MAX_ANNOTATION = 600_000_000  # bytes; the training annotations of COCO have 470 million


@dataclass(frozen=True)
class _FileLocation:
    """Position of a file's content: in a file of its own or in an archive."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) != self.size:
            raise SourceError(f"{self.path}: changed while it was read; run the command again")
        return content

    def sha256(self) -> str:
        """Return the checksum of the content, which is not read at once."""
        total, left = hashlib.sha256(), self.size
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left and (chunk := file.read(min(left, 1 << 20))):
                total.update(chunk)
                left -= len(chunk)
        if left:
            raise SourceError(f"{self.path}: changed while it was read; run the command again")
        return total.hexdigest()


class SceneFiles:
    """The required files of all sources, each read on access; of two files with one name, that of the first source.

    Args:
        sources: Folders and uncompressed tar archives.
        file_pattern: Regular expression of the required files, see `data_prep.raw.SceneSet`.
        source_help: The sources that were expected, for messages.
        anchored: Whether `file_pattern` matches the whole path below the source; hidden files are then left out.

    Raises:
        AffsupError: An archive is damaged, malicious or of another kind.
    """

    def __init__(self, sources: Sequence[Path], file_pattern: str, source_help: str, *, anchored: bool = False) -> None:
        self._source_help = source_help
        self._sources = sources
        self._annotations: dict[str, _FileLocation] = {}
        self._pictures: dict[str, _FileLocation] = {}
        self._anchored = anchored
        pattern = re.compile(rf"{_VISIBLE if anchored else '(?:.*/)?'}(?:{file_pattern})")
        for source in sources:
            for name, location in _in_archive(source) if source.is_file() else _in_folder(source, pattern):
                if match := pattern.fullmatch(name):
                    found = self._annotations if match["annotation"] else self._pictures
                    found.setdefault(match["annotation"] or match["picture"], location)

    @property
    def annotations(self) -> Sequence[str]:
        """The names of the annotation files that were found."""
        return list(self._annotations)

    def annotation(self, name: str) -> bytes:
        """Return the content of an annotation file.

        Raises:
            SourceError: It was not found.
        """
        if name not in self._annotations:
            raise SourceError(f"has no {name}; expected {self._source_help}")
        location = self._annotations[name]
        if location.size > _MAX_ANNOTATION:
            raise SourceError(f"{name} has {location.size:,} bytes, expected at most {_MAX_ANNOTATION:,}; refused")
        return location.read()

    def path(self, name: str) -> Path:
        """Return the path of an annotation file that is no member of an archive."""
        return self._annotations[name].path

    def json(self, name: str) -> Any:
        """Return the parsed content of an annotation file in JSON.

        Raises:
            SourceError: It was not found, or is not JSON.
        """
        try:
            return json.loads(self.annotation(name))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{name}: is not JSON ({shorten(error)})") from None

    def pictures(self, prefix: str = "") -> FoundPictures:
        """Return the pictures whose names begin with `prefix`, by their names without it."""
        return FoundPictures(self._pictures, prefix, str(self._sources[0]))

    def renamed_pictures(self, names: Mapping[str, str]) -> FoundPictures:
        """Return those pictures whose names are keys of `names`, by the new names that are its values."""
        found = {new: self._pictures[name] for name, new in names.items() if name in self._pictures}
        return FoundPictures(found, "", str(self._sources[0]))

    def records(self) -> dict[str, FileRecord]:
        """Return the checksums of the files for the manifest.

        For an annotation file it is the checksum of its content, for a folder of annotation files that of its
        `sha256sum` listing, and for the pictures that of a listing of their sizes (of their checksums if anchored), as
        the digest of the prepared data set covers their content.
        """
        listings: dict[str, list[tuple[str, str, int]]] = {}
        for name, location in sorted(self._annotations.items()):
            folder = str(PurePosixPath(name).parent)
            entry = (location.sha256(), name, location.size)
            listings.setdefault(name if folder == "." else folder, []).append(entry)
        records = {
            name: FileRecord(sha256=entries[0][0], bytes=entries[0][2])
            if entries[0][1] == name
            else _listing_record(entries)
            for name, entries in listings.items()
        }
        sizes = [
            (location.sha256() if self._anchored else str(location.size), name, location.size)
            for name, location in sorted(self._pictures.items())
        ]
        return records | {"pictures": _listing_record(sizes)}


class FoundPictures:
    """Encoded pictures by file name; implements `data_prep.raw.Pictures`."""

    def __init__(self, locations: Mapping[str, _FileLocation], prefix: str, source: str) -> None:
        self._locations = locations
        self._prefix = prefix
        self._source = source

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._locations

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._locations if name.startswith(self._prefix))

    def __getitem__(self, name: str) -> bytes:
        return self._locations[self._prefix + name].read()

    def size(self, name: str) -> int:
        """Return the size of a picture in bytes."""
        return self._locations[self._prefix + name].size

    def upright_size(self, name: str) -> tuple[int, int]:
        """Return width and height of a picture as shown; 0, 0 if it is missing or damaged, so that it is left out."""
        from data_prep.decode.pictures import PictureError, upright_size

        try:
            return upright_size(self[name]) if name in self else (0, 0)
        except PictureError:
            return 0, 0

    def location(self, name: str) -> str:
        """Return the path where a picture is, or is expected."""
        location = self._locations.get(self._prefix + name)
        return str(location.path) if location else f"{self._source}/{self._prefix}{name}"


def _in_folder(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, _FileLocation]]:
    """Yield the required files below a folder, by their path including its name; follows links to folders."""
    top = folder.absolute().name if folder.name not in ("", "..") else folder.resolve().name
    visited = set()
    for inner, folders, names in os.walk(folder, followlinks=True):
        real = Path(inner).resolve()
        if real in visited:  # a link to a parent folder
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        inner_path = PurePosixPath(top, Path(inner).relative_to(folder).as_posix()).as_posix()
        for name in sorted(names):
            path = Path(inner, name)
            if pattern.fullmatch(f"{inner_path}/{name}") and path.is_file():
                yield f"{inner_path}/{name}", _FileLocation(path, 0, path.stat().st_size)


def _in_archive(archive: Path) -> Iterator[tuple[str, _FileLocation]]:
    try:
        index = tar_index(archive)
    except SourceError as error:
        raise AffsupError(f"{archive}: {error}") from None
    for name, (offset, size) in index.items():
        yield name, _FileLocation(archive, offset, size)


def _listing_record(entries: Sequence[tuple[str, str, int]]) -> FileRecord:
    listing = "".join(f"{mark}  {name}\n" for mark, name, _ in entries)
    return FileRecord(sha256=hashlib.sha256(listing.encode()).hexdigest(), bytes=sum(size for _, _, size in entries))
