"""Pages of one file that need no network: templates, the policy that they carry, and how they are written.

Safety: names come from studies and folders, so templates escape everything, control characters and the home folder
are taken out of every text, and a page's own policy forbids every load and every script other than those whose
digests it names.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from regraft.show.text import percent, printable
from regraft.study.files import write_text

SIZE = '<span id="size"></span>'  # in a page: replaced by how large the file is
MEGABYTE = 1e6


def source(name: str) -> str:
    """The text of a file in `show/templates`."""
    return resources.files("regraft.show").joinpath("templates", name).read_text("utf-8")


def render(template: str, *, scripts: tuple[str, ...] = (), **content: Any) -> str:
    """The page `template` as HTML; `scripts` are those that it may run, as they stand in it."""
    page = _environment().get_template(template)
    html = page.render(policy=policy(*scripts), version=metadata.version("regraft"), **content)
    return html.replace(SIZE, f"{(len(html.encode()) - len(SIZE) + 6) / MEGABYTE:.2f} MB", 1)


def policy(*scripts: str) -> str:
    """No load from anywhere; only these scripts, named by their digests."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def write_page(html: str, path: str | Path) -> Path:
    """Write `html` to `path`, whole or not at all; returns the path. Raises StoreError."""
    return write_text(Path(path), html)


def told(text: str) -> str:
    """`text` as a page shows it: printable, and without the name of anybody's home folder."""
    text = printable(text)
    for folder, name, whole in _private(os.environ.get("REGRAFT_HOME", ""), os.path.expanduser("~")):
        if folder in text:
            text = whole.sub(name, text)
    return text


@cache
def _private(named: str, user: str) -> list[tuple[str, str, re.Pattern[str]]]:
    """Folders that tell of a person or a machine, what stands for them, and how they are found as whole folders."""
    folders = {named: "$REGRAFT_HOME", user: "~"}
    return [
        (folder, name, re.compile(rf"(?<![\w/\\.-]){re.escape(folder)}(?![\w-])"))
        for folder, name in folders.items()
        if len(Path(folder).parts) > 1  # "/" is no one's
    ]


def told_all(value: Any) -> Any:
    """The same for every text in nested lists and dictionaries."""
    if isinstance(value, str):
        return told(value)
    if isinstance(value, dict):
        return {name: told_all(inner) for name, inner in value.items()}
    return [told_all(inner) for inner in value] if isinstance(value, list) else value


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
        # Names must not reorder the text around them, nor hide: no control characters.
        finalize=lambda value: told(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    environment.filters["percent"] = percent
    environment.filters["count"] = lambda n: "–" if n is None else f"{n:,}"
    return environment
