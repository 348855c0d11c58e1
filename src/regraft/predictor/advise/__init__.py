"""`regraft.advise(path)`: what to do with a folder of labelled pictures, found out within a stated time.

    advice = regraft.advise("my pictures", minutes=5)
    advice.accuracy, advice.interval, advice.predictor.predict("new.jpg").labels

The order of things: look at the folder, hold back a test part; measure networks, cuts and heads on validation pictures;
fine-tune the best if there is time; score the chosen one once; train it again on all pictures; judge the labels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from regraft.analysis.extrapolate import extrapolate
from regraft.analysis.findings import (
    Candidate,
    Doubted,
    NextLabels,
    Pictures,
    class_gains,
    confused_pairs,
    expected_accuracy,
)
from regraft.data.folders import folder_root
from regraft.data.pictures import SUFFIXES, decode_pictures
from regraft.errors import DataUnavailable, StudyError
from regraft.predictor.advise.advice import Advice
from regraft.predictor.advise.clock import Clock, comparable, usual_minutes
from regraft.predictor.advise.explore import Explored, Place, explore
from regraft.predictor.advise.final import affordable, final_study, predictor, score
from regraft.predictor.advise.folder import MOST_COMPARED, Looked, look
from regraft.predictor.advise.judge import Judged, judge, propose
from regraft.predictor.advise.sources import WAYS, random_trunk, trunks
from regraft.predictor.advise.stage import Staged, stage
from regraft.predictor.advise.thumbnails import thumbnails
from regraft.predictor.advise.tune import tune
from regraft.study.store import Store, default_store, store_at

SEEDS = (0, 1, 2, 3, 4)
PROPOSED = 20  # pictures of `unlabelled`
MOST_UNLABELLED = 5000  # of them, looked at: all are held in memory
USUAL_EXPONENT = 0.5  # of the learning curve, where it cannot be told
__all__ = ["Advice", "advise"]


def advise(
    path: str | Path,
    *,
    minutes: float | None = None,
    out: str | Path | None = None,
    networks: Sequence[str] = (),
    weights: Mapping[str, str | Path] | None = None,
    unlabelled: str | Path | None = None,
    seeds: Sequence[int] = SEEDS,
    store: Store | str | Path | None = None,
    device: str = "auto",
    offline: bool = False,
    tell: Callable[[str, float], None] = lambda what, share: None,
) -> Advice:
    """Measure what works best on a folder of labelled pictures, and train it.

    path: one subfolder per class, or train/, test/ and val/ of such. Nothing is written there.
    minutes: of wall time, the look at the folder and everything else included; default by the number of pictures.
    out: folder for the predictor (NAME.regraft); default: nothing is written.
    networks: instead of a short list of usual ones. weights: network -> file. unlabelled: folder of more pictures, to
    say which of them to label. seeds: repetitions, each with its own validation pictures.
    tell: what is being done, and the share of the time that is used up.
    Raises StudyError, DataUnavailable for a folder that cannot be used, OutOfTime if the time was too short to measure
    anything. Stopped and started again, it goes on with what is in the store."""
    if not seeds:
        raise StudyError("seeds: at least one is needed")
    if minutes is not None and not 0 < minutes < math.inf:
        raise StudyError(f"minutes must be a number above 0, got {minutes}")
    clock = Clock(minutes or 1.0, tell)
    root = folder_root(path)
    more = None if unlabelled is None else folder_root(unlabelled, option="--unlabelled")
    name = root.name or "pictures"
    _check_out(root, out)
    clock.says("reading the pictures")
    looked = look(root, compared=comparable(minutes, MOST_COMPARED))
    clock.minutes = minutes or usual_minutes(len(looked.pictures))
    staged = stage(looked)
    shelf = store if isinstance(store, Store) else store_at(store) if store else default_store()
    place = Place(shelf, staged.data, tuple(seeds), device, offline)
    found = _measured(looked, place, networks, weights or {}, clock)
    counts = np.bincount([picture.label for picture in looked.of("train")])
    cells = affordable(found.seconds_a_cell, clock)
    study = final_study(found.best, found.frozen, place, counts.tolist(), _study_name(name), cells=cells)
    scored = score(study, place, clock)
    clock.says("labels in doubt")
    judged = judge(found.frozen, place, clock)
    everything = staged if looked.own_test else stage(looked, everything=True)
    made, learnt = predictor(scored, staged, everything, place, clock)
    file = None if out is None else made.save(Path(out).expanduser() / f"{_study_name(name)}.regraft")
    extrapolation = extrapolate(scored.curve, chance=1 / len(looked.classes), test_images=scored.cell.test_images)
    exponent = extrapolation.law[2] if extrapolation.law and extrapolation.told else USUAL_EXPONENT
    doubted = _doubted(judged, looked, staged)
    following = _next(judged, looked, exponent, more, found, place)  # may add a note
    return Advice(
        pictures=_pictures(looked), tried=_tried(found), chosen=found.best.candidate(),
        expected=expected_accuracy(scored.accuracies, scored.cell.test_images), extrapolation=extrapolation,
        answered=judged.accuracy, confused=confused_pairs(judged.predicted, judged.labels.tolist(), looked.classes),
        doubted=doubted, wrong_labels=judged.doubts.estimate, self_test=judged.test,
        next=following, notes=tuple(found.notes),
        thumbnails=thumbnails([looked.root / one.file for one in doubted]), seconds=clock.spent, minutes=clock.minutes,
        predictor_file=None if file is None else str(file), trained_on=learnt, results=scored.results, predictor=made,
    )  # fmt: skip


def _measured(
    looked: Looked, place: Place, networks: Sequence[str], weights: Mapping[str, str | Path], clock: Clock
) -> Explored:
    clock.says("looking for trained networks")
    files = {network: Path(file) for network, file in weights.items()}
    ready, missing = trunks(networks, files, side=looked.side, offline=place.offline)
    from_scratch = not ready
    if from_scratch:
        ready = [random_trunk(looked.side)]
    found = explore(ready, place, clock)
    if from_scratch:
        found.notes.insert(0, "No trained network is to be had here: random weights were used. " + "; ".join(
            f"{i}. {way}" for i, way in enumerate(WAYS, start=1)
        ))  # fmt: skip
    found.notes += [f"not compared: {reason}" for reason in missing]
    tune(found, place, len(looked.of("train")), clock)
    return found


def _check_out(root: Path, out: str | Path | None) -> None:
    if out is None:
        return
    try:
        place = Path(out).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise StudyError(f"--out {out}: {error}; name another folder") from None
    if place.resolve().is_relative_to(root):
        raise StudyError(
            f"--out {out} lies inside the pictures' folder, where it would be taken for a class; name another"
        )


def _study_name(name: str) -> str:
    """The folder's name as a study and a file can have it."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).strip("-._")
    return (plain or "pictures")[:60]


