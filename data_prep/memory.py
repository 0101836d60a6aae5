"""Official images that fit in memory as one array."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_prep.format import BLOCK
from data_prep.official import Images


def images_in_memory(
    images: NDArray[np.uint8], labels: NDArray[np.int64], source_index: NDArray[np.int64] | None = None
) -> Images:
    """Wrap an array.

    Args:
        images: uint8 [n, H, W, C].
        labels: int64 [n].
        source_index: int64 [n]; the row numbers 0..n-1 if None.
    """

    def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(rows), BLOCK):
            yield np.ascontiguousarray(images[rows[start : start + BLOCK]])

    if source_index is None:
        source_index = np.arange(len(labels), dtype=np.int64)
    return Images(labels, source_index, blocks)
