"""Read untrusted tar and zip archives. Nothing is extracted to disk; required members are read into memory.

An archive that has a link, a device or a path outside its folder is refused as a whole, even if that member is not
required: it cannot be the official archive.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data_prep.errors import SourceError, quote, shorten
from data_prep.origin import Files, Origin

_GZIP, _ZIP, _TAR = b"\x1f\x8b", b"PK\x03\x04", b"ustar"
_TAR_MAGIC_AT = 257
_MAX_HEADERS = 1 << 20  # bytes of the headers of one tar member; long names and pax records included
_MAX_DIRECTORY = 1 << 26  # bytes of the central directory of a zip archive
_MAX_TAR_MEMBERS = 500_000  # VOC2007 has 25,000
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,  # raised by zipfile for unknown features
    RuntimeError,
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
            raise _damaged_archive(error) from None
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
        shown = ", ".join(map(shorten, sorted(seen)[:4])) or "nothing"
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
        self._bytes += size
        if self._bytes > self._origin.max_bytes:
            raise SourceError(f"would unpack to more than {self._origin.max_bytes:,} bytes (at {quote(name)}); refused")
        inner = "/".join(parts[1:])
        if parts[0] != self._origin.root or not any(select([inner], self._origin)):
            return None
        if size > self._origin.max_member_bytes:
            raise SourceError(
                f"member {quote(name)} has {size:,} bytes, expected at most {self._origin.max_member_bytes:,}; refused"
            )
        if inner in self._chosen:
            raise SourceError(f"member {quote(name)} occurs twice; refused")
        self._chosen.add(inner)
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
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            bounded = _BoundedStream(file, size)
            bounded.allow(_MAX_HEADERS)
            for member in tarfile.open(fileobj=bounded, mode="r:"):  # type: ignore[call-overload]  # noqa: SIM115
                bounded.allow(_MAX_HEADERS)
                plain = (member.isreg() and not member.issparse()) or member.isdir()
                name = "/".join(_safe_parts(member.name, plain=plain))
                if name in index:
                    raise SourceError(f"member {quote(member.name)} occurs twice; refused")
                if member.offset_data + member.size > size:
                    raise SourceError(
                        f"truncated or damaged archive ({quote(member.name)} is incomplete); get it again"
                    )
                if len(index) == _MAX_TAR_MEMBERS:
                    raise SourceError(f"more than {_MAX_TAR_MEMBERS:,} members; refused")
                if member.isreg():
                    index[name] = (member.offset_data, member.size)
        except _DAMAGE as error:
            raise _damaged_archive(error) from None
    return index


def _damaged_archive(error: Exception) -> SourceError:
    return SourceError(f"truncated or damaged archive ({shorten(error) or type(error).__name__}); get it again")


def _safe_parts(name: str, *, plain: bool) -> tuple[str, ...]:
    if not plain:
        raise SourceError(f"member {quote(name)} is a link or a device, which no official archive contains; refused")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or re.match("[A-Za-z]:", parts[0]):
        raise SourceError(
            f"member {quote(name)} has a path outside the folder, which no official archive contains; refused"
        )
    return parts


def _open(file: BinaryIO, origin: Origin) -> Files:
    head = file.read(_TAR_MAGIC_AT + len(_TAR))
    file.seek(0)
    if head.startswith(_ZIP):
        return _ZipFiles(file, origin)
    if head.startswith(_GZIP):
        return _read_tar(gzip.GzipFile(fileobj=file), origin)
    if head[_TAR_MAGIC_AT:] == _TAR:
        return _read_tar(file, origin)
    raise SourceError(f"is neither a zip nor a tar archive; expected {origin.filename} from {origin.url}")


class _BoundedStream:
    """A binary stream that never reads more than allowed, whatever sizes an archive claims.

    Args:
        stream: The stream.
        limit: Maximum number of bytes in total.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._bytes_read = 0
        self._allowance = 0
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def allow(self, size: int) -> None:
        """Set the number of bytes that may be read until the next call."""
        self._allowance = size

    def read(self, size: int = -1) -> bytes:
        bound = max(0, min(self._allowance, self._limit - self._bytes_read)) + 1
        data = self._stream.read(bound if size < 0 else min(size, bound))
        self._bytes_read += len(data)
        self._allowance -= len(data)
        if self._bytes_read > self._limit:
            raise SourceError(f"unpacks to more than {self._limit:,} bytes; refused")
        if self._allowance < 0:
            raise SourceError("has larger headers than any official archive; refused")
        return data


def _read_tar(stream: BinaryIO | gzip.GzipFile, origin: Origin) -> dict[str, bytes]:
    bounded = _BoundedStream(stream, origin.max_bytes)
    selection = _Selection(origin)
    files: dict[str, bytes] = {}
    bounded.allow(_MAX_HEADERS)
    with tarfile.open(fileobj=bounded, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            chosen = selection.choose(member.name, member.size, plain=member.isreg() or member.isdir())
            bounded.allow(_MAX_HEADERS + member.size)
            if chosen and member.isreg():
                content = archive.extractfile(member)
                files[chosen] = content.read() if content else b""
    bounded.allow(origin.max_bytes)
    while bounded.read(1 << 20):  # to the end: the checksum of gzip is the last field
        pass
    selection.finish()
    return files


class _ZipFiles(Mapping[str, bytes]):
    """The required members of a zip archive; `zipfile` never reads more than the declared size of a member."""

    def __init__(self, file: BinaryIO, origin: Origin) -> None:
        self._file = _BoundedStream(file, sys.maxsize)  # members are bounded one by one
        self._file.allow(_MAX_DIRECTORY)
        self._archive = zipfile.ZipFile(self._file)
        self._members: dict[str, zipfile.ZipInfo] = {}
        selection = _Selection(origin)
        for info in self._archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            chosen = selection.choose(info.filename, info.file_size, plain=plain)
            if chosen:
                if info.flag_bits & 1:
                    raise SourceError(f"member {quote(info.filename)} is encrypted; the official archive is not")
                if info.compress_type not in _COMPRESSIONS:
                    raise SourceError(
                        f"member {quote(info.filename)} has compression method {info.compress_type}, in the official "
                        f"archive it is {zipfile.ZIP_DEFLATED} (deflate); refused"
                    )
                self._members[chosen] = info
        selection.finish()

    def __getitem__(self, name: str) -> bytes:
        member = self._members[name]
        self._file.allow(_MAX_HEADERS + member.compress_size)
        try:
            return self._archive.read(member)
        except _DAMAGE as error:
            raise SourceError(f"{name}: damaged in the archive ({shorten(error) or type(error).__name__})") from None

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
