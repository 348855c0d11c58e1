"""What is wrong with the images of a study: duplicates that cross its parts, odd classes, empty or unreadable pictures.

What was found is kept in the store under what determines it (`audit_question`), and read from there without torch.
Test labels stay closed: what is told of them is what stored scores tell already.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.data import dataset_info
from regraft.data.likeness import Threshold
from regraft.errors import DataError
from regraft.spec import Study
from regraft.study.answers import Answers, read_answers
from regraft.study.audit_question import Positions, Question
from regraft.study.keys import Keys
from regraft.study.plan import Cell, plan
from regraft.study.results import Results, read_results
from regraft.study.store import Payload, Store, default_store, key_of

Advance = Callable[[float, str], None]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Place:
    """Where an image is: data set (with the side it was decoded to, of pictures of any size), split, and position in
    that whole split."""

    data: str
    size: int | None
    split: str  # "train", "validation" (a folder's own) or "test"
    position: int

    def __str__(self) -> str:
        size = "" if self.size is None else f" at {self.size} px"
        return f"{self.data}{size} {self.split} {self.position}"


@dataclass(frozen=True)
class Pair:
    """Two images that are taken for the same picture."""

    first: Place
    second: Place
    correlation: float
    exact: bool  # the same bytes
    mirrored: bool
    labels: tuple[str | None, str | None]  # None: a test label that no stored score tells

    @property
    def labels_differ(self) -> bool:
        """Whether both labels are known, of one data set, and not the same."""
        return self.first.data == self.second.data and None not in self.labels and self.labels[0] != self.labels[1]


@dataclass(frozen=True)
class SetAudit:
    """What was found in one data set."""

    data: str
    image_size: int  # side in pixels
    threshold: Threshold
    images: dict[str, int]  # of each split
    classes: dict[str, dict[str, int]]  # split -> class -> images; of test images, where stored scores tell
    constant: tuple[Place, ...]
    unreadable: tuple[str, ...]  # files, each with the reason


@dataclass(frozen=True)
class Crossing:
    """Images of one part of a budget that are in another part as well."""

    target: str
    seed: int
    part: str
    other: str
    images: int  # of `part`, with at least one like it in `other`
    of: int  # images in `part`

    @property
    def share(self) -> float:
        return self.images / max(1, self.of)


@dataclass(frozen=True, eq=False)
class Audit:
    """All that was found for a study."""

    study: Study
    sets: tuple[SetAudit, ...]
    crossings: tuple[Crossing, ...]
    pairs: tuple[Pair, ...]  # the closest first
    flagged: dict[Cell, Positions]  # row and seed -> test images that are like one it learned from
    pictures: tuple[tuple[bytes, bytes], ...]  # of the first pairs, PNG files
    unavailable: dict[str, str] = field(default_factory=dict)  # data set -> why it could not be looked at
    unseen: tuple[str, ...] = ()  # sources whose training images are not known here
    record: dict[str, Any] = field(default_factory=dict)  # of the search: versions, machine, seconds; none if not kept


@dataclass(frozen=True)
class Without:
    """A scored cell with and without the test images that are like one it learned from."""

    row: str
    seed: int
    test_images: int
    flagged: int
    accuracy: float  # fraction of all scored test images
    without: float  # fraction of those that are left
    on_flagged: float | None  # fraction of those that are left out; None: there are none

    @property
    def change(self) -> float:
        """By how much the accuracy changes when the flagged images are left out."""
        return self.without - self.accuracy


def audit(
    study: Study,
    store: Store | None = None,
    *,
    offline: bool = False,
    threads: int | None = None,
    advance: Advance = lambda done, message: None,
) -> Audit:
    """Look at the images of every data set of `study`, or read what was found from the store.

    Compared are test images with training and validation images and with each other, validation with training images
    (of all seeds and budgets), and the test images of rows whose source is a row with what that was trained on.
    Sets that cannot be had are named with the reason; what is found in the others is then not kept.
    Raises StudyError for a wrong study, DataError where no data set can be had."""
    store = store or default_store()
    results = read_results(study, store)
    if (found := stored_audit(results, store)) is not None:
        return found
    from regraft.study.audit_search import Search
    from regraft.study.bench import Bench, Setting

    bench = Bench(Setting(store.location, tuple(plan(study)), "cpu", threads, offline))
    question = Question(bench.keys)
    search = Search(question, bench)
    if search.unavailable:
        if not any(search.tasks):
            raise DataError("; ".join(search.unavailable.values()))
        return _read(study, question, search.found(advance), results, search.unavailable)
    spec = question.spec()
    assert spec is not None, "data sets that were opened have a digest"
    artifact = store.cached(spec, lambda scratch: Payload(search.found(advance)))
    return _read(study, question, artifact.values, results, {}, artifact.record)


def stored_audit(of: Results | Study, store: Store | None = None) -> Audit | None:
    """The audit of a study as the store has it, beside the results that it has; None if there is none."""
    store = store or (of.store if isinstance(of, Results) else None) or default_store()
    results = of if isinstance(of, Results) else read_results(of, store)
    question = Question(Keys(plan(results.study), store, offline=True))
    spec = question.spec()
    artifact = None if spec is None else store.get(key_of(spec))
    return None if artifact is None else _read(results.study, question, artifact.values, results, {}, artifact.record)


def audit_seconds_estimate(study: Study) -> float | None:
    """About how long an audit takes on one core, in seconds; None while the size of a data set is not known here.

    From measured CPU time for each image sketched, searched for, and calibrated on (LOG.md)."""
    seconds = 0.0
    for data, validation in {(t.data, t.holds_out) for t in study.targets.values()}:
        info = dataset_info(data)
        if not info.known or info.test_images is None:
            return None
        train = sum(info.train_counts)
        searched = 1.6 * info.test_images + (0.1 * train if validation else 0.0)
        calibrated = 2 * min(1500, train)
        area = (min(info.image_size or 64, 64) / 32) ** 2
        seconds += 1e-4 * (train + info.test_images) + (0.0025 * searched + 0.004 * calibrated) * max(0.2, area)
    return seconds


def audit_key(study: Study, store: Store) -> str | None:
    """Key of the audit in the store, whether it is there or not; None while the content of a data set is not known."""
    spec = Question(Keys(plan(study), store, offline=True)).spec()
    return None if spec is None else key_of(spec)


def without_duplicates(results: Results, audited: Audit) -> list[Without]:
    """Each scored cell of `results` again, its flagged test images left out. Reads stored scores, and no label.

    Few-shot episodes are left out: what they store is accuracies of episodes, not of images."""
    answers = read_answers(results)
    found = []
    for cell in results.cells:
        positions, given = audited.flagged.get((cell.row, cell.seed)), answers.get((cell.row, cell.seed))
        if positions is None or given is None:
            continue
        out = np.isin(given.positions, positions)
        if out.all():
            continue  # nothing would be left
        correct = given.correct
        found.append(
            Without(
                cell.row, cell.seed, len(correct), int(out.sum()), cell.accuracy, float(correct[~out].mean()),
                float(correct[out].mean()) if out.any() else None,
            )
        )  # fmt: skip
    return found


# --- from what is stored ------------------------------------------------------------------------------------------


def _read(
    study: Study,
    question: Question,
    values: Mapping[str, Any],
    results: Results,
    unavailable: dict[str, str],
    record: Mapping[str, Any] | None = None,
) -> Audit:
    """What `audit_search.Search.found` gave, under the study's names."""
    names = {run.target.data: key[0] for run in question.budgets.values() if (key := question.set_of(run))}
    told = _Told(results, read_answers(results), names)
    data = list(question.sets)

    def place(at: tuple[int, str, int]) -> Place:
        return Place(*data[at[0]], *at[1:])

    def pair(first: tuple[int, str, int], second: tuple[int, str, int], *rest: Any) -> Pair:
        correlation, exact, mirrored, *labels = rest
        places = place(first), place(second)
        known = [told.label(where) if label is None else label for where, label in zip(places, labels, strict=True)]
        return Pair(*places, correlation, exact, mirrored, (known[0], known[1]))

    return Audit(
        study=study,
        sets=tuple(
            _set_audit(key[0], found, told, place)
            for key, found in zip(data, values["sets"], strict=True)
            if found is not None
        ),
        crossings=tuple(_crossings(question, values)),
        pairs=tuple(pair(*one) for one in values["pairs"]),
        flagged={
            cell: np.array(found["flagged"], np.int64)
            for cell, lineage in question.of_cell.items()
            if (found := values["lineages"][lineage]) is not None
        },
        pictures=tuple((base64.b64decode(a), base64.b64decode(b)) for a, b in values["pictures"]),
        unavailable=unavailable,
        unseen=_unseen(study),
        record={name: value for name, value in (record or {}).items() if name != "sha256"},
    )


