"""Awkward picture files become upright RGB squares, or a reason."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.data.pictures import Unreadable, decode_picture, decode_pictures

RED, BLUE = (255, 0, 0), (0, 0, 255)


def half_red_half_blue(size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return picture


def encoded(picture: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def close(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


def test_a_picture_becomes_its_centred_square() -> None:
    picture = Image.new("RGB", (300, 100), RED)
    picture.paste(BLUE, (100, 0, 200, 100))
    square = decode_picture(encoded(picture, "PNG"), 20)
    assert square.shape == (20, 20, 3)
    assert close(square[10, 2], BLUE)
    assert close(square[10, 17], BLUE)


@pytest.mark.parametrize(("orientation", "red_corner"), [(1, (2, 2)), (2, (2, 17)), (3, (17, 17)), (6, (2, 17))])
def test_a_camera_s_orientation_is_applied(orientation: int, red_corner: tuple[int, int]) -> None:
    picture = Image.new("RGB", (64, 64), BLUE)
    picture.paste(RED, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    square = decode_picture(encoded(picture, "JPEG", exif=exif, quality=95), 20)
    assert close(square[red_corner], RED, tolerance=40)


def test_damaged_exif_beside_an_intact_picture_does_not_matter() -> None:
    file = encoded(half_red_half_blue(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff\x00\x01", quality=95)
    assert close(decode_picture(file, 20)[10, 2], RED, tolerance=40)


def test_cmyk_is_converted() -> None:
    file = encoded(half_red_half_blue().convert("CMYK"), "JPEG", quality=95)
    square = decode_picture(file, 20)
    assert close(square[10, 2], RED, tolerance=40)
    assert close(square[10, 17], BLUE, tolerance=40)


def test_palettes_are_resolved_and_transparency_lies_on_white() -> None:
    palette = half_red_half_blue().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert close(decode_picture(encoded(palette, "GIF"), 20)[10, 2], RED)
    red = palette.getpixel((2, 2))
    square = decode_picture(encoded(palette, "PNG", transparency=red), 20)
    assert close(square[10, 2], (255, 255, 255))
    assert close(square[10, 17], BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_picture_is_white(mode: str) -> None:
    assert decode_picture(encoded(Image.new(mode, (9, 9)), "PNG"), 5).min() == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.full((30, 30), 32_896, np.uint16)  # 128 / 255 of the range
    square = decode_picture(encoded(Image.fromarray(values), kind), 10)
    assert np.unique(square).tolist() == [128]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_black_and_white_become_rgb(mode: str) -> None:
    square = decode_picture(encoded(Image.new(mode, (9, 9), 255), "PNG"), 5)
    assert square.shape == (5, 5, 3)
    assert square.min() == 255


def test_pixels_without_a_stated_range_are_refused() -> None:
    file = encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    with pytest.raises(Unreadable, match="32-bit"):
        decode_picture(file, 5)


def test_a_long_thin_picture_is_read_without_building_a_longer_one() -> None:
    assert decode_picture(encoded(Image.new("RGB", (60_000, 1), RED), "PNG"), 64).shape == (64, 64, 3)


def test_a_large_picture_is_reduced_to_the_same_square_as_by_hand() -> None:
    """JPEG's own reduced decoding is used for speed; the result is the full decoding's within rounding."""
    ramp = np.linspace(0, 255, 1600, dtype=np.uint8)
    picture = Image.fromarray(np.stack([np.tile(ramp, (1600, 1))] * 3, axis=2))
    file = encoded(picture, "JPEG", quality=95)
    whole = Image.open(file).resize((32, 32), Image.Resampling.BICUBIC)
    file.seek(0)
    assert np.abs(decode_picture(file, 32).astype(int) - np.asarray(whole)).max() <= 3


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that unpack to width x height pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    with pytest.raises(Unreadable, match="decompression bomb"):
        decode_picture(io.BytesIO(png_that_claims(side, side)), 32)


def test_files_that_are_no_pictures_come_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "zero.png").write_bytes(b"")
    whole = encoded(half_red_half_blue((200, 200)), "JPEG").getvalue()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "good.png").write_bytes(encoded(half_red_half_blue(), "PNG").getvalue())
    names = ["text.jpg", "zero.png", "cut.jpg", "script.jpg", "link.jpg", "good.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        *bad, good = decode_pictures([tmp_path / name for name in names], 16)
    assert all(isinstance(reason, str) for reason in bad)
    assert "truncated" in str(bad[2])
    assert bad[3] == bad[0] == "no picture in a format that can be read"
    assert isinstance(good, np.ndarray)
