"""Answers to many picture files, as they come; those that cannot be read are named with the reason."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from regraft.predictor.evaluate import Evaluation, evaluate
from regraft.predictor.files import Found
from regraft.predictor.predict import Predictor, ranked


@dataclass(frozen=True, eq=False)
class Answer:
    """What a predictor says to one file, or why it could not look at it."""

    path: str
    label: str | None  # its class, where that is known
    probabilities: NDArray[np.float32] | None  # (k,)
    reason: str | None  # why there is no answer


def answer_files(
    predictor: Predictor,
    files: Sequence[Found],
    *,
    batch_size: int | None = None,
    advance: Callable[[int, int | None], None] = lambda done, total: None,
) -> Iterator[Answer]:
    """One answer for each file, in order. advance: told how many of how many are done."""
    for start in range(0, len(files), predictor.at_once):
        part = files[start : start + predictor.at_once]
        there = [one for one in part if one.reason is None]
        made = predictor.squares([Path(one.path) for one in there])
        squares = [one for one in made if not isinstance(one, str)]
        logits = np.empty((0, len(predictor.classes)), np.float32)
        if squares:
            logits = predictor.logits(np.stack(squares), batch_size=batch_size, coming=len(files) - start)
        rows = iter(predictor.answers(logits).probabilities)
        reasons = dict(zip((id(one) for one in there), made, strict=True))
        for one in part:
            found = reasons.get(id(one), one.reason)
            if isinstance(found, str):
                yield Answer(one.path, one.label, None, found)
            else:
                yield Answer(one.path, one.label, next(rows), None)
        advance(start + len(part), len(files))


Evaluated = tuple[Evaluation, list[Answer]]


def evaluated(answers: Sequence[Answer], classes: Sequence[str]) -> Evaluated | None:
    """The evaluation of the answers whose class is known, and these, in its order; None if there are none."""
    known = [one for one in answers if one.label is not None and one.probabilities is not None]
    if not known:
        return None
    places = {name: i for i, name in enumerate(classes)}
    labels = np.array([places[str(one.label)] for one in known], np.int64)
    probabilities = np.stack([one.probabilities for one in known if one.probabilities is not None])  # (n, k)
    return evaluate(probabilities, labels, classes), known


def write_csv(
    answers: Sequence[Answer], classes: Sequence[str], file: TextIO, *,
    top: int = 1, spelled: Callable[[str], str] = str,
) -> None:  # fmt: skip
    """A row for each file, with its `top` most probable classes, the class it lies in, and why there is no answer.

    spelled: how names are written that the file cannot hold."""
    writer = csv.writer(file, lineterminator="\n")
    numbers = ["", *(f" {i}" for i in range(2, min(top, len(classes)) + 1))]
    writer.writerow(["file", *(f"{word}{i}" for i in numbers for word in ("class", "probability")), "true", "error"])
    for one in answers:
        best = [""] * (2 * len(numbers))
        if one.probabilities is not None:
            found = ranked(one.probabilities, classes, len(numbers))
            best = [value for name, share in found for value in (name, f"{share:.6f}")]
        writer.writerow(map(spelled, [one.path, *best, one.label or "", one.reason or ""]))
