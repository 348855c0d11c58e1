"""Test images that the best networks got wrong: pictures, what they were taken for, and the true class as far as stored
scores tell it.

Test labels stay closed. A wrong answer says that the class is not the predicted one; which it is, is known where
another scored run of the study was right about the same image."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.data import load_dataset
from regraft.errors import DataError, RegraftError
from regraft.show.sections_classes import SHOWN_TARGETS
from regraft.study.answers import Answers, read_answers
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.results import Cell, Results

SHOWN = 24  # pictures in a report
SIDE = 64  # pixels; larger pictures are shrunk to it
MOST_BYTES = 200_000  # of all pictures; a third more as text

Where = tuple[str, int]  # row, seed


@dataclass(frozen=True)
class Mistake:
    """A test image that a cell got wrong."""

    picture: str  # data URI of a PNG
    position: int  # in the whole test split
    predicted: str
    true: str  # "" where no run of the study was right about it
    confidence: float | None  # softmax of the predicted class
    wrong: int  # scored runs of the study that got it wrong, of those that were asked about it
    asked: int

    @property
    def text(self) -> str:
        """'test image 4,123: taken for cat (99 % sure), is dog; 5 of 21 runs got it wrong'."""
        sure = "" if self.confidence is None else f" ({100 * self.confidence:.0f} % sure)"
        is_ = f"is {self.true}" if self.true else "its class is known from no run"
        runs = f"{self.wrong} of {self.asked} {'run' if self.asked == 1 else 'runs'} got it wrong"
        return f"test image {self.position:,}: taken for {self.predicted}{sure}, {is_}; {runs}"


@dataclass(frozen=True)
class Mistakes:
    """Those of one cell, the worst first."""

    row: str
    seed: int
    target: str
    by_confidence: bool  # else by how many runs got them wrong, those that some run was right about first
    wrong: int  # test images that the cell got wrong
    test_images: int
    shown: tuple[Mistake, ...]


def worst_mistakes(results: Results) -> list[Mistakes]:
    """Of the best cell of each target, by validation. [] where the store or its answers are not known; targets whose
    pictures are not on this machine, or are no longer those that were scored, are left out."""
    answers = read_answers(results)
    if not answers or results.store is None:
        return []
    best = _best(results, answers)[:SHOWN_TARGETS]
    keys = Keys(plan(results.study), results.store, offline=True)
    told = _told(results, answers)
    found, left = [], MOST_BYTES
    for cell in best:
        try:
            images = _test_images(cell, keys)
        except RegraftError:
            continue  # not here: a report is not the place to fetch them
        mistakes = _mistakes(cell, answers[cell.row, cell.seed], told[cell.data])
        chosen = []
        for mistake in mistakes.shown[: SHOWN // len(best)]:
            png = thumbnail(images[mistake.position])
            left -= len(png)
            if left < 0:
                break
            address = "data:image/png;base64," + base64.b64encode(png).decode()
            chosen.append(Mistake(**{**vars(mistake), "picture": address}))
        if chosen:
            found.append(Mistakes(**{**vars(mistakes), "shown": tuple(chosen)}))
    return found


def _best(results: Results, answers: Mapping[Where, Answers]) -> list[Cell]:
    best: dict[str, Cell] = {}
    for cell in results.cells:
        if (cell.row, cell.seed) not in answers:
            continue
        other = best.get(cell.target)
        if other is None or (cell.validation_accuracy or 0.0) > (other.validation_accuracy or 0.0):
            best[cell.target] = cell
    return list(best.values())


@dataclass(frozen=True, eq=False)
class _Told:
    """What all scored runs say together of one data set's test images, by position in the whole test split."""

    true: NDArray[np.object_]  # (n,) class by a run that was right about the image; "" if none was
    wrong: NDArray[np.int64]  # (n,) runs
    asked: NDArray[np.int64]  # (n,) runs


def _told(results: Results, answers: Mapping[Where, Answers]) -> dict[str, _Told]:
    """By data set."""
    found: dict[str, _Told] = {}
    size = 1 + max(int(given.positions.max()) for given in answers.values())
    for cell in results.cells:
        given = answers.get((cell.row, cell.seed))
        if given is None:
            continue
        told = found.setdefault(
            cell.data, _Told(np.full(size, "", object), np.zeros(size, np.int64), np.zeros(size, np.int64))
        )
        names = np.array(cell.class_names, object)
        told.true[given.positions[given.correct]] = names[given.predicted[given.correct]]
        told.wrong[given.positions[~given.correct]] += 1
        told.asked[given.positions] += 1
    return found


def _mistakes(cell: Cell, given: Answers, told: _Told) -> Mistakes:
    """The surest first. Without confidences, those that most runs were wrong about, but some run right about, first."""
    wrong = np.flatnonzero(~given.correct)
    positions = given.positions[wrong]
    share = told.wrong[positions] / told.asked[positions]
    sure = None if given.confidence is None else given.confidence[wrong]
    first = told.true[positions] == "" if sure is None else -sure
    shown = []
    for i in np.lexsort((positions, -share, first))[:SHOWN].tolist():
        at = int(positions[i])
        shown.append(
            Mistake(
                picture="", position=at, predicted=cell.class_names[int(given.predicted[wrong[i]])],
                true=str(told.true[at]), confidence=None if sure is None else float(sure[i]),
                wrong=int(told.wrong[at]), asked=int(told.asked[at]),
            )
        )  # fmt: skip
    return Mistakes(cell.row, cell.seed, cell.target, sure is not None, len(wrong), len(given), tuple(shown))


def _test_images(cell: Cell, keys: Keys) -> NDArray[np.uint8]:
    """(n, h, w, c) of the whole test split. Raises RegraftError if these are not the images that were scored."""
    run = keys.by_cell[cell.row, cell.seed][0]
    data = load_dataset(run.target.data, keys.decoded_size(run), offline=True)
    if data.digest != keys.store.read(cell.key).spec["data"]["digest"]:
        raise DataError(f"{run.target.data} has changed since it was scored")
    return data.test.images


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """(h, w, c) uint8 -> PNG, at most SIDE pixels wide and high."""
    from PIL import Image

    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
