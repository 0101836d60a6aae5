"""Decode many small pictures on all cores.

Pillow decodes without the global interpreter lock. But opening a small picture and copying its pixels take as long and
need the lock, so threads use at most two cores. Therefore processes are used.
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
"""File name and content of a picture."""

Decode = Callable[[Sequence[Encoded], NDArray[np.uint8]], None]
"""Decodes n pictures into uint8 [n, H, W, C]; a module-level function, so that it can be pickled."""

_MIN_PARALLEL = 10_000  # fewer pictures are decoded before processes would have started
_PIXELS = "pixels"  # name of the shared file that the processes write pixels to
_CHUNK = 250  # pictures per task; each process has one more task waiting


def decode_all(
    encoded: Iterable[Encoded],
    count: int,
    shape: tuple[int, int, int],
    decode: Decode,
    block: int,
    cores: int | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Decode pictures of one size, in parallel processes if there are many, ahead of the consumer of the blocks.

    Args:
        encoded: The pictures.
        count: Number of pictures.
        shape: [H, W, C].
        decode: The function that decodes a list of pictures.
        block: Pictures per block.
        cores: Number of processes; None for all cores.

    Yields:
        Blocks uint8 [n, H, W, C] in order; all but the last have `block` pictures.

    Raises:
        AffsupError: Raised by `decode`, or because a process died.
    """
    cores = cores or usable_cores()
    pictures = iter(encoded)
    sizes = [min(block, count - start) for start in range(0, count, block)]
    if cores == 1 or count < _MIN_PARALLEL:
        for size in sizes:
            images = np.empty((size, *shape), dtype=np.uint8)
            decode(list(itertools.islice(pictures, size)), images)
            yield images
        return
    with tempfile.TemporaryDirectory(prefix="affsup-") as folder, _Pool(folder, cores, shape, decode) as pool:
        chunks = pool.chunks(pictures, [min(_CHUNK, size - at) for size in sizes for at in range(0, size, _CHUNK)])
        for size in sizes:
            images = np.empty((size, *shape), dtype=np.uint8)
            for at in range(0, size, _CHUNK):
                images[at : at + _CHUNK] = next(chunks)
            yield images


class _Pool:
    """Processes that decode into a memory-mapped file in `folder`, so that no pixels are sent through a pipe."""

    def __init__(self, folder: str, cores: int, shape: tuple[int, int, int], decode: Decode) -> None:
        self._slots = 2 * cores
        layout = (self._slots, _CHUNK, *shape)
        _write_zeros(Path(folder, _PIXELS), math.prod(layout))
        self._pixels = _map_pixels(folder, "r", layout)
        self._processes = ProcessPoolExecutor(
            cores, multiprocessing.get_context("spawn"), _init_worker, (folder, layout, decode)
        )

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.shutdown(cancel_futures=True)

    def chunks(self, pictures: Iterator[Encoded], sizes: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield chunks of the given sizes in order; each is valid until the next one is requested."""
        started: deque[tuple[NDArray[np.uint8], Future[None]]] = deque()
        remaining = enumerate(sizes)
        try:
            while True:
                for number, size in itertools.islice(remaining, self._slots - len(started)):
                    slot, chunk = number % self._slots, list(itertools.islice(pictures, size))
                    started.append((self._pixels[slot, :size], self._processes.submit(_decode_chunk, slot, chunk)))
                if not started:
                    return
                pixels, future = started.popleft()
                future.result()
                yield pixels
        except BrokenProcessPool:
            raise AffsupError(
                "a process that decodes images died: out of memory, or called from a script without "
                '`if __name__ == "__main__":`, which each process runs again'
            ) from None


_pixels: NDArray[np.uint8]
_decode: Decode


def _init_worker(folder: str, layout: tuple[int, ...], decode: Decode) -> None:
    """Initialise a process: it ignores Ctrl-C, which its parent handles, and ends when its parent ends."""
    global _pixels, _decode
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(folder,), daemon=True).start()
    _pixels, _decode = _map_pixels(folder, "r+", layout), decode


def _exit_with_parent(folder: str) -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    shutil.rmtree(folder, ignore_errors=True)  # it still exists if the parent was killed
    os._exit(1)


def _decode_chunk(slot: int, chunk: Sequence[Encoded]) -> None:
    _decode(chunk, _pixels[slot, : len(chunk)])


def _write_zeros(file: Path, size: int) -> None:
    """Write `size` zero bytes: writing into a sparse memory-mapped file on a full disk would crash the process."""
    try:
        file.write_bytes(bytes(size))
    except OSError as error:
        reason = f"{error.strerror}: make room there, or name another folder in TMPDIR"
        raise AffsupError(f"cannot write {size / 1e6:.1f} MB for decoding to {file.parent}: {reason}") from None


def _map_pixels(folder: str, mode: Literal["r", "r+"], layout: tuple[int, ...]) -> NDArray[np.uint8]:
    # An array, as indexing a memmap is slow.
    return np.asarray(np.memmap(Path(folder, _PIXELS), np.uint8, mode, shape=layout))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
