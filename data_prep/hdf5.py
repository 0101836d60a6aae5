"""Read HDF5 files of unknown origin: no other file is opened, and sizes are checked before memory is used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from data_prep.errors import AffsupError, quote, shorten, unreadable


class Hdf5Error(Exception):
    """An HDF5 file is damaged, refers to other files, or has other content than expected."""


@contextmanager
def open_hdf5(file: Path | BinaryIO) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        FileNotFoundError: It does not exist.
        AffsupError: The system does not let it be read.
        Hdf5Error: It is damaged; also raised for errors of h5py while it is open.
    """
    try:
        with h5py.File(file, "r", locking=False) as h5:  # files are replaced as a whole; NFS may have no locks
            yield h5
    except FileNotFoundError:
        raise
    except OSError as error:
        if isinstance(file, Path) and error.errno:  # h5py gives none for a damaged file
            raise AffsupError(unreadable(file, error)) from error
        raise Hdf5Error(shorten(error)) from None
    # the errors that h5py raises for damaged files
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise Hdf5Error(shorten(error)) from None


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return a group or data set that is stored in the file itself.

    Raises:
        Hdf5Error: It does not exist, or is a soft or external link, or its values are stored in other files.
    """
    link = group.get(name, getlink=True)
    path = _path(group, name)
    if link is None:
        found = ", ".join(map(shorten, sorted(group)[:8])) or "nothing"
        raise Hdf5Error(f"has no {quote(path)}; found {found}")
    if not isinstance(link, h5py.HardLink):
        raise Hdf5Error(f"{quote(path)} is a link to another path or file; refused")
    item = group[name]
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise Hdf5Error(f"the values of {quote(path)} are stored in another file; refused")
    return item


def subgroup(group: h5py.Group, name: str) -> h5py.Group:
    """Return a group that is stored in the file itself.

    Raises:
        Hdf5Error: See `member`; also if it is not a group.
    """
    item = member(group, name)
    if not isinstance(item, h5py.Group):
        raise Hdf5Error(f"{quote(item.name)} is a data set, expected a group")
    return item


def dataset(group: h5py.Group, name: str, kinds: str, shape: Sequence[int | None], max_bytes: int) -> h5py.Dataset:
    """Return a data set that is safe to read as a whole.

    Args:
        group: The group that contains it.
        name: Its name in the group.
        kinds: Allowed kinds of its type, as in `numpy.dtype.kind`; "O" for strings of variable length.
        shape: Its shape; None for an axis of any length.
        max_bytes: Maximum size in memory.

    Raises:
        Hdf5Error: See `member`; also if it is a group, or has another type or shape, or is too large.
    """
    item = member(group, name)
    path = quote(_path(group, name))
    if not isinstance(item, h5py.Dataset):
        raise Hdf5Error(f"{path} is a group, expected a data set")
    expected = "[" + ", ".join("n" if length is None else str(length) for length in shape) + "]"
    kind = item.dtype.kind if item.dtype.kind != "O" or h5py.check_string_dtype(item.dtype) else "reference"
    if item.shape is None or len(item.shape) != len(shape) or kind not in tuple(kinds):
        found = f"{shorten(item.dtype)} {shorten(None if item.shape is None else list(item.shape))}"
        raise Hdf5Error(f"{path} is {found}, expected {_words(kinds)} {expected}")
    if any(length not in (None, found) for length, found in zip(shape, item.shape, strict=True)):
        raise Hdf5Error(f"{path} has shape {list(item.shape)}, expected {expected}")
    chunk = math.prod(item.chunks) if item.chunks else 0
    if max(item.size, chunk) * item.dtype.itemsize > max_bytes:
        size = max(item.size, chunk) * item.dtype.itemsize
        raise Hdf5Error(f"{path} would take {size:,} bytes, expected at most {max_bytes:,}; refused")
    return item


def read(group: h5py.Group, name: str, kinds: str, shape: Sequence[int | None], max_bytes: int) -> NDArray[Any]:
    """Read a data set of numbers; see `dataset`."""
    return np.asarray(dataset(group, name, kinds, shape, max_bytes)[()])


def read_all(path: Path) -> None:
    """Read every value of a file, which notices damage, and refuse one that refers to other files.

    Raises:
        FileNotFoundError: It does not exist.
        AffsupError: The system does not let it be read.
        Hdf5Error: It is damaged, or see `member`.
    """

    def read_group(group: h5py.Group) -> None:
        for name in group:
            item = member(group, name)
            if isinstance(item, h5py.Dataset):
                for chunk in item.iter_chunks() if item.chunks else [()]:
                    item[chunk]
            else:
                read_group(item)

    with open_hdf5(path) as h5:
        read_group(h5)


def read_strings(group: h5py.Group, name: str, count: int) -> list[str]:
    """Read a list of strings; see `dataset`."""
    strings: list[str] = dataset(group, name, "OS", (count,), 1024 * max(count, 1)).asstr()[()].tolist()
    return strings


def text_attribute(group: h5py.Group, name: str) -> str:
    """Read an attribute that is a string.

    Raises:
        Hdf5Error: It does not exist or is not a string.
    """
    value = group.attrs.get(name)
    if not isinstance(value, str):
        raise Hdf5Error(f"has no text attribute {quote(name)}")
    return value


def _path(group: h5py.Group, name: str) -> str:
    return f"{group.name}/{name}".lstrip("/")


def _words(kinds: str) -> str:
    names = {"i": "integers", "u": "unsigned integers", "f": "numbers", "b": "booleans", "O": "strings", "S": "strings"}
    return "integers" if kinds == "iu" else " or ".join(dict.fromkeys(names[kind] for kind in kinds))
