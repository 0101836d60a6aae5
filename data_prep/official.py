"""What a data set's file says of it: where the official files are and how to read them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, Protocol

from data_prep.errors import AffsupError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.format import Annotations, LeftOut
    from data_prep.scene_files import SceneFiles

Files = Mapping[str, bytes]
"""The needed files of a source, by their path below its root folder; each is read when asked for."""

Progress = Callable[[Literal["download", "images"], int, int], None]
"""Called with the step, how much of it is done and how much there is: bytes of a download, images written."""


class SourceError(AffsupError):
    """The official files are not what they should be. The message names the file within the source, not the source."""


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


class Pictures(Protocol):
    """Encoded pictures by file name, each read when asked for."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> bytes: ...

    def size(self, name: str) -> int:
        """Bytes of a picture."""

    def where(self, name: str) -> str:
        """The place where a picture is, or is expected."""


@dataclass(frozen=True)
class OfficialScenes:
    """An official data set of scenes as read; boxes may still be outside their image and pictures missing.

    Attributes:
        classes: Class names.
        predicates: Predicate names.
        relations: Whether relations are annotated or follow from the classes.
        train: Annotations of the training images.
        test: Annotations of the test images.
        pictures: The images by the names in the annotations.
        category_ids: The publisher's number of each class; 1, 2, ... if empty.
        left_out: What the files hold that belongs to no image.
        categories: Category names, where every image has a category.
    """

    classes: tuple[str, ...]
    predicates: tuple[str, ...]
    relations: Literal["annotated", "classes"]
    train: Annotations
    test: Annotations
    pictures: Pictures
    category_ids: tuple[int, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set that can be prepared: an `ImageSet` or a `SceneSet`.

    Attributes:
        name: As the command line knows it.
        summary: One line for listings.
        official_counts: Images that it has for `train` and `test`.
    """

    name: str
    summary: str
    official_counts: Mapping[Literal["train", "test"], int]


@dataclass(frozen=True)
class ImageSet(DataSet):
    """A data set of labelled images of one size.

    Attributes:
        read: From the files of a source to the images; raises `SourceError`.
        origin: The official archive; None where the images ship with a dependency, and `read` gets no files.
    """

    read: Callable[[Files], Official]
    origin: Origin | None = None

    @property
    def embedded(self) -> bool:
        """The images ship with a dependency."""
        return self.origin is None


@dataclass(frozen=True)
class SceneSet(DataSet):
    """A data set of images with annotated objects, with a category each, or with both.

    Attributes:
        read: From the files of a source to the annotations; raises `SourceError`.
        needed: Regular expression of the paths of needed files, however deep below what is given. What its groups
            `annotation` or `picture` match is the file's name for `read`. None where `read` generates the scenes.
        wanted: What to give with `--from`, for messages.
        archives: The official archives where they can be downloaded.
        categories: Whether every image has a category.
    """

    read: Callable[[SceneFiles], OfficialScenes]
    needed: str | None = None
    wanted: str = ""
    archives: tuple[Archive, ...] = ()
    categories: bool = False

    @property
    def embedded(self) -> bool:
        """The scenes are generated."""
        return self.needed is None


AnyDataSet = ImageSet | SceneSet
