"""Decode pictures to pixels, including EXIF rotation, unusual colour modes and damaged files."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.errors import AffsupError, shorten

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # no other decoder is used on untrusted files
MAX_PIXELS = 64_000_000
"""Number of pixels of a picture; a larger one is refused before it is decoded."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is lower

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    struct.error,  # this and the next: raised by Pillow for EXIF fields of a wrong type
    TypeError,
)


class PictureError(AffsupError):
    """A picture cannot be used. `reason` is the kind of problem; the message has the details of this picture."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_picture(encoded: bytes, size: tuple[int, int]) -> None:
    """Check that a picture is complete and has its annotated size; a JPEG is decoded at reduced resolution.

    Args:
        encoded: Content of the file.
        size: Width and height as annotated.

    Raises:
        PictureError: It is damaged or has another size.
    """
    _decode(encoded, size, at_most=(1, 1))


def upright_size(encoded: bytes) -> tuple[int, int]:
    """Return width and height of a picture from its header, after the rotation that its EXIF data give.

    Args:
        encoded: Content of the file.

    Raises:
        PictureError: It is not a picture.
    """
    try:
        with _open(io.BytesIO(encoded)) as image:
            return _upright_size(image)
    except _DAMAGE as error:
        raise _undecodable(error) from None


def pixels(encoded: bytes, size: tuple[int, int], at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode a picture of known size; rotate it as its EXIF data say only if it does not have that size as stored.

    Args:
        encoded: Content of the file.
        size: Width and height as annotated.
        at_most: Width and height that suffice: a JPEG may be decoded at a half, a quarter or an eighth of its size, as
            long as the result is not smaller than this.

    Returns:
        uint8 [H, W, 3], red, green, blue.

    Raises:
        PictureError: It cannot be decoded, or has another size, rotated or not.
    """
    return np.asarray(_decode(encoded, size, at_most))


def square(encoded: bytes, size: int) -> NDArray[np.uint8]:
    """Decode a picture, rotated as its EXIF data say, to a square: the shorter side is scaled, the longer one cropped.

    Args:
        encoded: Content of the file.
        size: Pixels per side.

    Returns:
        uint8 [size, size, 3], red, green, blue.

    Raises:
        PictureError: It cannot be decoded, or is too large.
    """
    try:
        with _open(io.BytesIO(encoded)) as image:
            image.draft(None, (2 * size, 2 * size))
            upright = _to_rgb(ImageOps.exif_transpose(image))
            return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR))
    except _DAMAGE as error:
        raise _undecodable(error) from None


def open_picture(path: Path) -> NDArray[np.uint8]:
    """Decode a user's picture, rotated as its EXIF data say.

    Args:
        path: Path of the file.

    Returns:
        uint8 [H, W, 3], red, green, blue.

    Raises:
        AffsupError: It cannot be read or is not a picture.
    """
    try:
        with _open(path) as image:
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or _reason(error)
        raise AffsupError(f"{path} cannot be read as a picture ({reason}): give a JPEG or PNG file") from None
    except PictureError as error:
        cure = "scale it down" if error.reason == "too large" else "save it with 8 bits"
        raise AffsupError(f"{path} {error}: {cure}") from None


def _decode(encoded: bytes, size: tuple[int, int], at_most: tuple[int, int] | None) -> Image.Image:
    try:
        with _open(io.BytesIO(encoded)) as image:
            found = image.size
            turned = found != size
            if turned and _upright_size(image) != size:
                raise PictureError(
                    "of another size than annotated",
                    f"is {found[0]}x{found[1]}, annotated as {size[0]}x{size[1]}",
                )
            if at_most:
                image.draft(None, at_most[::-1] if turned else at_most)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image) if turned else image)
    except _DAMAGE as error:
        raise _undecodable(error) from None


@contextmanager
def _open(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open a picture whose pixels are not yet decoded.

    Raises:
        PictureError: It has more than `MAX_PIXELS` pixels, or 32 bits a channel, whose scale is unknown.
    """
    with Image.open(file, formats=_FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise PictureError(
                "too large", f"has {width} x {height} pixels, expected at most {MAX_PIXELS // 10**6} megapixels"
            )
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # older Pillow opens 16-bit PNG as "I"
            raise PictureError("of 32 bits a channel", "has 32 bits a channel, expected 8 or 16")
        yield image


def _undecodable(error: Exception) -> PictureError:
    return PictureError("cannot be decoded", f"cannot be decoded ({_reason(error)})")


def _reason(error: Exception) -> str:
    # Pillow's message for an unknown format contains the address of a buffer
    return "of no known format" if isinstance(error, UnidentifiedImageError) else shorten(error)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    sideways = image.getexif().get(0x0112) in (5, 6, 7, 8)  # tag Orientation
    return image.size[::-1] if sideways else image.size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values to 8 bits instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")
