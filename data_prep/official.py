"""What a data set's file says of it: where the official files are and how to read them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from affsup_cli.errors import AffsupError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Files = Mapping[str, bytes]
"""The needed files of a source, by their path below its root folder; each is read when asked for."""

Progress = Callable[[Literal["download", "images"], int, int], None]
"""Called with the step, how much of it is done and how much there is: bytes of a download, images written."""


class SourceError(AffsupError):
    """The official files are not what they should be. The message names the file within the source, not the source."""


@dataclass(frozen=True)
class Origin:
    """The official archive and what it holds.

    Attributes:
        url: Official address.
        md5: Official checksum of the archive.
        size: Bytes of the archive.
        root: The one folder at its top.
        members: Files below the root that must be there.
        images: Regular expression of the further files that are read.
        member_md5: Official checksums of files below the root, where known.
        max_bytes: The most that the files may hold together, decompressed: a guard against bombs.
        max_members: The most entries the archive may have, likewise.
    """

    url: str
    md5: str
    size: int
    root: str
    members: tuple[str, ...]
    max_bytes: int
    max_members: int
    images: str | None = None
    member_md5: Mapping[str, str] = field(default_factory=dict)

    @property
    def filename(self) -> str:
        """Name of the archive."""
        return PurePosixPath(self.url).name


@dataclass(frozen=True)
class Images:
    """The official training or test images.

    Attributes:
        labels: int64 [n].
        source_index: int64 [n], the row that the prepared data set records for each.
        blocks: From row numbers [k] to their images, uint8 [b, H, W, C] blocks, in that order.
    """

    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]
    blocks: Callable[[NDArray[np.int64]], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Official:
    """An official data set as read: class names, [C, H, W], and its two parts."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: Images
    test: Images


@dataclass(frozen=True)
class DataSet:
    """A data set that can be prepared.

    Attributes:
        name: As the command line knows it.
        summary: One line for listings.
        official_counts: Images that it has for `train` and `test`.
        read: From the files of a source to the images; raises `SourceError`.
        origin: The official archive; None where the images ship with a dependency, and `read` gets no files.
    """

    name: str
    summary: str
    official_counts: Mapping[Literal["train", "test"], int]
    read: Callable[[Files], Official]
    origin: Origin | None = None
