"""A contact sheet: small pictures in a grid, each with a line of text."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE = 160
TEXT_HEIGHT = 18
MARGIN = 6
LONGEST_TEXT = 26


def thumbnail(image: NDArray[np.uint8]) -> Image.Image:
    """Return an RGB picture of at most `TILE` pixels a side."""
    small = Image.fromarray(image)
    small.thumbnail((TILE, TILE))
    return small


def contact_sheet(thumbnails: Sequence[Image.Image], texts: Sequence[str]) -> bytes:
    """Return a PNG of the thumbnails in rows, each above its text; at most 6 columns."""
    columns = min(len(thumbnails), 6)
    rows = math.ceil(len(thumbnails) / columns)
    width, height = TILE + MARGIN, TILE + TEXT_HEIGHT + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for index, (small, text) in enumerate(zip(thumbnails, texts, strict=True)):
        left, top = MARGIN + index % columns * width, MARGIN + index // columns * height
        sheet.paste(small, (left + (TILE - small.width) // 2, top + (TILE - small.height) // 2))
        draw.text((left + TILE // 2, top + TILE + 2), text[:LONGEST_TEXT], "black", font, "ma")
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()
