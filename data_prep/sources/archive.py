"""Read untrusted tar and zip archives. Nothing is extracted to disk; required members are read into memory.

An archive that has a link, a device or a path outside its folder is refused as a whole, even if that member is not
required: it cannot be the official archive.
"""

from __future__ import annotations

import gzip
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data_prep.errors import SourceError
from data_prep.origin import Files, Origin

_GZIP, _ZIP, _TAR = b"\x1f\x8b", b"PK\x03\x04", b"ustar"
_TAR_MAGIC_AT = 257
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,  # raised by zipfile for an unknown compression method
)


@contextmanager
def open_archive(path: Path, origin: Origin) -> Iterator[Files]:
    """Open an archive; its format is detected from its content, not its name.

    Args:
        path: The archive.
        origin: The members that it should contain, and its limits.

    Yields:
        The required files, by their path below `origin.root`.

    Raises:
        SourceError: It is not an archive, or is damaged, malicious, too large or a different archive.
    """
    with path.open("rb") as file:
        try:
            files = _open(file, origin)
        except _DAMAGE as error:
            raise SourceError(f"truncated or damaged archive ({error or type(error).__name__}); get it again") from None
        yield files


def select(names: Iterable[str], origin: Origin) -> Iterator[str]:
    """Yield those of the names below the root folder that the data set requires."""
    images = re.compile(origin.images) if origin.images else None
    for name in names:
        if name in origin.members or (images and images.fullmatch(name)):
            yield name


def require_members(found: Iterable[str], seen: Iterable[str], origin: Origin) -> None:
    """Check that no required file is missing.

    Raises:
        SourceError: A file is missing; the message lists some of the files that were found.
    """
    missing = sorted(set(origin.members).difference(found))
    if missing:
        more = f" nor {len(missing) - 1} more" if len(missing) > 1 else ""
        shown = ", ".join(sorted(seen)[:4]) or "nothing"
        raise SourceError(
            f"has no {origin.root}/{missing[0]}{more}; found {shown}. "
            f"Expected what {origin.filename} holds ({origin.url})"
        )


class _Selection:
    """Selects the required members of an archive, and refuses members that no official archive has."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._seen: list[str] = []
        self._chosen: set[str] = set()
        self._bytes = 0

    def choose(self, name: str, size: int, *, plain: bool) -> str | None:
        """Return the path of a required member below the root folder; None if the member is not required."""
        parts = _safe_parts(name, plain=plain)
        self._seen.append("/".join(parts))
        if len(self._seen) > self._origin.max_members:
            raise SourceError(f"more than {self._origin.max_members:,} members; not {self._origin.filename}, refused")
        inner = "/".join(parts[1:])
        if parts[0] != self._origin.root or not any(select([inner], self._origin)):
            return None
        if inner in self._chosen:
            raise SourceError(f"member {name!r} occurs twice; refused")
        self._chosen.add(inner)
        self._bytes += size
        if self._bytes > self._origin.max_bytes:
            raise SourceError(f"would unpack to more than {self._origin.max_bytes:,} bytes (at {name!r}); refused")
        return inner

    def finish(self) -> None:
        require_members(self._chosen, self._seen, self._origin)


def tar_index(path: Path) -> dict[str, tuple[int, int]]:
    """Return the position of each file in an uncompressed tar archive.

    Args:
        path: The archive.

    Returns:
        Offset and size in bytes, by path of the member.

    Raises:
        SourceError: It is not an uncompressed tar archive, or is damaged or malicious.
    """
    index: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        if file.read(_TAR_MAGIC_AT + len(_TAR))[_TAR_MAGIC_AT:] != _TAR:
            raise SourceError(
                "is not an uncompressed tar archive: give the folder that contains it, or the extracted folder"
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    plain = (member.isreg() and not member.issparse()) or member.isdir()
                    name = "/".join(_safe_parts(member.name, plain=plain))
                    if name in index:
                        raise SourceError(f"member {member.name!r} occurs twice; refused")
                    if member.isreg():
                        index[name] = (member.offset_data, member.size)
        except _DAMAGE as error:
            raise SourceError(f"truncated or damaged archive ({error or type(error).__name__}); get it again") from None
    return index


def _safe_parts(name: str, *, plain: bool) -> tuple[str, ...]:
    if not plain:
        raise SourceError(f"member {name!r} is a link or a device, which no official archive contains; refused")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or re.match("[A-Za-z]:", parts[0]):
        raise SourceError(f"member {name!r} has a path outside the folder, which no official archive contains; refused")
    return parts


def _open(file: BinaryIO, origin: Origin) -> Files:
    head = file.read(_TAR_MAGIC_AT + len(_TAR))
    file.seek(0)
    if head.startswith(_ZIP):
        return _ZipFiles(zipfile.ZipFile(file), origin)
    if head.startswith(_GZIP):
        return _read_tar(gzip.GzipFile(fileobj=file), origin)
    if head[_TAR_MAGIC_AT:] == _TAR:
        return _read_tar(file, origin)
    raise SourceError(f"is neither a zip nor a tar archive; expected {origin.filename} from {origin.url}")


class _CappedStream:
    """A stream that raises after a number of bytes, whatever size a compressed file claims."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._bytes_read = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._bytes_read += len(data)
        if self._bytes_read > self._limit:
            raise SourceError(f"unpacks to more than {self._limit:,} bytes; refused")
        return data


def _read_tar(stream: BinaryIO | gzip.GzipFile, origin: Origin) -> dict[str, bytes]:
    capped = _CappedStream(stream, origin.max_bytes)
    selection = _Selection(origin)
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=capped, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            chosen = selection.choose(member.name, member.size, plain=member.isreg() or member.isdir())
            if chosen and member.isreg():
                content = archive.extractfile(member)
                files[chosen] = content.read() if content else b""
    while capped.read(1 << 20):  # to the end: gzip's checksum is the last field
        pass
    selection.finish()
    return files


class _ZipFiles(Mapping[str, bytes]):
    """The required members of a zip archive; `zipfile` never reads more than the declared size of a member."""

    def __init__(self, archive: zipfile.ZipFile, origin: Origin) -> None:
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        selection = _Selection(origin)
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            chosen = selection.choose(info.filename, info.file_size, plain=plain)
            if chosen:
                if info.flag_bits & 1:
                    raise SourceError(f"member {info.filename!r} is encrypted; the official archive is not")
                self._members[chosen] = info
        selection.finish()

    def __getitem__(self, name: str) -> bytes:
        try:
            return self._archive.read(self._members[name])
        except _DAMAGE as error:
            raise SourceError(f"{name}: damaged in the archive ({error or type(error).__name__})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
