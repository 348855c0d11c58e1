"""`regraft bundle` and `regraft predict`: a trained row as one file, and its answers to pictures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli_text import StoreFolder, open_store, utf8

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from regraft.predictor.answers import Answer
    from regraft.predictor.files import Search
    from regraft.predictor.predict import Predictor

COMPLETE, NOTHING, INCOMPLETE = 0, 1, 3  # every picture answered; none; some not
WIDE = 60  # characters of a file's name in a table
UNREAD = 20  # files named on standard error

Device = Annotated[str, typer.Option(help="where to compute: auto, cpu, cuda or mps")]
Backend = Annotated[
    str, typer.Option(help="auto: the fastest that agrees with plain PyTorch; eager, fused, onnxruntime, inductor")
]


def add_to(app: typer.Typer) -> None:
    """Make the commands part of `regraft`."""
    app.command("bundle")(bundle)
    app.command("predict")(predict)


def bundle(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="a study file (YAML) or a preset's name")],
    row: Annotated[str, typer.Option(help="name of a trained row of the study")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write; default: STUDY.regraft")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the row; default: the best on validation images")] = None,
    store: StoreFolder = None,
    device: Device = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="use only data and weights already here")] = False,
) -> None:
    """Make a predictor: one file with the trained network of a row, its preprocessing, class names and calibration.

    The file holds no program and loads without a network. `regraft predict` answers with it.
    """
    from regraft.spec import Study

    chosen = Study.from_yaml(study)
    from regraft.predictor.build import predictor_of
    from regraft.show.text import printable

    made = predictor_of(
        chosen, open_store(store),
        row=row, seed="best" if seed is None else seed, device=device, offline=offline,
    )  # fmt: skip
    file = made.save(out or Path(f"{chosen.study}.regraft"))
    test, seeded = made.manifest.metrics["test"], made.manifest.metrics["seed"]
    typer.echo(
        f"Written to {file} ({file.stat().st_size / 1e6:.1f} MB): {printable(row)}, seed {seeded}, "
        f"{len(made.classes)} classes, test accuracy {100 * test['accuracy']:.1f} % [{100 * test['low']:.1f}, "
        f"{100 * test['high']:.1f}] (95 % Wilson, n = {test['n']:,}). Try: regraft predict {file} PICTURES"
    )


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a predictor, NAME.regraft")],
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS...",
            help="files, folders, patterns; -: a list on standard input, one a line or as find -print0 writes it",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="classes told for each picture, the most probable first")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object a line, for programs")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="a CSV table")] = False,
    report: Annotated[Path | None, typer.Option(help="write a page with figures and the worst pictures (HTML)")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="pictures at a time through the network")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: the physical cores")] = None,
    device: Device = "auto",
    backend: Backend = "auto",
) -> None:
    """Say what pictures show. In class folders also: how often that is right.

    A folder whose subfolders are called like the predictor's classes gives accuracy, precision and recall of each
    class, the confusion matrix and calibration.

    Exit code: 0 all answered, 3 some files could not be read (each with the reason), 1 none could.
    """
    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    from regraft import cli_text
    from regraft.learn.hardware import keep_freed_memory, set_threads
    from regraft.predictor.answers import answer_files, write_csv
    from regraft.predictor.files import find_pictures
    from regraft.predictor.predict import Predictor

    set_threads(threads)
    keep_freed_memory()
    predictor = Predictor.load(model, device=device, backend=backend)
    search = find_pictures(_named(paths), predictor.classes)
    answers: list[Answer] = []
    with cli_text.transfer_bar(model.name) as moved:
        for answer in answer_files(predictor, search.found, batch_size=batch, advance=moved):
            answers.append(answer)
            if as_json:
                typer.echo(json.dumps(_line(answer, predictor, top)))
    if as_csv:
        write_csv(answers, predictor.classes, sys.stdout, top=top, spelled=utf8)
    elif not as_json:
        _show(answers, predictor, top)
    if search.labelled or report is not None:
        _judge(answers, predictor, model=model, report=report, quiet=as_csv, as_json=as_json)
    raise typer.Exit(_complain(answers, search))


def _named(paths: Iterable[str]) -> list[str]:
    """The paths, with - replaced by the list on standard input. Of bytes, since names need not be text."""
    named: list[str] = []
    for path in paths:
        if path == "-":
            listed = sys.stdin.buffer.read()
            lines = listed.split(b"\0") if b"\0" in listed else listed.splitlines()
            named += [os.fsdecode(line) for line in lines if line.strip()]
        else:
            named.append(path)
    return named


def _line(answer: Answer, predictor: Predictor, top: int) -> dict[str, object]:
    from regraft.predictor.predict import ranked

    if answer.probabilities is None:
        return {"file": answer.path, "error": answer.reason}
    best = ranked(answer.probabilities, predictor.classes, top)
    told: dict[str, object] = {"file": answer.path, "class": best[0][0], "probability": round(best[0][1], 6)}
    if top > 1:
        told["top"] = [{"class": name, "probability": round(share, 6)} for name, share in best]
    return told if answer.label is None else {**told, "true": answer.label}


def _show(answers: Sequence[Answer], predictor: Predictor, top: int) -> None:
    from regraft import cli_text
    from regraft.predictor.predict import ranked
    from regraft.show.text import percent, printable

    rows = []
    for one in answers:
        if one.probabilities is not None:
            best = ranked(one.probabilities, predictor.classes, top)
            rest = ", ".join(f"{printable(name)} {percent(share)}" for name, share in best[1:])
            rows.append((printable(one.path, WIDE), printable(best[0][0]), percent(best[0][1]), rest))
    if rows:
        columns = ("file", "class", "probability", "then")[: 3 + (top > 1)]
        cli_text.show(cli_text.table("", columns, [row[: len(columns)] for row in rows], right=("probability",)))


def _judge(
    answers: Sequence[Answer], predictor: Predictor, *, model: Path, report: Path | None, quiet: bool, as_json: bool
) -> None:
    """What the answers are worth, where classes are known; and the page."""
    from regraft import cli_text
    from regraft.predictor.answers import evaluated
    from regraft.predictor.report import page_of, sentences, tables
    from regraft.show.page import write_page
    from regraft.show.predictions import page_html
    from regraft.show.text import printable

    found = evaluated(answers, predictor.classes)
    if as_json and found is not None:
        typer.echo(json.dumps({"evaluation": found[0].told()}))
    elif not quiet and not as_json and found is not None:
        for table in tables(answers, found):
            rows = [[printable(value, WIDE) for value in row] for row in table.rows]
            cli_text.show(cli_text.table(f"\n{table.title}", table.columns, rows, right=table.numbers))
        for sentence in sentences(answers, predictor.manifest, found):
            typer.echo(printable(sentence))
    if report is not None:
        page = page_of(answers, predictor.manifest, model=model.name, command=cli_text.this_command())
        write_page(page_html(page), report)
        typer.echo(f"Written to {report}", err=True)


def _complain(answers: Sequence[Answer], search: Search) -> int:
    """Which files have no answer, and what was passed over, on standard error; returns the exit code."""
    from regraft.show.text import printable

    unread = [one for one in answers if one.reason is not None]
    for one in unread[:UNREAD]:
        typer.echo(f"not read: {printable(one.path)}: {printable(one.reason or '')}", err=True)
    if len(unread) > UNREAD:
        typer.echo(f"... and {len(unread) - UNREAD:,} more; --json and --csv name all", err=True)
    for what, count in search.passed_over.items():
        if count:
            typer.echo(f"passed over: {what}: {count:,}", err=True)
    if search.labelled:
        for name, count in search.unknown_folders.most_common(5):
            what = f"{count:,} files in {printable(name)!r}, which is no class of this predictor"
            typer.echo(f"answered, not judged: {what}", err=True)
    if len(unread) == len(answers):
        return NOTHING
    return INCOMPLETE if unread else COMPLETE
