"""Many small images as one lossless WebP picture: for photographs about half of their bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.errors import DataDamaged, StudyError

SIDE = 3200  # pixels; a mosaic of larger images holds one a row
# 10,000 CIFAR images, one CPU core: method 4 and effort 25 take 2.5 s for 17.1 MB; effort 0 2.0 s for 17.2 MB,
# effort 75 6.3 s for 17.1 MB, method 0 0.6 s for 17.8 MB.
METHOD, EFFORT = 4, 25
# What lossless WebP cannot shrink grows by less than this, with room for the headers.
LARGEST_SHARE, HEADER_BYTES = 0.95, 4096


@dataclass(frozen=True)
class Layout:
    """How images lie in mosaics: row by row, `columns` in a row, at most `rows` rows."""

    columns: int
    rows: int

    @property
    def images(self) -> int:
        return self.columns * self.rows


def layout_for(side: int, part_bytes: int) -> Layout:
    """The largest mosaic of images of `side` pixels that surely stays within `part_bytes`. Raises StudyError."""
    each = side * side * 3
    most = int((part_bytes - HEADER_BYTES) * LARGEST_SHARE) // each
    if most < 1:
        raise StudyError(
            f"parts of {part_bytes:,} bytes are too small for images of {side} x {side} pixels; give --part-size at "
            f"least {int(each / LARGEST_SHARE) + HEADER_BYTES + 1:,}"
        )
    columns = min(most, max(1, SIDE // side))
    return Layout(columns, min(most // columns, max(1, SIDE // side)))


def encode_mosaic(images: NDArray[np.uint8], columns: int) -> bytes:
    """images (n, s, s, c) with c 1 or 3 -> a WebP file; the last row is filled up with black."""
    n, side, _, channels = images.shape
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, side, side, 3), np.uint8)
    tiles[:n] = images if channels == 3 else np.broadcast_to(images, (n, side, side, 3))
    mosaic = tiles.reshape(rows, columns, side, side, 3).swapaxes(1, 2)  # (rows, s, columns, s, 3)
    file = io.BytesIO()
    picture = Image.fromarray(mosaic.reshape(rows * side, columns * side, 3))
    picture.save(file, "WEBP", lossless=True, method=METHOD, quality=EFFORT)
    return file.getvalue()


def decode_mosaic(data: bytes, shape: tuple[int, int, int, int], columns: int, name: str) -> NDArray[np.uint8]:
    """A WebP file -> images of `shape` (n, s, s, c). Raises DataDamaged for a picture of another form."""
    n, side, _, channels = shape
    rows = -(-n // columns)
    expected = (columns * side, rows * side)
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
            if picture.size != expected or picture.mode != "RGB":
                raise DataDamaged(
                    f"{name}: a mosaic of {picture.size} {picture.mode}, the manifest says {expected} RGB"
                )
            pixels = np.asarray(picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataDamaged(f"{name} cannot be read as a WebP picture ({error}); pack the set again") from None
    tiles = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return tiles[:n, :, :, :channels]
