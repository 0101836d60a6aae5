"""Digests of a run's files: XXH3 (64 bits), about ten times as fast as CRC-32, checked when a file is read. No torch.

JSON objects hold the digest of their other entries as `xxh3`, TOML files that of the lines below in a first comment,
and checkpoints (zip archives) that of the bytes before it in the archive's comment. A file without a digest was written
by an older version: text is then read unchecked, and of a checkpoint the CRC-32 of each zip member is checked.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import xxhash

KEY = "xxh3"
_DIGEST = re.compile("[0-9a-f]{16}")
_COMMENT = re.compile(rb"# xxh3: ([0-9a-f]{16})\n")
_ARCHIVE_COMMENT = b"affsup xxh3 "
_ARCHIVE_COMMENT_BYTES = len(_ARCHIVE_COMMENT) + 16
_CHUNK_BYTES = 2**20


class DigestError(ValueError):
    """The content of a file differs from what was written."""

    def __init__(self, what: str = "its content differs from its digest") -> None:
        super().__init__(what)


def with_digest(content: Mapping[str, object]) -> dict[str, object]:
    """Return a JSON object with its digest as the last entry."""
    return {**content, KEY: _json_digest(content)}


def without_digest(content: dict[str, object]) -> dict[str, object]:
    """Check and remove the digest of a JSON object.

    Raises:
        DigestError: the digest is that of another content, or its name is damaged.
    """
    rest = {key: value for key, value in content.items() if key != KEY}
    if KEY in content and content[KEY] != _json_digest(rest):
        raise DigestError
    if KEY not in content and content:
        last, value = next(reversed(content.items()))
        if len(last) == len(KEY) and isinstance(value, str) and _DIGEST.fullmatch(value):
            raise DigestError(f"its last entry is {last!r} where a digest has {KEY!r}")
    return rest


def _json_digest(content: Mapping[str, object]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def toml_with_digest(text: str) -> str:
    """Return a TOML text with its digest in a first comment."""
    return f"# xxh3: {xxhash.xxh3_64_hexdigest(text.encode())}\n{text}"


def check_toml(content: bytes) -> None:
    """Check the digest of `toml_with_digest`, if there is one.

    Raises:
        DigestError: the digest is that of another text.
    """
    comment = _COMMENT.match(content)
    if comment and xxhash.xxh3_64_hexdigest(content[comment.end() :]).encode() != comment[1]:
        raise DigestError


def add_archive_digest(path: Path) -> None:
    """Append the digest to a zip archive that has no comment yet, such as a file of `torch.save`."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the length of the archive's comment
        file.write(_ARCHIVE_COMMENT_BYTES.to_bytes(2, "little"))
        digest = _file_digest(file, file.tell())
        file.write(_ARCHIVE_COMMENT + digest)


def check_archive(path: Path) -> None:
    """Check the digest of `add_archive_digest`; without one, the CRC-32 of each member.

    Raises:
        DigestError: the archive is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _ARCHIVE_COMMENT_BYTES))
        comment = file.read(_ARCHIVE_COMMENT_BYTES)
        if comment.startswith(_ARCHIVE_COMMENT):
            if _ARCHIVE_COMMENT + _file_digest(file, size - _ARCHIVE_COMMENT_BYTES) != comment:
                raise DigestError
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        raise DigestError(str(error)) from error
    if damaged:
        raise DigestError


def _file_digest(file: BinaryIO, size: int) -> bytes:
    """Return the digest of the first `size` bytes, and leave the position behind them."""
    total = xxhash.xxh3_64()
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    file.seek(0)
    while size:
        count = file.readinto(chunk[: min(size, _CHUNK_BYTES)])  # type: ignore[attr-defined]
        if not count:
            raise DigestError("it was truncated while it was read")
        total.update(chunk[:count])
        size -= count
    return total.hexdigest().encode()
