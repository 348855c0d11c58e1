"""The Python examples of a page: found, and run in the order of the page, as a reader would in a notebook."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

QUICKSTART = Path(__file__).parent / "records" / "quickstart.json"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\s*<!-- output:(?P<name>[\w-]+):begin -->)?", flags=re.M | re.S)


class Example(NamedTuple):
    code: str
    name: str | None  # of the output block below it, if it has one
    line: int  # of the page, where the code begins


def examples(page: Path) -> list[Example]:
    text = page.read_text("utf-8")
    return [
        Example(found["code"], found["name"], text.count("\n", 0, found.start("code")) + 1)
        for found in BLOCK.finditer(text)
    ]


def digest(page: Path) -> str:
    """SHA-256 of the page's code."""
    return hashlib.sha256("\n".join(example.code for example in examples(page)).encode()).hexdigest()


def run(page: Path, folder: Path) -> dict[str, str]:
    """Run the page's examples in one namespace, in `folder`; returns what was printed, by name of the output block.

    `folder` is given what a reader of the tutorial has there: the results of `regraft run`, as they were recorded."""
    results = folder / "regraft-quickstart" / "results.json"
    results.parent.mkdir()
    shutil.copyfile(QUICKSTART, results)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: dict[str, str] = {}
    with contextlib.chdir(folder):
        for example in examples(page):
            with _caught() as lines:
                # Blank lines in front: a traceback names the line of the page.
                exec(compile("\n" * (example.line - 1) + example.code, str(page), "exec"), names)
            if example.name:
                printed[example.name] = lines.getvalue().rstrip()
    return printed


@contextlib.contextmanager
def _caught() -> Iterator[io.StringIO]:
    with contextlib.redirect_stdout(io.StringIO()) as lines:
        yield lines
