"""What a data set's file says of it: where the official files are and how to read them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from data_prep.origin import Archive, Files, Origin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.format import Annotations, LeftOutRecord
    from data_prep.scene_files import SceneFiles

ProgressCallback = Callable[[Literal["download", "images"], int, int], None]
"""Called with the step, how much of it is done and how much there is: bytes of a download, images written."""


@dataclass(frozen=True)
class RawSplit:
    """The official training or test images.

    Attributes:
        labels: int64 [n].
        source_index: int64 [n], the row that the prepared data set records for each.
        blocks: From row numbers [k] to their images, uint8 [b, H, W, C] blocks, in that order.
    """

    labels: NDArray[np.int64]
    source_index: NDArray[np.int64]
    blocks: Callable[[NDArray[np.int64]], Iterator[NDArray[np.uint8]]]

    @classmethod
    def from_arrays(
        cls, images: NDArray[np.uint8], labels: NDArray[np.int64], source_index: NDArray[np.int64] | None = None
    ) -> RawSplit:
        """Wrap images that are in memory.

        Args:
            images: uint8 [n, H, W, C].
            labels: int64 [n].
            source_index: int64 [n]; the row numbers 0..n-1 if None.
        """
        import numpy as np

        from data_prep.format import BLOCK

        def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
            for start in range(0, len(rows), BLOCK):
                yield np.ascontiguousarray(images[rows[start : start + BLOCK]])

        if source_index is None:
            source_index = np.arange(len(labels), dtype=np.int64)
        return cls(labels, source_index, blocks)


@dataclass(frozen=True)
class RawImages:
    """An official data set as read: class names, [C, H, W], and its two parts."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: RawSplit
    test: RawSplit


class Pictures(Protocol):
    """Encoded pictures by file name, each read when asked for."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> bytes: ...

    def size(self, name: str) -> int:
        """Bytes of a picture."""

    def where(self, name: str) -> str:
        """The place where a picture is, or is expected."""


@dataclass(frozen=True)
class RawScenes:
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
    left_out: tuple[LeftOutRecord, ...] = ()
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

    read: Callable[[Files], RawImages]
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

    read: Callable[[SceneFiles], RawScenes]
    needed: str | None = None
    wanted: str = ""
    archives: tuple[Archive, ...] = ()
    categories: bool = False

    @property
    def embedded(self) -> bool:
        """The scenes are generated."""
        return self.needed is None


AnyDataSet = ImageSet | SceneSet
