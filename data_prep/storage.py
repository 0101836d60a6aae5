"""Replacing a prepared data set as a whole: all of the new one or all of the old one, and no litter."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep.errors import AffsupError, UsageError
from data_prep.raw import ProgressCallback

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold a data set's folder against other processes.

    Raises:
        AffsupError: Another process holds it.
    """
    try:
        with FileLock(_beside(home, "lock"), timeout=0):
            yield
    except Timeout:
        raise AffsupError(f"another process is preparing {home}: wait for it to end, then run again") from None


@contextmanager
def replacing(home: Path, size: int) -> Iterator[Path]:
    """Give an empty folder that takes the place of `home` when the block ends, and vanishes when it fails.

    Args:
        home: The folder to replace or to make; `locked` and `settle`d.
        size: Bytes that will be written.

    Raises:
        AffsupError: They do not fit on the disk.
    """
    new, old = _beside(home, "new"), _beside(home, "old")
    with full_disk_explained(home.parent, size):
        try:
            new.mkdir()
            yield new
            for path in (*new.iterdir(), new):
                _to_disk(path)
            if home.exists():
                home.rename(old)
            new.rename(home)
            _to_disk(home.parent)
        finally:
            settle(home)


def settle(home: Path) -> None:
    """Clear away what a replacement left, finished or not, by this process or by one that was killed."""
    shutil.rmtree(_beside(home, "new"), ignore_errors=True)
    old = _beside(home, "old")
    if old.exists():
        if home.exists():
            shutil.rmtree(old)
        else:
            old.rename(home)


@dataclass
class ImageCounter:
    """Tells how many images are written."""

    progress: ProgressCallback
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """Tell that so many more are."""
        self.done += count
        self.progress("images", self.done, self.total)


def refuse_excess(limit: int | None, available: int) -> None:
    """Make sure that the source has as many training images as are asked for.

    Raises:
        UsageError: It has fewer.
    """
    if limit is not None and limit > available:
        raise UsageError(f"--limit {limit}: expected at most {available}, the training images of the source")


@contextmanager
def full_disk_explained(folder: Path, size: int) -> Iterator[None]:
    """Say how much is needed and how much is free, before writing `size` bytes or when writing them fails.

    Raises:
        AffsupError: They do not fit.
    """
    free = shutil.disk_usage(folder).free
    reason = os.strerror(errno.ENOSPC)
    try:
        if free < size:
            raise OSError(errno.ENOSPC, reason)
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise AffsupError(
            f"cannot write {size / 1e6:,.1f} MB to {folder}/: {os.strerror(error.errno)} "
            f"({free / 1e6:,.1f} MB free): make room, or choose another place with --data"
        ) from None


def _beside(home: Path, suffix: str) -> Path:
    return home.with_name(f".{home.name}.{suffix}")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
