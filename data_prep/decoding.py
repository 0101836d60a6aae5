"""Decoding many small pictures on all cores.

Pillow decodes outside the interpreter lock, but to open a small picture and to take over its pixels takes as long and
needs the lock: threads do not get beyond two cores there, processes do.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import AffsupError

Encoded = tuple[str, bytes]
"""Name and content of a picture's file."""

Decode = Callable[[Sequence[Encoded], NDArray[np.uint8]], None]
"""Fills uint8 [n, H, W, C] with n pictures; a function of a module, so that another process finds it."""

_FEWEST = 10_000  # pictures that processes are started for: fewer are decoded before they would be there
_PIXELS = "pixels"  # the file in which they decode
_SHARE = 250  # pictures a process takes at a time; as many wait for it, so that it does not


def decoded(
    encoded: Iterable[Encoded],
    count: int,
    shape: tuple[int, int, int],
    decode: Decode,
    block: int,
    cores: int | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Decode pictures of one size, many of them in processes of their own, ahead of whoever takes the blocks.

    Args:
        encoded: The pictures.
        count: How many.
        shape: [H, W, C].
        decode: How.
        block: Pictures a block.
        cores: How many decode; all of this machine if None.

    Yields:
        Blocks uint8 [n, H, W, C] in order, all but the last of `block` pictures.

    Raises:
        AffsupError: What `decode` raises; or a process has died.
    """
    cores = cores or _cores()
    pictures = iter(encoded)
    sizes = [min(block, count - start) for start in range(0, count, block)]
    if cores == 1 or count < _FEWEST:
        for size in sizes:
            images = np.empty((size, *shape), dtype=np.uint8)
            decode(list(itertools.islice(pictures, size)), images)
            yield images
        return
    with tempfile.TemporaryDirectory(prefix="affsup-") as folder, _Pool(folder, cores, shape, decode) as pool:
        shares = pool.shares(pictures, [min(_SHARE, size - at) for size in sizes for at in range(0, size, _SHARE)])
        for size in sizes:
            images = np.empty((size, *shape), dtype=np.uint8)
            for at in range(0, size, _SHARE):
                images[at : at + _SHARE] = next(shares)
            yield images


class _Pool:
    """Processes that decode into a file in `folder` that all have mapped, so that no pixels pass through a pipe."""

    def __init__(self, folder: str, cores: int, shape: tuple[int, int, int], decode: Decode) -> None:
        self._places = 2 * cores
        layout = (self._places, _SHARE, *shape)
        _fill(Path(folder, _PIXELS), math.prod(layout))
        self._pixels = _mapped(folder, "r", layout)
        self._processes = ProcessPoolExecutor(
            cores, multiprocessing.get_context("spawn"), _begin, (folder, layout, decode)
        )

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.shutdown(cancel_futures=True)

    def shares(self, pictures: Iterator[Encoded], sizes: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield shares of so many pictures in order, each good until the next one is asked for."""
        begun: deque[tuple[NDArray[np.uint8], Future[None]]] = deque()
        coming = enumerate(sizes)
        try:
            while True:
                for number, size in itertools.islice(coming, self._places - len(begun)):
                    place, share = number % self._places, list(itertools.islice(pictures, size))
                    begun.append((self._pixels[place, :size], self._processes.submit(_decode_share, place, share)))
                if not begun:
                    return
                pixels, future = begun.popleft()
                future.result()
                yield pixels
        except BrokenProcessPool:
            raise AffsupError(
                "a process that decodes images has died: out of memory; or this is called from a script without "
                '`if __name__ == "__main__":`, which each process runs anew'
            ) from None


_pixels: NDArray[np.uint8]
_decode: Decode


def _begin(folder: str, layout: tuple[int, ...], decode: Decode) -> None:
    """Prepare a process: it leaves Ctrl-C to the one that has started it, and does not outlive that."""
    global _pixels, _decode
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(folder,), daemon=True).start()
    _pixels, _decode = _mapped(folder, "r+", layout), decode


def _leave_with_parent(folder: str) -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    shutil.rmtree(folder, ignore_errors=True)  # it is there yet if that one was killed
    os._exit(1)


def _decode_share(place: int, share: Sequence[Encoded]) -> None:
    _decode(share, _pixels[place, : len(share)])


def _fill(file: Path, size: int) -> None:
    """Write that many bytes: a hole in a file would crash who fills it on a full disk."""
    try:
        file.write_bytes(bytes(size))
    except OSError as error:
        reason = f"{error.strerror}: make room there, or name another folder in TMPDIR"
        raise AffsupError(f"cannot write {size / 1e6:.1f} MB for decoding to {file.parent}: {reason}") from None


def _mapped(folder: str, mode: Literal["r", "r+"], layout: tuple[int, ...]) -> NDArray[np.uint8]:
    # An array, as to index a memmap itself takes long.
    return np.asarray(np.memmap(Path(folder, _PIXELS), np.uint8, mode, shape=layout))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
