"""`regraft data pack` and `regraft data unpack`: data that travels to machines without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def add_to(data_app: typer.Typer) -> None:
    """Make the commands part of `regraft data`."""
    data_app.command("pack")(data_pack)
    data_app.command("unpack")(data_unpack)


def bytes_of(text: str) -> int:
    """ "60M" -> 60,000,000; "64MiB" -> 67,108,864."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]i?|)B?", text)
    if found is None or found[2] == "ki":
        raise typer.BadParameter(f"{text!r} is no size; give bytes, or a number with k, M, G, KiB, MiB or GiB: 60M")
    return int(float(found[1]) * UNITS[found[2]])


def data_pack(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="data sets that are here, as in `regraft data list`, or folder:PATH"),
    ] = None,
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where the parts are written", file_okay=False)],
    part_size: Annotated[str, typer.Option(help="of each file at most, as 60M or 64MiB")] = "60M",
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="pretrained weights that are here, as resnet50_v1; may be given again"),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="which one, of a set that is kept at several sizes in pixels")
    ] = None,
) -> None:
    """Write data sets and weights as lossless parts with checksums, to copy them to a machine without a network."""
    largest = bytes_of(part_size)
    from regraft import cli_text
    from regraft.data.pack import pack

    with cli_text.transfer_bar(" ".join([*(names or []), *(weights or [])])) as report:
        manifest = pack(
            names or [], folder, largest, weights=weights or [], image_size=image_size, report=report
        )  # fmt: skip
    rows = [(i.name, len(i.parts), cli_text.size(sum(p.bytes for p in i.parts))) for i in manifest.items()]
    cli_text.show(cli_text.table(f"In {folder}", ("name", "parts", "size"), rows, right=("parts", "size")))
    typer.echo(f"There, with the folder copied: regraft data unpack {folder.name}")


def data_unpack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder that `regraft data pack` wrote")],
) -> None:
    """Check what was packed, part by part, and keep it for every study, as `regraft data get` does."""
    from regraft import cli_text
    from regraft.data.pack import unpack

    with cli_text.transfer_bar(folder.name) as report:
        states = unpack(folder, report=report)
    cli_text.show(cli_text.table("", ("name", "state"), states.items()))
