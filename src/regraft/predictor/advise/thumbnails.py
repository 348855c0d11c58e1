"""Small copies of pictures, for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from regraft.data.pictures import decode_pictures

SHOWN, SIDE = 24, 96  # pictures; pixels


def thumbnails(files: Sequence[Path]) -> tuple[bytes, ...]:
    """PNG of the first few."""
    found = []
    for picture in decode_pictures(list(files[:SHOWN]), SIDE):
        written = io.BytesIO()
        if not isinstance(picture, str):
            Image.fromarray(picture).save(written, "PNG")
        found.append(written.getvalue())
    return tuple(found)
