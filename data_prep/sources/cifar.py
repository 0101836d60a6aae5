"""Read the files of CIFAR-10 and CIFAR-100: pickled batches with rows of 3,072 bytes (red, green, blue planes)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import SourceError, shorten
from data_prep.origin import Files
from data_prep.raw import RawImages, RawSplit
from data_prep.sources.cifar_pickle import load

_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE
_MAX_NAME = 100  # characters of a class name


def read_cifar(
    files: Files, *, train: Sequence[str], test: str, meta: str, labels_key: str, names_key: str, class_count: int
) -> RawImages:
    """Read the batches of a CIFAR data set.

    Args:
        files: The files below the archive's root folder.
        train: Names of the training batches, in order.
        test: Name of the test batch.
        meta: Name of the file with the class names.
        labels_key: Key of the labels in a batch.
        names_key: Key of the class names in the meta file.
        class_count: Number of classes.

    Raises:
        SourceError: A file is damaged, calls something when unpickled, or has other content than expected.
    """
    names = _entry(meta, load(meta, files[meta]), names_key)
    if not isinstance(names, list) or len(names) != class_count or not all(map(_is_class_name, names)):
        raise SourceError(
            f"{meta}: {names_key!r} is not a list of {class_count} class names of at most {_MAX_NAME} characters"
        )
    classes = tuple(name.decode("latin-1") if isinstance(name, bytes) else name for name in names)

    def part(batches: Sequence[str]) -> RawSplit:
        read = [_read_batch(name, files[name], labels_key, class_count) for name in batches]
        rows = np.concatenate([data for data, _ in read])
        images = rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
        return RawSplit.from_arrays(images, np.concatenate([labels for _, labels in read]))

    return RawImages(classes, (3, _SIDE, _SIDE), part(train), part([test]))


def _read_batch(
    name: str, pickled: bytes, labels_key: str, class_count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = load(name, pickled)
    data, labels = _entry(name, batch, "data"), _entry(name, batch, labels_key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _VALUES:
        found = list(data.shape) if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise SourceError(f"{name}: 'data' is {found}, expected uint8 [n, {_VALUES}]")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < class_count for label in labels):
        raise SourceError(f"{name}: {labels_key!r} is not a list of integers in 0..{class_count - 1}")
    if len(labels) != len(data) or not labels:
        raise SourceError(f"{name}: {len(data)} images and {len(labels)} labels")
    return data, np.array(labels, dtype=np.int64)


def _is_class_name(value: object) -> bool:
    return isinstance(value, str | bytes) and len(value) <= _MAX_NAME


def _entry(name: str, batch: dict[str, object], key: str) -> object:
    if key not in batch:
        found = ", ".join(shorten(each) for each in sorted(batch)[:8])
        raise SourceError(f"{name}: has no {key!r}; found {found or 'nothing'}")
    return batch[key]
