"""`regraft advise`: what to expect of a folder of labelled pictures, and a predictor for more of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli_text import StoreFolder


def add_to(app: typer.Typer) -> None:
    """Make the command part of `regraft`."""
    app.command("advise")(advise)


def advise(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="a folder per class, or train/, test/ and val/ of such")
    ],
    minutes: Annotated[float | None, typer.Option(min=0.1, help="wall time; default by the number of pictures")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for predictor and page; default: DIR-advice, here")] = None,
    network: Annotated[list[str] | None, typer.Option(help="instead of the usual ones; several are possible")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="NETWORK=FILE: weights that are on this machine")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="folder of more pictures: which of them to label")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="repetitions, each with other validation pictures")] = 5,
    store: StoreFolder = None,
    device: Annotated[str, typer.Option(help="where to compute: auto, cpu, cuda or mps")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="use only weights already here")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output, for programs")] = False,
) -> None:
    """Say what to expect of a folder of labelled pictures, and write a predictor for more of them.

    Within the time, networks, cuts and heads are compared on pictures that they did not learn from; the best is scored
    once on pictures held back. The answer is said, written as a page, and kept: started again, it goes on.
    """
    from regraft import cli_text
    from regraft.predictor.advise import advise as find
    from regraft.show.advice import text_lines
    from regraft.study.files import write_text

    into = out or Path(f"{folder.resolve().name}-advice")
    with cli_text.share_bar(folder.name) as bar:
        found = find(
            folder, minutes=minutes, out=into, networks=network or (), weights=_files(weights or []),
            unlabelled=unlabelled, seeds=range(seeds), store=store, device=device, offline=offline,
            tell=lambda what, share: bar(share, what),
        )  # fmt: skip
    page = found.write_page(into / "advice.html", command=cli_text.this_command())
    write_text(into / "advice.json", found.to_json() + "\n")
    if as_json:
        typer.echo(found.to_json())
        return
    for line in text_lines(found):
        typer.echo(line)
    typer.echo(f"Page: {page}")


def _files(given: list[str]) -> dict[str, Path]:
    """NETWORK=FILE, each."""
    found = {}
    for text in given:
        network, equals, file = text.partition("=")
        if not (network and equals and file):
            raise typer.BadParameter(f"{text!r}: give NETWORK=FILE, for instance mobilenet_v2=weights.pth")
        found[network] = Path(file)
    return found