def _set_audit(name: str, found: dict[str, Any], told: _Told, place: Callable[[Any], Place]) -> SetAudit:
    in_order = [split for split in SPLITS if split in found["images"]]
    classes = {split: dict(found["classes"][split]) for split in in_order if split in found["classes"]}
    if name in told.counts:
        classes["test"] = told.counts[name]
    return SetAudit(
        name, found["image_size"], Threshold(**found["threshold"]),
        {split: found["images"][split] for split in in_order}, classes,
        tuple(map(place, found["constant"])), tuple(found["unreadable"]),
    )  # fmt: skip


def _crossings(question: Question, values: Mapping[str, Any]) -> Iterator[Crossing]:
    """Part by part for every target and seed, then for the rows that targets' sources are."""
    for budget, found in zip(question.budgets, values["budgets"], strict=True):
        for counted in found or ():
            yield Crossing(*budget, *counted)
    told = set()
    for cell, lineage in question.of_cell.items():
        if (found := values["lineages"][lineage]) is None:
            continue
        target = question.keys.by_cell[cell][0].target_name
        for row, images in zip(question.source_rows(cell), found["of_sources"], strict=True):
            if (target, cell[1], row) not in told:  # rows with the same source and target ask the same question
                told.add((target, cell[1], row))
                yield Crossing(target, cell[1], "test", f"training, of source row {row}", images, found["of"])


