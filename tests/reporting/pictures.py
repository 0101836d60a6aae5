from __future__ import annotations

import io

import numpy as np
from PIL import Image


def pixels(png: bytes) -> np.ndarray:
    """The picture as [height, width, 3]; raises if it is not a sound PNG."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_colour(png: bytes, colour: str, least: int = 20) -> bool:
    """Whether at least so many pixels are near `colour` (#rrggbb)."""
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return int((np.abs(pixels(png).astype(int) - wanted).max(axis=2) < 12).sum()) >= least


def margin_is_white(png: bytes, width: int = 2) -> bool:
    """Whether nothing is cut off at the picture's edge."""
    picture = pixels(png)
    edges = (picture[:width], picture[-width:], picture[:, :width], picture[:, -width:])
    return all(bool((edge == 255).all()) for edge in edges)
