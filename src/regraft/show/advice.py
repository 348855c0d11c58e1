"""Advice on a folder of pictures: as sentences, as a page of one file, and in a notebook.

Safety: names of files and classes are anybody's. Templates escape them, terminals get them printable.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from regraft.analysis.findings import Findings, Problem, doubts_text
from regraft.show import figures_advice, figures_base
from regraft.show.page import render, told, write_page
from regraft.show.sections import Column, Entry, Table, number
from regraft.show.text import duration, percent, printable

SHOWN_FILES = 5  # in a terminal
MOST_FILES = 200  # in a page, of each problem
SHOWN_PAIRS = 12
SHOWN_DOUBTS = 24


def sentences(found: Findings) -> list[str]:
    """The answer, the most important first."""
    pictures, expected = found.pictures, found.expected
    said = [
        f"On new pictures of this kind expect {percent(expected.accuracy)} right "
        f"[{100 * expected.low:.1f}, {100 * expected.high:.1f}] ({expected.how()}).",
        f"Chosen on validation pictures, of {len(found.tried)} configurations: {found.chosen.what} "
        f"({percent(found.chosen.validation)}, n = {found.chosen.n} seeds).",
        curve_text(found),
        found.next.text(),
        doubts_text(found),
    ]
    if found.confused:
        pair = found.confused[0]
        said.append(
            f"Most confused: {pair.count} of {pair.of} {pair.true!r} are taken for {pair.predicted!r} "
            f"({percent(pair.count / pair.of)} [{100 * pair.low:.1f}, {100 * pair.high:.1f}], training pictures "
            "answered by heads that had not seen them)."
        )
    own = "its own test part" if pictures.own_test else "a fifth of each class"
    said.append(
        f"{sum(pictures.counts):,} usable pictures of {len(pictures.classes)} classes; {pictures.test:,} were held "
        f"back ({own}) and played no part in the choice."
    )
    if found.predictor_file:
        said.append(f"The predictor, trained on {found.trained_on:,} pictures: {found.predictor_file}")
    return said


def curve_text(found: Findings) -> str:
    """What more labels would bring, in a sentence."""
    curve = found.extrapolation
    if not curve.told:
        return f"What more labels would bring cannot be told: {curve.reason}."
    each = " and ".join(f"{one.text()} with {one.factor:g} times the labels" for one in curve.forecasts)
    return f"More labels: {each} (power law through {len(curve.points)} budgets, 95 %)."


def text_lines(found: Findings) -> list[str]:
    """All of it for a terminal."""
    lines = [printable(sentence) for sentence in sentences(found)]
    for problem in found.pictures.problems:
        lines.append(printable(f"{'!' if problem.serious else '-'} {problem.text}{_files(problem)}"))
    lines += [printable(f"- {note}") for note in found.notes]
    if found.doubted:
        lines.append("Labels in doubt, the surest first:")
        lines += [
            printable(f"  {one.file}: {one.label}, rather {one.proposed} ({percent(one.confidence, 0)} for the label)")
            for one in found.doubted[:SHOWN_FILES]
        ]
    if found.next.pictures:
        lines.append("Label these next:")
        lines += [printable(f"  {file}") for file, _ in found.next.pictures]
    lines.append(f"Took {duration(found.seconds)} of {found.minutes:g} min.")
    return lines


def _files(problem: Problem) -> str:
    if not problem.files:
        return ""
    more = len(problem.files) - SHOWN_FILES
    return ": " + ", ".join(problem.files[:SHOWN_FILES]) + (f" and {more:,} more" if more > 0 else "")


def advice_html(found: Findings, *, command: str = "") -> str:
    """The page."""
    charts = [chart for make in (figures_advice.label_curve, figures_advice.candidates) if (chart := make(found))]
    specs = [figures_base.spec(chart) for chart in charts]
    pictures = found.pictures
    return render(
        "advice.html", study=pictures.folder, folder=pictures.folder, sentences=[told(s) for s in sentences(found)],
        problems=[{**vars(p), "files": p.files[:MOST_FILES], "more": len(p.files) - MOST_FILES}
                  for p in pictures.problems],
        figures=[{**figures_base.images(spec), "description": spec["description"]} for spec in specs],
        compared=_compared(found), confused=_confused(found), classes=_classes(found), doubts=doubts_text(found),
        doubted=_doubted(found), next=found.next, notes=found.notes, command=command,
        contents=[("answer", "Answer"), *([("figures", "Figures")] if specs else []), ("doubts", "Labels in doubt"),
                  ("classes", "Classes"), ("compared", "Compared"), ("folder", "The folder")],
        took=f"{duration(found.seconds)} of {found.minutes:g} min",
    )  # fmt: skip


def write_advice(found: Findings, path: str | Path, *, command: str = "") -> Path:
    """Write the page to `path`, whole or not at all; returns the path."""
    return write_page(advice_html(found, command=command), path)


def short_html(found: Findings) -> str:
    """The answer for a notebook."""
    return "".join(f'<p dir="auto">{escape(printable(sentence))}</p>' for sentence in sentences(found))


# --- parts of the page ----------------------------------------------------------------------------------------------


def _compared(found: Findings) -> Table:
    columns = (Column("configuration"), Column("validation accuracy", number=True), Column("deviation", number=True),
               Column("seeds", number=True), Column("seconds", number=True))  # fmt: skip
    rows = tuple(
        (Entry(one.what, strong=one.what == found.chosen.what), number(one.validation, percent(one.validation)),
         number(one.deviation, f"{100 * one.deviation:.1f} points"), number(one.n),
         number(one.seconds, f"{one.seconds:.1f}"))
        for one in found.tried
    )  # fmt: skip
    return Table("What was compared", columns, rows, "On validation pictures; no test picture was looked at.")


def _confused(found: Findings) -> Table:
    columns = (Column("class"), Column("taken for"), Column("pictures", number=True), Column("share", number=True))
    rows = tuple(
        (Entry(one.true), Entry(one.predicted), number(one.count, f"{one.count} of {one.of}"),
         number(one.count / one.of, f"{percent(one.count / one.of)} [{100 * one.low:.1f}, {100 * one.high:.1f}]"))
        for one in found.confused[:SHOWN_PAIRS]
    )  # fmt: skip
    caption = "Training pictures, answered by heads that had not seen them; 95 % Wilson intervals."
    return Table("Confused classes", columns, rows, caption)


def _classes(found: Findings) -> Table:
    columns = (Column("class"), Column("labels", number=True), Column("answered wrongly", number=True),
               Column("expected gain", number=True, small="of all pictures' accuracy"))  # fmt: skip
    rows = tuple(
        (Entry(one.name), number(one.labels),
         number(one.error, f"{percent(one.error)} [{100 * one.low:.1f}, {100 * one.high:.1f}]"),
         number(one.gain, f"{100 * one.gain:.2f} points"))
        for one in found.next.classes
    )  # fmt: skip
    more = found.next.classes[0].more if found.next.classes else 0
    caption = f"Gain: of {more} more labels for this class, if its error falls with labels as the whole curve does."
    return Table("Classes", columns, rows, caption)


def _doubted(found: Findings) -> list[dict[str, str]]:
    shown = zip(found.doubted[:SHOWN_DOUBTS], found.thumbnails, strict=False)
    return [
        {"file": one.file, "label": one.label, "proposed": one.proposed, "confidence": percent(one.confidence, 0),
         "picture": f"data:image/png;base64,{base64.b64encode(picture).decode()}" if picture else ""}
        for one, picture in shown
    ]  # fmt: skip
