"""Where official files come from: an archive's address, checksums and limits. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

Files = Mapping[str, bytes]
"""The needed files of a source, by their path below its root folder; each is read when asked for."""


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Attributes:
        url: Official address.
        md5: Official checksum.
        size: Bytes.
    """

    url: str
    md5: str
    size: int

    @property
    def filename(self) -> str:
        """Name of the archive."""
        return PurePosixPath(self.url).name


@dataclass(frozen=True)
class Origin(Archive):
    """The official archive of labelled images and what it holds.

    Attributes:
        root: The one folder at its top.
        members: Files below the root that must be there.
        images: Regular expression of the further files that are read.
        member_md5: Official checksums of files below the root, where known.
        max_bytes: The most that the files may hold together, decompressed: a guard against bombs.
        max_members: The most entries the archive may have, likewise.
    """

    root: str
    members: tuple[str, ...]
    max_bytes: int
    max_members: int
    images: str | None = None
    member_md5: Mapping[str, str] = field(default_factory=dict)
