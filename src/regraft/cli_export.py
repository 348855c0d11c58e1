"""`regraft export` and `regraft ui`: a predictor for other programs, and in a browser."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

FormatName = StrEnum("FormatName", {"onnx": "onnx", "torch_export": "torch-export", "timm": "timm"})
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "timm": "-timm"}


def add_to(app: typer.Typer) -> None:
    """Make the commands part of `regraft`."""
    app.command("export")(export)
    app.command("ui")(ui)


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a predictor, NAME.regraft")],
    format: Annotated[FormatName, typer.Option("--format", "-f", help="what to write")] = FormatName.onnx,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="file, or folder for timm; default: MODEL's name, here")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="pictures on which both must agree; default: of its data set, else two photographs"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="also put it on the Hugging Face Hub: OWNER/NAME")
    ] = None,
) -> None:
    """Write a predictor for other programs: ONNX, torch.export or timm, with JSON and a model card beside it.

    What is written is read back and compared with the predictor on real pictures; a file that answers otherwise is not
    kept. Pictures go in as uint8: normalisation and temperature are inside.
    """
    from regraft import cli_text
    from regraft.predictor import Predictor
    from regraft.predictor.export import export as write
    from regraft.show.text import printable

    predictor = Predictor.load(model, device="cpu", backend="eager")
    found = write(
        predictor, format.value, out or Path(f"{model.stem}{SUFFIXES[format.value]}"), pictures=images or (),
        name=model.stem,
    )  # fmt: skip
    for file in found.files:
        typer.echo(f"Written: {printable(str(file))} ({cli_text.size(file.stat().st_size)})")
    typer.echo(f"Parity: {printable(found.parity.sentence())}")
    if push:
        from regraft.predictor.hub import push as upload

        typer.echo(f"On the Hub: {upload(found.files, found.card, push)} (a new repository is private)")


def ui(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="a predictor; default: the only NAME.regraft here")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one", show_default=False)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the page")] = True,
    device: Annotated[str, typer.Option(help="where to compute: auto, cpu, cuda or mps")] = "auto",
) -> None:
    """Try a predictor in the browser: drop a picture, see its classes and what it looked at; or name a folder.

    The page is for this machine only: nothing is shared, sent or counted. Ctrl-C ends it.
    """
    from regraft.predictor.ui import serve, the_only_predictor

    serve(model or the_only_predictor(Path()), device=device, port=port, browser=browser, tell=typer.echo)
