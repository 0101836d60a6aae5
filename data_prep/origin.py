"""Origin of official files: address, checksums and limits of an archive; the progress callback.

Imports no large library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

Files = Mapping[str, bytes]
"""The required files of a source, by their path below its root folder; each is read on access."""

ProgressCallback = Callable[[Literal["download", "images"], int, int], None]
"""Called with the step, the amount done and the total amount: bytes of a download, or written images."""


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Attributes:
        url: Official address.
        md5: Official checksum.
        size: Size in bytes.
        mirrors: Further addresses of the same bytes, in the order in which they are tried.
        sha256: SHA-256, if known.
    """

    url: str
    md5: str
    size: int
    mirrors: tuple[str, ...] = field(default=(), kw_only=True)
    sha256: str | None = field(default=None, kw_only=True)

    @property
    def filename(self) -> str:
        """File name of the archive."""
        return PurePosixPath(self.url).name


@dataclass(frozen=True)
class Origin(Archive):
    """The official archive of labelled images, its content and its limits.

    Attributes:
        root: The only top-level folder.
        members: Required files below the root.
        images: Regular expression of further files below the root that are read.
        member_md5: Official checksums of files below the root, if known.
        max_bytes: Maximum total size of the files, decompressed: protects against decompression bombs.
        max_members: Maximum number of members of the archive, for the same reason.
        max_member_bytes: Maximum size of a required file, decompressed, for the same reason.
    """

    root: str
    members: tuple[str, ...]
    max_bytes: int
    max_members: int
    max_member_bytes: int
    images: str | None = None
    member_md5: Mapping[str, str] = field(default_factory=dict)
