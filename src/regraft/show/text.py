"""Names of users' rows, files and classes as text on a terminal or in a page."""

from __future__ import annotations

import json
from dataclasses import dataclass

JOINERS = "\u200c\u200d"  # not printable by themselves, but inside emoji and several scripts


@dataclass(frozen=True)
class TextTable:
    """A table as text, for a terminal and for a page."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[str, ...] = ()  # columns that are aligned right


def printable(text: str, limit: int = 0) -> str:
    """`text` on one line without control and direction-override characters; `limit` > 0 shortens it.

    An escape sequence in a name must not move the cursor or recolour the screen.
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in line)
    return line if limit <= 0 or len(line) <= limit else line[: limit - 1] + "…"


def printable_lines(text: str) -> str:
    """Each line `printable`, line ends and one step of indentation kept: for messages, which may quote any file."""
    lines = text.split("\n")
    return "\n".join(f"{'  ' if line.startswith('  ') else ''}{printable(line)}" for line in lines)


def duration(seconds: float) -> str:
    """'8 s', '3 min 05 s', '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(fraction: float | None, digits: int = 1) -> str:
    """'93.4 %', or '–' for None."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def script_json(value: object) -> str:
    """JSON that stays data inside an HTML <script>: it holds no "<" that could end the script."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # non-ASCII becomes \\u....
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
