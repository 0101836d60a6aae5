"""Tiny ImageNet: 64x64 JPEGs in the official zip archive.

`wnids.txt` gives the classes and their order, `words.txt` their names. The official validation images are the test
set, as the official test labels are not public (paper 6.1).
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from data_prep.errors import SourceError, quote, shorten
from data_prep.origin import Files, Origin
from data_prep.raw import ImageSet, RawImages, RawSplit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIDE = 64
_TRAIN_IMAGE = re.compile(r"train/(n\d{8})/images/\1_(\d{1,9})\.JPEG")
_ANNOTATIONS = "val/val_annotations.txt"
_PARQUET = re.compile(r"(?P<split>train|valid)-\d{5}-of-\d{5}(-[0-9a-f]{1,40})?\.parquet")
_MAX_LIST = 10_000_000  # bytes of a list beside the parquet files


def _read(files: Files) -> RawImages:
    wnids = _lines(files, "wnids.txt")
    index = {wnid: i for i, wnid in enumerate(wnids)}
    if len(index) != len(wnids):
        raise SourceError("wnids.txt: lists a class twice")
    words = dict(line.split("\t", 1) for line in _lines(files, "words.txt") if "\t" in line)
    unnamed = [wnid for wnid in wnids if wnid not in words]
    if unnamed:
        raise SourceError(f"words.txt: has no name for class {quote(unnamed[0])} of wnids.txt")
    return RawImages(
        classes=tuple(words[wnid] for wnid in wnids),
        image_shape=(3, _SIDE, _SIDE),
        train=_images(files, _train_members(files, index)),
        test=_images(files, _test_members(files, index)),
    )


def _train_members(files: Files, index: dict[str, int]) -> list[tuple[str, int]]:
    """Return files and labels, ordered by class and then by image number."""
    found = []
    for name in files:
        if match := _TRAIN_IMAGE.fullmatch(name):
            if match[1] not in index:
                raise SourceError(f"{name}: its class is not in wnids.txt")
            found.append((index[match[1]], int(match[2]), name))
    empty = set(index.values()).difference(label for label, _, _ in found)
    if empty:
        raise SourceError(f"class {quote(list(index)[min(empty)])} of wnids.txt has no training images")
    return [(name, label) for label, _, name in sorted(found)]


def _test_members(files: Files, index: dict[str, int]) -> list[tuple[str, int]]:
    """Return files and labels of the official validation images, in the order of their annotations."""
    found = []
    for number, line in enumerate(_lines(files, _ANNOTATIONS), start=1):
        image, wnid = [*line.split("\t"), ""][:2]
        name = f"val/images/{image}"
        if wnid not in index or name not in files:
            what = (
                f"image {quote(image)}, which is missing" if wnid in index else f"class {quote(wnid)}, not in wnids.txt"
            )
            raise SourceError(f"{_ANNOTATIONS} line {number}: names {what}")
        found.append((name, index[wnid]))
    return found


def _from_parquet(folder: Path) -> Files:
    """Return the files of the archive from the parquet files of the hub's data set zh-plus/tiny-imagenet.

    Its labels are named by the classes' ids. The order of the classes and their names are those of `wnids.txt` and
    `words.txt` if these lie in the folder, too; else the order is that of the labels, and the ids are the names.
    Images have the number in their file name, or in their class if they have no file name.
    """
    from data_prep.sources.parquet import parquet_files, read_labelled_images

    limits = _ORIGIN
    files: dict[str, bytes] = {}
    wnids: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    numbers = Counter[str]()
    for path in parquet_files(folder):
        part = _PARQUET.fullmatch(path.name)
        if not part:
            continue
        room = limits.max_bytes - sum(map(len, files.values()))
        images = read_labelled_images(path, limits.max_members - len(files), room, limits.max_member_bytes)
        wnids = wnids or images.labels
        unknown = [label for label in images.labels if not re.fullmatch(r"n\d{8}", label)]
        if unknown:
            raise SourceError(f"{path.name}: names a label {quote(unknown[0])}, expected ids such as n02124075")
        if images.labels != wnids:
            raise SourceError(f"{path.name}: names other labels than the files before")
        for content, named, label in images.rows:
            place = wnids[label] if part["split"] == "train" else "val"
            stem = PurePosixPath(named).stem
            if not re.fullmatch(rf"{place}_\d{{1,9}}", stem):
                stem = f"{place}_{numbers[place]}"
            numbers[place] += 1
            name = f"train/{place}/images/{stem}.JPEG" if part["split"] == "train" else f"val/images/{stem}.JPEG"
            if name in files:
                raise SourceError(f"{path.name}: has several images {quote(stem)}")
            files[name] = content
            if place == "val":
                annotations[stem] = wnids[label]
    if not annotations or len(files) == len(annotations):
        raise SourceError("contains no train-*.parquet and valid-*.parquet with images")
    in_order = sorted(annotations, key=lambda stem: int(stem.removeprefix("val_")))
    files[_ANNOTATIONS] = "".join(f"{stem}.JPEG\t{annotations[stem]}\n" for stem in in_order).encode()
    files["wnids.txt"] = _list_or(folder / "wnids.txt", "\n".join(wnids))
    files["words.txt"] = _list_or(folder / "words.txt", "".join(f"{wnid}\t{wnid}\n" for wnid in wnids))
    return files


def _list_or(path: Path, text: str) -> bytes:
    if not path.is_file():
        return text.encode()
    if path.stat().st_size > _MAX_LIST:
        raise SourceError(f"{path.name} has {path.stat().st_size:,} bytes, expected at most {_MAX_LIST:,}; refused")
    return path.read_bytes()


def _images(files: Files, members: Sequence[tuple[str, int]]) -> RawSplit:
    import numpy as np

    from data_prep.decode.parallel import decode_all
    from data_prep.store import BLOCK

    names = [name for name, _ in members]

    def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        encoded = ((names[row], files[names[row]]) for row in rows)
        return decode_all(encoded, len(rows), (_SIDE, _SIDE, 3), decode, BLOCK)

    return RawSplit(np.array([label for _, label in members], dtype=np.int64), np.arange(len(members)), blocks)


def decode(encoded: Sequence[tuple[str, bytes]], images: NDArray[np.uint8]) -> None:
    """Decode JPEGs, grey ones included.

    Args:
        encoded: Names and contents of n files.
        images: uint8 [n, 64, 64, 3], to be filled.

    Raises:
        SourceError: One is damaged or of another size.
    """
    import numpy as np
    from PIL import Image

    for i, (name, jpeg) in enumerate(encoded):
        try:
            with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
                if image.size != (_SIDE, _SIDE):
                    raise SourceError(f"{name}: is {image.size[0]}x{image.size[1]}, expected {_SIDE}x{_SIDE}")
                images[i] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise SourceError(f"{name}: cannot be decoded ({shorten(error)})") from None


def _lines(files: Files, name: str) -> list[str]:
    return files[name].decode("utf-8", errors="replace").splitlines()


_ORIGIN = Origin(
    url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    size=248_100_043,
    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    mirrors=("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
    root="tiny-imagenet-200",
    members=("wnids.txt", "words.txt", _ANNOTATIONS),
    images=r"(train/n\d{8}/images/n\d{8}_\d{1,9}|val/images/val_\d{1,9})\.JPEG",
    max_bytes=1_000_000_000,
    max_members=500_000,
    max_member_bytes=10_000_000,
)

DATASET = ImageSet(
    name="tiny-imagenet",
    summary="Tiny ImageNet: 100,000 + 10,000 photographs, 64x64, 200 classes",
    official_counts={"train": 100_000, "test": 10_000},
    read=_read,
    from_parquet=_from_parquet,
    origin=_ORIGIN,
)
