"""`regraft check`: the store, read byte by byte."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli_text import StoreFolder, complete_study, open_store

if TYPE_CHECKING:
    from rich.console import Group

    from regraft.study.store import Store
    from regraft.study.verify import Checked


def add_to(app: typer.Typer) -> None:
    """Make the command part of `regraft`."""
    app.command("check")(check)


def check(
    store: StoreFolder = None,
    study: Annotated[
        str | None,
        typer.Option(help="only what this study needs: a file (YAML) or a preset", autocompletion=complete_study),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="set aside what is damaged, so that it is computed anew")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output, for programs")] = False,
) -> None:
    """Verify the store: read every byte of every artifact and compare it with the digest that it was written with.

    Exit code: 0 sound (or repaired), 1 something is damaged, which --repair sets aside.
    """
    from regraft import cli_text
    from regraft.study.verify import verify_store

    shelf = open_store(store)
    keys = None if study is None else _needed(study, shelf)
    with cli_text.transfer_bar("reading") as advance:
        checked = verify_store(shelf, keys, repair=repair, advance=advance)
    if as_json:
        print(json.dumps({**asdict(checked), "sound": checked.sound}, indent=2))
    else:
        cli_text.show(checked_text(shelf, checked))
    raise typer.Exit(0 if checked.sound else 1)


def _needed(study: str, store: Store) -> set[str]:
    """Keys of what the results of a study rest on, as far as they can be known now."""
    from regraft.spec import Study
    from regraft.study.prune import needed

    return needed(Study.from_yaml(study), store)


def checked_text(store: Store, checked: Checked) -> Group:
    """What was read, what was found, and what to do."""
    from rich.console import Group
    from rich.text import Text

    from regraft.cli_text import size, table
    from regraft.show.text import printable

    wrong = sum(finding.is_error for finding in checked.findings)
    head = f"{checked.artifacts:,} artifacts, {size(checked.bytes)} read in {checked.seconds:.1f} s: "
    if not wrong:
        head += "all of them are as they were written"
    elif checked.repaired:
        head += f"{wrong} found damaged and set aside; the next run of a study that needs them computes them anew"
    else:
        head += f"{wrong} damaged. Set them aside with --repair, or let the next run of their study do it"
    rows = [(finding.kind, finding.path, finding.why) for finding in checked.findings]
    parts = [table(printable(str(store.root)), ("what", "where", "why"), rows)] if rows else []
    return Group(Text(head), *parts)
