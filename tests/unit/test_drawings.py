"""Drawings are kept, and what is kept is a whole drawing or none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from regraft.data.home import home
from regraft.show import drawings
from regraft.show.figures_base import images

BAR: dict[str, Any] = {"mark": "bar", "width": 20, "height": 20, "data": {"values": [{"x": 1}]},
                       "encoding": {"x": {"field": "x", "type": "quantitative"}}}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where drawings are kept."""
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    return home() / "show" / "drawn"


def only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("damage", ["another picture", "half a file", "no picture"])
def test_a_damaged_drawing_is_drawn_again(folder: Path, damage: str) -> None:
    drawn = drawings.images(BAR)
    assert drawn == images(BAR)
    kept = only(folder).read_text("utf-8")
    wrong = {
        "another picture": json.dumps({**json.loads(kept), "light": drawn["dark"]}),
        "half a file": kept[: len(kept) // 2],
        "no picture": "[]",
    }
    only(folder).write_text(wrong[damage], "utf-8")
    assert drawings.images(BAR) == drawn
    assert only(folder).read_text("utf-8") == kept


def test_a_kept_drawing_is_not_drawn_again(folder: Path) -> None:
    drawings.images(BAR)
    os.utime(only(folder), (0, 0))
    written = only(folder).stat().st_ino
    drawings.images(BAR)
    assert only(folder).stat().st_ino == written
    assert only(folder).stat().st_mtime > 0, "it counts as used"


def test_the_drawings_that_were_not_used_for_longest_make_room(folder: Path) -> None:
    folder.mkdir(parents=True)
    for day in range(drawings.KEPT + 2):
        (folder / f"{day}.json").write_text("{}")
        os.utime(folder / f"{day}.json", (86400 * day, 86400 * day))
    (folder / "gone.json").symlink_to(folder / "nowhere")  # as one that another process removed meanwhile
    drawings.images(BAR)
    left = {file.name for file in folder.glob("*.json")}
    assert len(left) == drawings.KEPT
    assert {"0.json", "1.json", "2.json", "gone.json"}.isdisjoint(left)
    assert {"3.json", f"{drawings.KEPT + 1}.json"} < left


def test_a_home_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "file" / "home"))
    assert drawings.images(BAR) == images(BAR)
