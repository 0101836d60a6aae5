from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep.decode.pictures import PictureError, check_picture, open_picture, pixels, upright_size
from data_prep.errors import AffsupError
from tests.data_prep.scene_sources import ORIENTATION, picture


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_colour_mode_comes_out_as_rgb_of_the_same_brightness(mode: str) -> None:
    read = pixels(picture(mode=mode), (64, 48))
    assert (read.shape, read.dtype) == ((48, 64, 3), np.uint8)
    np.testing.assert_allclose(read[:, :24].mean((0, 1)), 20, atol=3)
    np.testing.assert_allclose(read[:, 40:].mean((0, 1)), 200, atol=3)


def test_a_palette_with_transparency_and_sixteen_bits_are_converted(tmp_path: Path) -> None:
    palette = Image.fromarray(np.full((4, 4, 3), 77, np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", transparency=bytes([255]))
    assert (open_picture(tmp_path / "palette.png") == 77).all()
    Image.fromarray(np.full((4, 4), 77 * 256, np.uint16)).save(tmp_path / "deep.png")
    assert (open_picture(tmp_path / "deep.png") == 77).all()


def test_a_picture_of_the_annotated_size_is_taken_as_stored_whatever_its_exif_says() -> None:
    read = pixels(picture((64, 48), orientation=6), (64, 48))
    assert read.shape == (48, 64, 3)
    assert read[:, :24].max() < 50


def test_a_picture_of_the_annotated_size_once_turned_is_turned() -> None:
    encoded = picture((64, 48), orientation=6)
    read = pixels(encoded, (48, 64))
    with Image.open(io.BytesIO(encoded)) as image:
        np.testing.assert_array_equal(read, np.asarray(ImageOps.exif_transpose(image)))
    assert read[:24].max() < 50


@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_a_picture_of_another_size_is_refused_with_both_sizes(orientation: int | None) -> None:
    with pytest.raises(PictureError, match="is 32x24, annotated as 50x37") as caught:
        check_picture(picture((32, 24), orientation=orientation), (50, 37))
    assert caught.value.reason == "of another size than annotated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_is_noticed_without_decoding_it_in_full(kind: str) -> None:
    whole = picture((640, 480), kind=kind)
    check_picture(whole, (640, 480))
    with pytest.raises(PictureError, match="cannot be decoded") as caught:
        check_picture(whole[: len(whole) * 3 // 4], (640, 480))
    assert caught.value.reason == "cannot be decoded"


@pytest.mark.parametrize("encoded", [b"", b"not a picture", picture()[:40]])
def test_what_is_no_picture_is_refused(encoded: bytes) -> None:
    with pytest.raises(PictureError, match="cannot be decoded"):
        check_picture(encoded, (64, 48))


@pytest.mark.parametrize(
    ("size", "orientation", "at_most", "expected"),
    [
        ((640, 480), None, (160, 120), (120, 160)),
        ((640, 480), None, (161, 120), (240, 320)),
        ((640, 480), None, (641, 481), (480, 640)),
        ((480, 640), 6, (160, 120), (120, 160)),
    ],
)
def test_a_smaller_scale_is_never_smaller_than_asked_for(
    size: tuple[int, int], orientation: int | None, at_most: tuple[int, int], expected: tuple[int, int]
) -> None:
    encoded = picture(size, orientation=orientation)
    assert pixels(encoded, (640, 480), at_most).shape[:2] == expected


def test_anyones_picture_is_opened_upright(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(picture((64, 48), orientation=6))
    read = open_picture(tmp_path / "mine.jpg")
    np.testing.assert_array_equal(read, pixels(picture((64, 48), orientation=6), (48, 64)))


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_the_usual_formats_are_opened(tmp_path: Path, kind: str) -> None:
    levels = Image.fromarray(np.full((48, 64, 3), 77, np.uint8))
    levels.save(tmp_path / "picture", kind, **({"save_all": True, "append_images": [levels]} if kind == "MPO" else {}))
    assert (open_picture(tmp_path / "picture") == 77).all()


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX"])
def test_other_formats_are_no_pictures(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "picture", kind)
    with pytest.raises(AffsupError, match="cannot be read as a picture"):
        open_picture(tmp_path / "picture")
    with pytest.raises(PictureError, match="cannot be decoded"):
        check_picture((tmp_path / "picture").read_bytes(), (64, 48))


def with_exif_field(tag: int, kind: int, value: bytes) -> bytes:
    """A picture of 64x48 lying on its side, with one more EXIF field."""
    turned = struct.pack(">HHIHH", ORIENTATION, 3, 1, 6, 0)
    field = struct.pack(">HHI", tag, kind, 1) + value
    content = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + turned + field + bytes(4)
    encoded = picture()
    return encoded[:2] + struct.pack(">HH", 0xFFE1, len(content) + 2) + content + encoded[2:]


@pytest.mark.parametrize(
    "field",
    [
        (0x011E, 2, b"x\0\0\0"),  # XPosition, a fraction, as text: TypeError in Pillow
        (0x0128, 4, b"\0\1\0\0"),  # ResolutionUnit, of 16 bits, as 65,536: struct.error in Pillow
    ],
)
def test_damaged_exif_is_damage(tmp_path: Path, field: tuple[int, int, bytes]) -> None:
    encoded = with_exif_field(*field)
    (tmp_path / "mine.jpg").write_bytes(encoded)
    with pytest.raises(AffsupError, match=r"mine\.jpg cannot be read as a picture"):
        open_picture(tmp_path / "mine.jpg")
    with pytest.raises(PictureError, match="cannot be decoded"):
        check_picture(encoded, (48, 64))


def test_a_picture_that_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(AffsupError, match=r"gone\.jpg cannot be read as a picture \(No such file"):
        open_picture(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_bytes(b"text")
    with pytest.raises(AffsupError, match=r"text\.jpg cannot be read as a picture"):
        open_picture(tmp_path / "text.jpg")


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG file of one bit a pixel that claims a size: its header is checked before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    )


@pytest.mark.parametrize("size", [(13_000, 13_000), (8001, 8000), (64_000_001, 1), (200_000, 10_000)])
def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "large.png").write_bytes(png(*size))
    with pytest.raises(AffsupError, match=r"large\.png .*(at most 64 megapixels: scale it down|exceeds limit)"):
        open_picture(tmp_path / "large.png")
    for check in (check_picture, pixels):
        with pytest.raises(PictureError, match=r"megapixels|exceeds limit"):
            check(png(*size), size)
    with pytest.raises(PictureError, match=r"megapixels|exceeds limit"):
        upright_size(png(*size))


def test_a_picture_of_64_megapixels_is_opened() -> None:
    assert upright_size(png(8000, 8000, bytes(8000 * 1001))) == (8000, 8000)