def _pictures(looked: Looked) -> Pictures:
    counts = np.bincount([picture.label for picture in looked.pictures], minlength=len(looked.classes))
    return Pictures(
        looked.root.name, looked.classes, tuple(counts.tolist()), len(looked.of("train")), len(looked.of("test")),
        looked.own_test, looked.side, looked.problems,
    )  # fmt: skip


def _tried(found: Explored) -> tuple[Candidate, ...]:
    """The best recipe of each configuration, the best configuration first."""
    best: dict[tuple[str, str], Candidate] = {}
    for choice in sorted(found.choices, key=lambda c: c.merit, reverse=True):
        best.setdefault((choice.trunk.name, choice.row.name), choice.candidate())
    return tuple(best.values())


def _doubted(judged: Judged, looked: Looked, staged: Staged) -> tuple[Doubted, ...]:
    files = staged.read("train", judged.unreadable)
    names = looked.classes
    return tuple(
        Doubted(files[s.index].name, names[s.label], names[s.proposed], s.self_confidence, s.margin)
        for s in judged.doubts.suspects
    )


def _next(
    judged: Judged, looked: Looked, exponent: float, unlabelled: Path | None, found: Explored, place: Place
) -> NextLabels:
    gains = class_gains(judged.predicted, judged.labels.tolist(), looked.classes, exponent=exponent)
    clear = len(gains) > 1 and gains[0].low > max(one.error for one in gains[1:])
    pictures: tuple[tuple[str, float], ...] = ()
    if unlabelled is not None:
        pictures = _proposed(unlabelled, found, place)
    return NextLabels(gains, clear, pictures)


def _proposed(folder: Path, found: Explored, place: Place) -> tuple[tuple[str, float], ...]:
    """Pictures of a folder, at any depth, that would teach most."""
    files = sorted(
        Path(parent) / file for parent, _, names in os.walk(folder) for file in names
        if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
    )  # fmt: skip
    if (count := len(files)) > MOST_UNLABELLED:
        files = [files[i * count // MOST_UNLABELLED] for i in range(MOST_UNLABELLED)]
        found.notes.append(
            f"--unlabelled: {MOST_UNLABELLED:,} of {count:,} pictures were looked at, evenly spread over their names"
        )
    size, kept, images = found.frozen.trunk.image_size, [], []
    for file, image in zip(files, decode_pictures(files, size), strict=True):
        if not isinstance(image, str):
            kept.append(file)
            images.append(image)
    if not kept:
        raise DataUnavailable(f"--unlabelled: {folder} has no picture that can be read")
    chosen = propose(found.frozen, place, np.stack(images), penalty=0.05, count=PROPOSED)
    return tuple((kept[i].relative_to(folder).as_posix(), margin) for i, margin in chosen)
