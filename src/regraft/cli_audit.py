"""`regraft audit`: duplicates, odd classes, empty and unreadable images of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regraft.cli_text import StoreFolder, complete_study

SHOWN = 20  # rows of a table in the terminal


def add_to(app: typer.Typer) -> None:
    """Make the command part of `regraft`."""
    app.command("audit")(audit)


def audit(
    study: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="a study file (YAML) or a preset's name", autocompletion=complete_study),
    ],
    out: Annotated[Path | None, typer.Option(help="write a page with all tables and the closest pairs (HTML)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output, for programs")] = False,
    store: StoreFolder = None,
    offline: Annotated[bool, typer.Option("--offline", help="use only data and weights already here")] = False,
) -> None:
    """Look at a study's images: duplicates between training, validation and test images and those of sources, also
    mirrored, cropped or stretched; labels, empty and unreadable ones; and results without the duplicated test images.

    What was found is kept in the store, and shown at once the next time; results are those that the store has.
    """
    from regraft.spec import Study

    chosen = Study.from_yaml(study)
    from regraft import cli_text
    from regraft.show.audit import audit_dict, findings, tables
    from regraft.show.audit_page import write_audit
    from regraft.show.text import printable
    from regraft.study import audit as audits
    from regraft.study.results import read_results

    shelf = cli_text.open_store(store)
    with cli_text.share_bar(chosen.study) as advance:
        found = audits.audit(chosen, shelf, offline=offline, advance=advance)
    without = audits.without_duplicates(read_results(chosen, shelf), found)
    if out is not None:
        write_audit(found, without, out, command=cli_text.this_command())
    if as_json:
        typer.echo(json.dumps(audit_dict(found, without), indent=2))
        return
    for sentence in findings(found, without):
        typer.echo(printable(sentence))
    for table in tables(found, without):
        typer.echo("")
        shown = cli_text.table(table.title, table.columns, table.rows[:SHOWN], right=table.numbers)
        cli_text.show(shown)
        if len(table.rows) > SHOWN:
            typer.echo(f"... and {len(table.rows) - SHOWN:,} more; --out FILE.html or --json shows them")
    if out is not None:
        typer.echo(f"\nWritten to {out}")
