"""Write prepared data sets: replace a folder atomically, report progress, check limit and disk space."""

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
from data_prep.origin import ProgressCallback

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def exclusive(destination: Path) -> Iterator[None]:
    """Lock a data set's folder against other processes.

    Raises:
        AffsupError: Another process has locked it.
    """
    try:
        with FileLock(_sibling(destination, "lock"), timeout=0):
            yield
    except Timeout:
        raise AffsupError(f"another process is preparing {destination}: wait for it to end, then run again") from None


@contextmanager
def replace_folder(destination: Path, size: int) -> Iterator[Path]:
    """Yield an empty folder that replaces `destination` when the block ends, and is deleted when the block fails.

    Args:
        destination: The folder to replace or to create; locked by `exclusive`, and after `recover`.
        size: Number of bytes that will be written.

    Raises:
        AffsupError: The disk does not have enough space.
    """
    new, old = _sibling(destination, "new"), _sibling(destination, "old")
    with explain_full_disk(destination.parent, size):
        try:
            new.mkdir()
            yield new
            for path in (*new.iterdir(), new):
                fsync_path(path)
            if destination.exists():
                destination.rename(old)
            new.rename(destination)
            fsync_path(destination.parent)
        finally:
            recover(destination)


def recover(destination: Path) -> None:
    """Remove temporary folders of `replace_folder`, and restore the old folder if a process was killed during it."""
    shutil.rmtree(_sibling(destination, "new"), ignore_errors=True)
    old = _sibling(destination, "old")
    if old.exists():
        if destination.exists():
            shutil.rmtree(old)
        else:
            old.rename(destination)


@dataclass
class ImageCounter:
    """Reports how many images are written."""

    progress: ProgressCallback
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """Report that `count` more images are written."""
        self.done += count
        self.progress("images", self.done, self.total)


def refuse_excess(limit: int | None, available: int) -> None:
    """Check that the source has as many training images as requested.

    Raises:
        UsageError: It has fewer.
    """
    if limit is not None and limit > available:
        raise UsageError(f"--limit {limit}: expected at most {available}, the training images of the source")


@contextmanager
def explain_full_disk(folder: Path, size: int) -> Iterator[None]:
    """Raise an error with the required and the free space, before writing `size` bytes or when writing them fails.

    Raises:
        AffsupError: The disk does not have enough space.
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
            f"({free / 1e6:,.1f} MB free): free some space, or choose another folder with --data"
        ) from None


def _sibling(destination: Path, suffix: str) -> Path:
    return destination.with_name(f".{destination.name}.{suffix}")


def fsync_path(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk; some file systems cannot do the latter."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
