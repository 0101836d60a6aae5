"""The layout `folder`: photographs in one folder for each class, as torchvision's ImageFolder reads them.

Either `CLASS/...`, or `train/CLASS/...` with `test/CLASS/...`, `val/CLASS/...` or both. Photographs may have any size:
they are scaled so that the shorter side has the requested length, and cropped to a square about the centre.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from data_prep.errors import SourceError, UsageError, shorten
from data_prep.layouts import PICTURE, SPLIT_NAMES, draw_test
from data_prep.raw import ImageSet, Layout, RawImages, RawSplit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.sources.scene_files import FoundPictures, SceneFiles

_SIZES = range(8, 513)


def data_set(name: str, size: int) -> ImageSet:
    """Return a data set of class folders.

    Args:
        name: Name of the data set.
        size: Pixels per side of its images.

    Raises:
        UsageError: The size is out of range.
    """
    if size not in _SIZES:
        raise UsageError(f"--size {size}: expected {_SIZES.start} to {_SIZES.stop - 1} pixels")
    return ImageSet(
        name=name,
        summary=f"photographs in a folder for each class, {size}x{size}",
        official_counts={},
        read=partial(_read, size=size),
        layout=Layout(
            "folder",
            rf"(?P<annotation>(?!))|(?P<picture>(?:[^/]+/)+{PICTURE})",
            "a folder with a folder of photographs for each class, or with folders train and test of them",
            size,
        ),
    )


def _read(files: SceneFiles, size: int) -> RawImages:
    import numpy as np

    pictures = files.pictures()
    names = sorted(pictures)
    if not names:
        raise SourceError("contains no photographs in folders: expected CLASS/photo.jpg or train/CLASS/photo.jpg")
    splits = _splits(names)
    classes = sorted({label for members in splits.values() for label, _ in members})
    for split, members in splits.items():
        unknown = {label for label, _ in members}.difference(label for label, _ in splits["train"])
        if unknown:
            raise SourceError(f"class {shorten(min(unknown))} of {split} has no training images")

    def images(members: Sequence[tuple[str, str]]) -> RawSplit:
        labels = np.array([classes.index(label) for label, _ in members], dtype=np.int64)
        return _images(pictures, [name for _, name in members], labels, size)

    if set(splits) == {"train"}:
        train, test = (images([splits["train"][row] for row in rows]) for rows in draw_test(len(splits["train"])))
        return RawImages(tuple(classes), (3, size, size), train, test)
    test_split = "test" if "test" in splits else "val"
    return RawImages(
        tuple(classes),
        (3, size, size),
        images(splits["train"]),
        images(splits[test_split]),
        images(splits["val"]) if test_split == "test" and "val" in splits else None,
    )


def _splits(names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return class and path of the photographs of each split; only "train" if the folders are classes."""
    tops = {name.partition("/")[0] for name in names}
    divided = all(top.lower() in SPLIT_NAMES for top in tops)
    splits: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        top, _, rest = name.partition("/")
        if not divided:
            splits.setdefault("train", []).append((top, name))
            continue
        label, slash, _ = rest.partition("/")
        if not slash:
            raise SourceError(f"{shorten(name)}: expected a folder for each class in {top}")
        splits.setdefault(SPLIT_NAMES[top.lower()], []).append((label, name))
    if set(splits) != {"train"} and ("train" not in splits or len(splits) < 2):
        raise SourceError(f"has a folder {min(tops)}, but none of training images: expected train and test")
    return splits


def _images(pictures: FoundPictures, names: Sequence[str], labels: NDArray[np.int64], size: int) -> RawSplit:
    import numpy as np

    from data_prep.decode.parallel import decode_all
    from data_prep.store import BLOCK

    def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        encoded = ((names[row], pictures[names[row]]) for row in rows)
        return decode_all(encoded, len(rows), (size, size, 3), decode, BLOCK)

    return RawSplit(labels, np.arange(len(names)), blocks)


def decode(encoded: Sequence[tuple[str, bytes]], images: NDArray[np.uint8]) -> None:
    """Decode photographs to squares.

    Args:
        encoded: Names and contents of n files.
        images: uint8 [n, size, size, 3], to be filled.

    Raises:
        SourceError: One is damaged or too large.
    """
    from data_prep.decode.pictures import PictureError, square

    for image, (name, content) in zip(images, encoded, strict=True):
        try:
            image[:] = square(content, image.shape[0])
        except PictureError as error:
            raise SourceError(f"{shorten(name)}: {error}: repair or remove it") from None
