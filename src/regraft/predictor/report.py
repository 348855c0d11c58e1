"""Answers to files as sentences, tables and the page with the pictures that a predictor is most wrong about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regraft.data.pictures import in_threads, square_of
from regraft.errors import DataDamaged
from regraft.predictor.answers import Answer, Evaluated, evaluated
from regraft.predictor.evaluate import ClassScore, Evaluation
from regraft.predictor.manifest import Manifest, is_measure
from regraft.predictor.predict import ranked
from regraft.show.predictions import THUMBNAIL, Bar, Matrix, Page, Thumbnail, thumbnail
from regraft.show.text import TextTable, percent

SHOWN = 24  # pictures with the highest losses, or of which it is least certain
MOST_IN_MATRIX = 30  # classes; of more, only the pairs most often confused are told
SHOWN_ROWS = 200  # of a table of files
PAIRS = 20


def sentences(answers: Sequence[Answer], manifest: Manifest, found: Evaluated | None) -> list[str]:
    """What was found, in short.  found: what `evaluated` says of these answers."""
    unread = sum(one.reason is not None for one in answers)
    said = [f"{len(answers) - unread:,} pictures answered" + (f", {unread:,} could not be read." if unread else ".")]
    if found is None:
        counts = Counter(name for one in answers for name in _answer(one, manifest))
        most = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(5))
        return said + ([f"Most frequent: {most}."] if most else [])
    result, _ = found
    said.append(
        f"Accuracy {percent(result.accuracy)} [{100 * result.low:.1f}, {100 * result.high:.1f}] (95 % Wilson, "
        f"n = {result.images:,} pictures in class folders)."
    )
    stated = manifest.metrics.get("test")
    if is_measure(stated):
        said.append(f"On its own test images it had {percent(stated['accuracy'])} (n = {stated['n']:,}).")
    said.append(
        f"Its probabilities are off by {100 * result.calibration_error:.1f} points on average (expected calibration "
        f"error over {len(result.bins)} bins of equal width)."
    )
    if pairs := result.confused(1):
        true, given, n = pairs[0]
        said.append(f"Most often mistaken: {true} for {given} ({n:,} of {_images(result, true):,}).")
    return said


def tables(answers: Sequence[Answer], found: Evaluated | None) -> list[TextTable]:
    """Class by class, the classes most often confused, calibration, and the files that could not be read.

    found: what `evaluated` says of these answers."""
    made = []
    if found is not None:
        result, _ = found
        made = [_class_table(result.classes), _pair_table(result), _bin_table(result)]
    unread = [(one.path, one.reason) for one in answers if one.reason is not None]
    shown = f"The first {SHOWN_ROWS} of {len(unread):,}." if len(unread) > SHOWN_ROWS else ""
    made.append(TextTable("Files that could not be read", shown, ("file", "why"), tuple(unread[:SHOWN_ROWS])))
    return [table for table in made if table.rows]


def page_of(answers: Sequence[Answer], manifest: Manifest, *, model: str, command: str = "") -> Page:
    """The whole page. Its pictures are read once more, at most SHOWN of them. model: name of the predictor's file."""
    found = evaluated(answers, manifest.classes)
    about = f"{model}: {manifest.network}, {len(manifest.classes):,} classes"
    words, listed = tuple(sentences(answers, manifest, found)), tuple(tables(answers, found))
    if found is None:
        there = [one for one in answers if one.probabilities is not None]
        order = sorted(there, key=lambda one: float(np.max(one.probabilities)))  # type: ignore[arg-type]
        return Page(
            "What the pictures show", about, words, listed,
            gallery="Least certain", thumbnails=_thumbnails(order[:SHOWN], manifest), command=command,
        )  # fmt: skip
    result, known = found
    worst = [known[i] for i in result.worst[:SHOWN]]
    matrix = None
    if len(manifest.classes) <= MOST_IN_MATRIX:
        matrix = Matrix(manifest.classes, tuple(tuple(row) for row in result.confusion.tolist()))
    diagram = [Bar(b.low, b.high, b.accuracy, b.images) for b in result.bins if b.accuracy is not None]
    return Page(
        "How right are its answers?", about, words, listed, matrix, tuple(diagram),
        "Accuracy of answers by their probability. On the dashed line a probability of 80 % is right 8 times of 10. "
        + _calibrated(manifest),
        "Highest losses", _thumbnails(worst, manifest), command,
    )  # fmt: skip


def _calibrated(manifest: Manifest) -> str:
    if "calibration" not in manifest.metrics:
        return "It was not calibrated: no image was held out."
    return f"Temperature {manifest.temperature:.3g}, fitted on validation images."


def _class_table(classes: Sequence[ClassScore]) -> TextTable:
    rows = [
        (one.name, f"{one.images:,}", f"{one.predicted:,}", percent(one.precision), percent(one.recall),
         percent(one.f1))
        for one in classes
    ]  # fmt: skip
    caption = (
        "Precision: how many of the pictures said to be of the class are. Recall: how many of its pictures were "
        "recognised. F1: the harmonic mean of both."
    )
    columns = ("class", "pictures", "answers", "precision", "recall", "F1")
    return TextTable("Class by class", caption, columns, tuple(rows), columns[1:])


def _pair_table(result: Evaluation) -> TextTable:
    rows = [
        (true, given, f"{n:,}", percent(n / _images(result, true))) for true, given, n in result.confused(PAIRS)
    ]  # fmt: skip
    columns = ("class", "taken for", "pictures", "share of the class")
    return TextTable("Most often confused", f"At most {PAIRS} pairs.", columns, tuple(rows), columns[2:])


def _bin_table(result: Evaluation) -> TextTable:
    rows = [
        (f"{100 * one.low:.1f} to {100 * one.high:.1f} %", f"{one.images:,}", percent(one.confidence),
         percent(one.accuracy))
        for one in result.bins if one.images
    ]  # fmt: skip
    columns = ("probability of the answer", "pictures", "mean probability", "accuracy")
    caption = f"{len(result.bins)} bins of equal width; those without a picture are left out."
    return TextTable("Calibration", caption, columns, tuple(rows), columns[1:])


def _images(result: Evaluation, name: str) -> int:
    return next(one.images for one in result.classes if one.name == name)


def _answer(answer: Answer, manifest: Manifest) -> list[str]:
    """The most probable class, if there is an answer."""
    if answer.probabilities is None:
        return []
    return [manifest.classes[int(answer.probabilities.argmax())]]


def _thumbnails(answers: Sequence[Answer], manifest: Manifest) -> tuple[Thumbnail, ...]:
    made = []
    for one, pixels in zip(answers, in_threads(_small, [Path(a.path) for a in answers]), strict=True):
        if isinstance(pixels, str) or one.probabilities is None:  # gone since it was answered
            continue
        name, share = ranked(one.probabilities, manifest.classes, 1)[0]
        said = [f"{name} {percent(share)}"]
        if one.label is not None:
            own = float(one.probabilities[manifest.classes.index(one.label)])
            said.append(f"is {one.label} ({percent(own)})")
        made.append(thumbnail(pixels, [*said, Path(one.path).name]))
    return tuple(made)


def _small(file: Path) -> np.ndarray | str:
    try:
        return square_of(file, THUMBNAIL)
    except DataDamaged as error:
        return str(error)
