"""Pictures of the user's own, for predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.decode.pictures import open_picture
from data_prep.errors import AffsupError, UsageError

LARGEST_RATIO = 50
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


def pictures_in(paths: list[Path]) -> list[Path]:
    """Return the pictures: the files in `paths`, and those with a picture's suffix in its folders, sorted by name.

    Raises:
        UsageError: a path does not exist, or a folder has no pictures.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise UsageError(f"no pictures in {path}: expected files that end in {', '.join(sorted(SUFFIXES))}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"no picture {path}")
    return found


def open_for_prediction(path: Path) -> NDArray[np.uint8]:
    """Decode a picture to RGB uint8 `[H, W, 3]`.

    Raises:
        AffsupError: it cannot be read, is not a picture, or is a strip whose short side would vanish when it is scaled.
    """
    image = open_picture(path)
    height, width = image.shape[:2]
    if max(height, width) > LARGEST_RATIO * min(height, width):
        raise AffsupError(f"{path} has {width} x {height} pixels: expected sides of a ratio of at most {LARGEST_RATIO}")
    return image
