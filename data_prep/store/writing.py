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
def exclusive(home: Path) -> Iterator[None]:
    """Lock a data set's folder against other processes.

    Raises:
        AffsupError: Another process has locked it.
    """
    try:
        with FileLock(_beside(home, "lock"), timeout=0):
            yield
    except Timeout:
        raise AffsupError(f"another process is preparing {home}: wait for it to end, then run again") from None


@contextmanager
def replace_folder(home: Path, size: int) -> Iterator[Path]:
    """Yield an empty folder that replaces `home` when the block ends, and is deleted when the block fails.

    Args:
        home: The folder to replace or to create; locked by `exclusive`, and after `recover`.
        size: Number of bytes that will be written.

    Raises:
        AffsupError: The disk does not have enough space.
    """
    new, old = _beside(home, "new"), _beside(home, "old")
    with explain_full_disk(home.parent, size):
        try:
            new.mkdir()
            yield new
            for path in (*new.iterdir(), new):
                fsync_path(path)
            if home.exists():
                home.rename(old)
            new.rename(home)
            fsync_path(home.parent)
        finally:
            recover(home)


def recover(home: Path) -> None:
    """Remove temporary folders of `replace_folder`, and restore the old folder if a process was killed during it."""
    shutil.rmtree(_beside(home, "new"), ignore_errors=True)
    old = _beside(home, "old")
    if old.exists():
        if home.exists():
            shutil.rmtree(old)
        else:
            old.rename(home)


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


def _beside(home: Path, suffix: str) -> Path:
    return home.with_name(f".{home.name}.{suffix}")


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
