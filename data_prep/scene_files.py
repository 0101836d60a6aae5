"""The official files of a data set of scenes: found below the folders, or in the tar archives, that are given."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.archive import tar_index
from data_prep.errors import AffsupError, SourceError
from data_prep.format import FileRecord


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a file are: in a file of its own or in an archive."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) != self.size:
            raise SourceError(f"{self.path}: changed while it was read; run again")
        return content


class SceneFiles:
    """The needed files of the given places together, each read when asked for; of two, the one given first.

    Raises:
        AffsupError: An archive is damaged, hostile or of another kind.
    """

    def __init__(self, sources: Sequence[Path], needed: str, wanted: str) -> None:
        self._wanted = wanted
        self._sources = sources
        self._annotations: dict[str, _Place] = {}
        self._pictures: dict[str, _Place] = {}
        pattern = re.compile(rf"(?:.*/)?(?:{needed})")
        for source in sources:
            for name, place in _in_archive(source) if source.is_file() else _in_folder(source, pattern):
                if match := pattern.fullmatch(name):
                    found = self._annotations if match["annotation"] else self._pictures
                    found.setdefault(match["annotation"] or match["picture"], place)

    @property
    def annotations(self) -> Sequence[str]:
        """Names of the annotation files that were found."""
        return list(self._annotations)

    def annotation(self, name: str) -> bytes:
        """The content of an annotation file.

        Raises:
            SourceError: It was not found.
        """
        if name not in self._annotations:
            raise SourceError(f"has no {name}; expected {self._wanted}")
        return self._annotations[name].read()

    def json(self, name: str) -> Any:
        """What an annotation file in JSON says.

        Raises:
            SourceError: It was not found, or is no JSON.
        """
        try:
            return json.loads(self.annotation(name))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{name}: is not JSON ({error})") from None

    def pictures(self, prefix: str = "") -> FoundPictures:
        """The pictures whose names begin so, by the rest of their names."""
        return FoundPictures(self._pictures, prefix, str(self._sources[0]))

    def records(self) -> dict[str, FileRecord]:
        """What a manifest keeps of the files.

        That is the checksum of each annotation file, or, for those of a folder of them, of its `sha256sum` listing; and
        of the pictures that of the listing of their sizes, as their content is in the prepared data set's digest.
        """
        listings: dict[str, list[tuple[str, str, int]]] = {}
        for name, place in sorted(self._annotations.items()):
            folder = str(PurePosixPath(name).parent)
            content = place.read()
            entry = (hashlib.sha256(content).hexdigest(), name, len(content))
            listings.setdefault(name if folder == "." else folder, []).append(entry)
        records = {
            name: FileRecord(sha256=entries[0][0], bytes=entries[0][2]) if entries[0][1] == name else _listed(entries)
            for name, entries in listings.items()
        }
        sizes = [(str(place.size), name, place.size) for name, place in sorted(self._pictures.items())]
        return records | {"pictures": _listed(sizes)}


class FoundPictures:
    """Encoded pictures by file name; see `data_prep.raw.Pictures`."""

    def __init__(self, places: Mapping[str, _Place], prefix: str, source: str) -> None:
        self._places = places
        self._prefix = prefix
        self._source = source

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._places

    def __getitem__(self, name: str) -> bytes:
        return self._places[self._prefix + name].read()

    def size(self, name: str) -> int:
        """Bytes of a picture."""
        return self._places[self._prefix + name].size

    def where(self, name: str) -> str:
        """The place where a picture is, or is expected."""
        place = self._places.get(self._prefix + name)
        return str(place.path) if place else f"{self._source}/{self._prefix}{name}"


def _in_folder(folder: Path, needed: re.Pattern[str]) -> Iterator[tuple[str, _Place]]:
    """The needed files below a folder, links to folders followed, by their path from the folder's own name on."""
    top = folder.absolute().name if folder.name not in ("", "..") else folder.resolve().name
    visited = set()
    for inner, folders, names in os.walk(folder, followlinks=True):
        real = Path(inner).resolve()
        if real in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        here = PurePosixPath(top, Path(inner).relative_to(folder).as_posix()).as_posix()
        for name in sorted(names):
            path = Path(inner, name)
            if needed.fullmatch(f"{here}/{name}") and path.is_file():
                yield f"{here}/{name}", _Place(path, 0, path.stat().st_size)


def _in_archive(archive: Path) -> Iterator[tuple[str, _Place]]:
    try:
        index = tar_index(archive)
    except SourceError as error:
        raise AffsupError(f"{archive}: {error}") from None
    for name, (offset, size) in index.items():
        yield name, _Place(archive, offset, size)


def _listed(entries: Sequence[tuple[str, str, int]]) -> FileRecord:
    listing = "".join(f"{mark}  {name}\n" for mark, name, _ in entries)
    return FileRecord(sha256=hashlib.sha256(listing.encode()).hexdigest(), bytes=sum(size for _, _, size in entries))
