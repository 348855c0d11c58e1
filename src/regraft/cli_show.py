"""`regraft figure`, `compare`, `table` and `track`: what was found, as figures and for other programs."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli_text import StoreFolder, open_store

if TYPE_CHECKING:
    from regraft.study.results import Results

Size = StrEnum("Size", ["screen", "column", "page", "slide"])
Form = StrEnum("Form", ["csv", "parquet", "latex", "markdown"])
Tracker = StrEnum("Tracker", ["tensorboard", "mlflow"])

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="a study file (YAML), a preset's name, or a results.json")
]


def add_to(app: typer.Typer) -> None:
    """Make the commands part of `regraft`."""
    app.command("figure")(figure)
    app.command("compare")(compare)
    app.command("table")(table)
    app.command("track")(track)


def read(study: str, store: str | None) -> Results:
    """Results of a `results.json`, or those that the store has of a study. Raises StudyError for another file."""
    from regraft.errors import StudyError
    from regraft.study.results import Results, read_results

    if Path(study).suffix.lower() != ".json":
        from regraft.spec import Study

        return read_results(Study.from_yaml(study), open_store(store))
    try:
        return Results.from_json(study)
    except OSError as error:
        raise StudyError(f"cannot read {study}: {error.strerror or error}") from error
    except StudyError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{study} is no results.json of regraft ({type(error).__name__}: {error})") from error


def figure(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as `regraft figure --list STUDY` names them")],
    study: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="a study file (YAML), a preset's name, or a results.json"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="file: .svg, .png, .pdf, .html or .json; default: NAME.svg")
    ] = None,
    size: Annotated[
        Size, typer.Option(help="column: 85 mm wide, of a paper; page: 170 mm; slide: 254 x 143 mm (16:9)")
    ] = Size.screen,
    dark: Annotated[bool, typer.Option("--dark", help="light on dark")] = False,
    font: Annotated[str | None, typer.Option(help="a font family that this machine has")] = None,
    row: Annotated[str | None, typer.Option(help="of this row alone, as for confusion and classes")] = None,
    listed: Annotated[bool, typer.Option("--list", help="say which figures the study has: --list STUDY")] = False,
    store: StoreFolder = None,
) -> None:
    """Draw one figure of a study into a file."""
    from regraft.errors import StudyError

    if listed:
        results = read(study or name, store)
        from regraft.show import gallery

        for known, there in gallery.drawable(results).items():
            told = gallery.SHOWS[known] if there else f"nothing to draw: it needs {gallery.NEEDS[known]}"
            typer.echo(f"{known}: {told}")
        return
    if study is None:
        raise StudyError("name the figure and the study, as: regraft figure cuts quickstart; or --list STUDY")
    results = read(study, store)
    from regraft.show import gallery

    width, height = gallery.SIZES.get(size.value, (None, None))
    chart = gallery.figure(name, results, row=row)
    file = out or Path(f"{name}.svg")
    _written(gallery.save_figure(chart, file, width_mm=width, height_mm=height, dark=dark, font=font))


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="a study file, a preset's name, or a results.json")],
    second: Annotated[
        str | None, typer.Argument(metavar="[B]", help="another one; default: A itself, in --other-store")
    ] = None,
    by: Annotated[
        str, typer.Option(help="what rows are matched by: name, or fields as source,cut,method,target")
    ] = "name",
    store: StoreFolder = None,
    other_store: Annotated[
        str | None, typer.Option("--other-store", help="folder of the store that B is read from; default: --store")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write a page (.html) or Markdown (.md)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output, for programs")] = False,
) -> None:
    """Compare two studies row by row, or one study in two stores: means, paired differences, what was done differently.

    Differences are A − B: paired where both learned from the same images with the same seeds, else Welch's. Nothing is
    computed but the comparison.
    """
    from regraft.errors import StudyError

    if second is None and other_store is None:
        raise StudyError("name a second study, or with --other-store where the same one lies a second time")
    results = read(first, store), read(second or first, other_store or store)
    from regraft import cli_text
    from regraft.analysis.between import between
    from regraft.show import export
    from regraft.show.text import printable

    found = between(*results, by=[field.strip() for field in by.split(",")])
    if as_json:
        typer.echo(json.dumps(export.between_dict(found), indent=2))
    else:
        cli_text.show(cli_text.table("", export.BETWEEN_COLUMNS, export.between_lines(found)))
        for sentence in found.summary():
            typer.echo(printable(sentence))
    if out is not None:
        _written(export.write_between(found, out), err=as_json)


def table(
    study: StudyName,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="default: by the ending of --out (.csv, .parquet, .tex, .md), or csv"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file; default: standard output")] = None,
    cells: Annotated[bool, typer.Option("--cells", help="a line for every seed instead of every row")] = False,
    store: StoreFolder = None,
) -> None:
    """Write the results as a table: csv and parquet with all fields, LaTeX (booktabs) and Markdown to be read."""
    from regraft.errors import StudyError

    if out is None and form is Form.parquet:
        raise StudyError("parquet is not text; name a file with --out")
    results = read(study, store)
    from regraft.show import export

    if out is None:
        typer.echo(export.table(results, (form or Form.csv).value, cells=cells).decode(), nl=False)
    else:
        _written(export.write_table(results, out, form.value if form else None, cells=cells))


def track(
    study: StudyName,
    to: Annotated[Tracker, typer.Option("--to", help="what to write for")],
    folder: Annotated[
        Path | None, typer.Option(help="folder to write into; default: regraft-tensorboard, or mlruns")
    ] = None,
    uri: Annotated[str | None, typer.Option(help="of mlflow: tracking URI instead of a folder")] = None,
    store: StoreFolder = None,
) -> None:
    """Write scored runs for TensorBoard or MLflow: curves by epoch, parameters, final metrics, the key of every fit.

    Runs that are there already are left as they are.
    """
    from regraft.errors import StudyError

    if uri is not None and (folder is not None or to is not Tracker.mlflow):
        raise StudyError("--uri is of mlflow, and instead of --folder; TensorBoard reads folders: use --folder")
    results = read(study, store)
    from regraft.show import tracking

    place = uri or folder or Path("mlruns" if to is Tracker.mlflow else "regraft-tensorboard")
    written, there = tracking.track(results, to.value, place=place)
    typer.echo(f"{written} runs written to {place}" + (f", {there} were there already" if there else ""))


def _written(path: Path, *, err: bool = False) -> None:
    typer.echo(f"Written to {path}", err=err)
