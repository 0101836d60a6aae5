"""Types for data sets as read from their official files, and for how to read them. Imports no large library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from data_prep.errors import SourceError, printable, quote
from data_prep.origin import Archive, Files, Origin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.sources.scene_files import SceneFiles
    from data_prep.store import Annotations, LeftOutRecord


MAX_NAME = 200  # characters of the name of a class, category or predicate


def check_names(kind: str, names: Sequence[str], longest: int) -> None:
    """Check that names can be stored and shown.

    Raises:
        SourceError: A name is empty, longer than `longest` characters, or has control characters or line breaks.
    """
    for number, name in enumerate(names, start=1):
        if not 0 < len(name) <= longest or printable(name) != name or len(name.splitlines()) > 1:
            expected = f"1 to {longest} characters without control characters"
            raise SourceError(f"the name of {kind} {number} is {quote(name)}, expected {expected}")


@dataclass(frozen=True)
class RawSplit:
    """The official training or test images.

    Attributes:
        labels: int64 [n].
        source_index: int64 [n], the row number of each image that the prepared data set records.
        blocks: Returns the images of row numbers [k] in that order, as blocks uint8 [b, H, W, C].
    """

    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]
    blocks: Callable[[NDArray[np.int64]], Iterator[NDArray[np.uint8]]]

    @classmethod
    def from_arrays(
        cls, images: NDArray[np.uint8], labels: NDArray[np.int64], source_index: NDArray[np.int64] | None = None
    ) -> RawSplit:
        """Create it from images in memory.

        Args:
            images: uint8 [n, H, W, C].
            labels: int64 [n].
            source_index: int64 [n]; None for 0..n-1.
        """
        import numpy as np

        from data_prep.store import BLOCK

        def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
            for start in range(0, len(rows), BLOCK):
                yield np.ascontiguousarray(images[rows[start : start + BLOCK]])

        if source_index is None:
            source_index = np.arange(len(labels), dtype=np.int64)
        return cls(labels, source_index, blocks)


@dataclass(frozen=True)
class RawImages:
    """A data set of labelled images: class names, [C, H, W], and its parts.

    `val` is None if the validation split is to be drawn from the training images.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: RawSplit
    test: RawSplit
    val: RawSplit | None = None


class Pictures(Protocol):
    """Encoded pictures by file name, each read on access."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> bytes: ...

    def size(self, name: str) -> int:
        """Return the size of a picture in bytes."""

    def location(self, name: str) -> str:
        """Return the path where a picture is, or is expected."""


@dataclass(frozen=True)
class RawScenes:
    """An official data set of scenes as annotated; boxes may be outside their image, and pictures may be missing.

    Attributes:
        classes: Class names.
        predicates: Predicate names.
        relations: Whether relations are annotated or derived from the classes.
        train: Annotations of the training images.
        test: Annotations of the test images.
        val: Annotations of the official validation images; None if there are none.
        pictures: The images, by the names in the annotations.
        category_ids: The publisher's number of each class; 1, 2, ... if empty.
        left_out: Annotations in the files that belong to no image.
        categories: Category names; empty if images have no category.
    """

    classes: tuple[str, ...]
    predicates: tuple[str, ...]
    relations: Literal["annotated", "classes"]
    train: Annotations
    test: Annotations
    pictures: Pictures
    category_ids: tuple[int, ...] = ()
    val: Annotations | None = None
    left_out: tuple[LeftOutRecord, ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The layout of the files of a user-defined data set, all in one folder.

    Attributes:
        name: Name on the command line.
        file_pattern: Regular expression for the paths of files below the folder, with the groups `annotation` and
            `picture`.
        source_help: The folder to give with `--from`, for messages.
        size: Pixels per side of the images that are written; None if they keep their size.
    """

    name: str
    file_pattern: str
    source_help: str
    size: int | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set that can be prepared: an `ImageSet` or a `SceneSet`.

    Attributes:
        name: Name on the command line.
        summary: One line for listings.
        official_counts: Number of its official `train` and `test` images; empty if any number is complete.
        layout: The layout of its files, if it is user-defined; `read` then gets all files of one folder.
        defined_in: The Python file that defines it; None if it is part of an installed package, or has a layout.
    """

    name: str
    summary: str
    official_counts: Mapping[Literal["train", "test"], int]
    layout: Layout | None = field(default=None, kw_only=True)
    defined_in: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class ImageSet(DataSet):
    """A data set of labelled images of one size.

    Attributes:
        read: Reads the images from the files of a source; raises `SourceError`.
        origin: The official archive; None if the images are part of an installed library, so that `read` gets no files.
        from_parquet: Returns the files of the archive from the parquet files in a folder, as a data set of the Hugging
            Face hub has them; None if there is no such data set. Raises `SourceError`.
    """

    read: Callable[[Files], RawImages] | Callable[[SceneFiles], RawImages]
    origin: Origin | None = None
    from_parquet: Callable[[Path], Files] | None = field(default=None, kw_only=True)

    @property
    def embedded(self) -> bool:
        """Whether the images are part of an installed library."""
        return self.origin is None and self.layout is None


@dataclass(frozen=True)
class SceneSet(DataSet):
    """A data set of images with annotated objects, with a category each, or with both.

    Attributes:
        read: Reads the annotations from the files of a source; raises `SourceError`.
        file_pattern: Regular expression for the paths of required files, relative to any folder of the source. Its
            groups `annotation` and `picture` match the file name for `read`. None if `read` generates the scenes.
        source_help: The sources to give with `--from`, for messages.
        archives: The official archives, if they can be downloaded.
        categories: Whether every image has a category.
    """

    read: Callable[[SceneFiles], RawScenes]
    file_pattern: str | None = None
    source_help: str = ""
    archives: tuple[Archive, ...] = ()
    categories: bool = False

    @property
    def embedded(self) -> bool:
        """Whether the scenes are generated."""
        return self.file_pattern is None and self.layout is None


AnyDataSet = ImageSet | SceneSet