def _unseen(study: Study) -> tuple[str, ...]:
    """Sources with weights that somebody else trained."""
    used = {row.source for row in study.all_rows()}
    return tuple(
        f"{name} ({source.network}, {source.weights} weights)"
        for name, source in study.sources.items()
        if name in used and source.run is None and source.weights != "random"
    )


class _Told:
    """What stored scores tell of test labels: of an image that any run was right about, its class."""

    def __init__(self, results: Results, answers: Mapping[Cell, Answers], names: Mapping[str, str]) -> None:
        """names: of a target's data -> of the data set."""
        self.labels: dict[str, dict[int, str]] = {}  # data set -> position -> class
        self.counts: dict[str, dict[str, int]] = {}  # data set -> class -> test images, where all were scored
        for cell in results.cells:
            target = results.study.targets[cell.target]
            given, name = answers.get((cell.row, cell.seed)), names.get(target.data)
            if given is None or name is None:  # not scored, or its images cannot be had
                continue
            if target.classes is None and target.test_images is None:
                self.counts[name] = dict(zip(cell.class_names, map(sum, cell.confusion), strict=True))
            at, classes = given.positions[given.correct].tolist(), given.predicted[given.correct].tolist()
            known = self.labels.setdefault(name, {})
            known.update(zip(at, (cell.class_names[c] for c in classes), strict=True))

    def label(self, place: Place) -> str | None:
        """Of a test image."""
        return self.labels.get(place.data, {}).get(place.position)
