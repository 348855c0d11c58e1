"""Small pictures for the page of advice."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from regraft.predictor.advise.thumbnails import SHOWN, SIDE, thumbnails


def test_the_first_pictures_are_shown_small_and_one_that_cannot_be_read_is_left_blank(tmp_path: Path) -> None:
    files = []
    for i in range(SHOWN + 2):
        Image.new("RGB", (200, 100), (i, 90, 0)).save(tmp_path / f"{i}.png")
        files.append(tmp_path / f"{i}.png")
    files[1].write_bytes(b"no picture")
    found = thumbnails(files)
    assert len(found) == SHOWN
    assert found[1] == b""
    shown = Image.open(io.BytesIO(found[2]))
    assert (shown.format, shown.size, shown.getpixel((SIDE // 2, SIDE // 2))) == ("PNG", (SIDE, SIDE), (2, 90, 0))
