"""The audit of a study's images as one HTML page, which runs no script and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regraft.show import page
from regraft.show.audit import section
from regraft.show.sections import audit_tables
from regraft.study.audit import Audit, Without


def audit_html(audit: Audit, without: Sequence[Without], *, command: str = "") -> str:
    """The page.  command: what a reader types to write it again."""
    shown = section(audit, without)
    return page.render(
        "audit.html", study=audit.study.study, command=command, contents=[], sentences=shown.sentences,
        closest=shown.closest, tables=audit_tables(shown),
    )  # fmt: skip


def write_audit(audit: Audit, without: Sequence[Without], path: str | Path, *, command: str = "") -> Path:
    """Write the page to `path`, whole or not at all; returns the path."""
    return page.write_page(audit_html(audit, without, command=command), path)
