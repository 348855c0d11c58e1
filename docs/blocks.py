"""Marked blocks in Markdown: what lies between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is generated."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def fill(text: str, name: str, content: str) -> str:
    """`text` with its block `name` replaced. Raises SystemExit if it has no such block."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"expected one block {begin} ... {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown. Cells are one line each, and hold code and links as they are."""
    cells = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def update(blocks: dict[str, dict[str, str]], *, check: bool) -> None:
    """Write the blocks, {file: {block: content}}; with `check`, only say (and exit 1) which files are old."""
    old = []
    for file, contents in blocks.items():
        path = REPOSITORY / file
        text = before = path.read_text("utf-8")
        for name, content in contents.items():
            text = fill(text, name, content)
        if text != before:
            old.append(file)
            if not check:
                path.write_text(text, "utf-8")
    if check and old:
        raise SystemExit(f"not current: {', '.join(old)}; run: python {Path(sys.argv[0]).as_posix()}")
