"""Static images of figures, drawn once: drawing takes a quarter of a second each, most of what a report takes, and the
report of a finished study is written again and again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from regraft.data.home import home, write_file
from regraft.show import figures_base

KEPT = 200  # drawings in the home folder, the latest used; some 10 MB


def images(made: dict[str, Any]) -> dict[str, str]:
    """As `figures_base.images`; kept in the home folder under all that determines them.

    What is kept is an image in a page, which runs no script; a damaged one is drawn again."""
    versions = (metadata.version("vl-convert-python"), figures_base.vega_lite_version())
    told = json.dumps([made, figures_base.theme(dark=False), versions, figures_base.INKS, figures_base.FAINTS])
    file = home() / "show" / "drawn" / f"{hashlib.sha256(told.encode()).hexdigest()}.json"
    if (known := _read(file)) is not None:
        return known
    drawn = figures_base.images(made)
    with contextlib.suppress(OSError):  # a home folder that cannot be written costs the next report some time
        write_file(file, json.dumps({**drawn, "sha256": _digest(drawn)}).encode())
        _prune(file.parent)
    return drawn


def _read(file: Path) -> dict[str, str] | None:
    """What was kept; None if there is nothing, or not what was written."""
    try:
        found = json.loads(file.read_text("utf-8"))
        drawn = {"light": str(found["light"]), "dark": str(found["dark"])}
        if found["sha256"] != _digest(drawn):
            return None
        file.touch()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return drawn


def _digest(drawn: dict[str, str]) -> str:
    return hashlib.sha256((drawn["light"] + drawn["dark"]).encode()).hexdigest()


def _prune(folder: Path) -> None:
    """Delete those that have not been used for longest."""

    def used(file: Path) -> float:
        with contextlib.suppress(FileNotFoundError):  # another process was first
            return file.stat().st_mtime
        return 0.0

    for old in sorted(folder.glob("*.json"), key=used, reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)
