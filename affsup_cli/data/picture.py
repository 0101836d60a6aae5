"""Anyone's own picture as a source of scenes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.store import Objects


class Picture:
    """One picture in which nothing is annotated; see `affsup_cli.data.scenes.SceneSource`.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self._image = image
        self.sizes = np.array([[image.shape[1], image.shape[0]]], dtype=np.int32)

    def __len__(self) -> int:
        return 1

    def pixels(self, index: int, at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return the picture."""
        return self._image

    def objects(self, index: int) -> Objects:
        """Return no objects."""
        none, no = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        return Objects(np.zeros((0, 4), dtype=np.float32), none, no, no, np.zeros((0, 2), dtype=np.int64))
