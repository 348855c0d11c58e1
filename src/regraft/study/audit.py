"""What is wrong with the images of a study: duplicates that cross its parts, odd classes, empty or unreadable pictures.

Test labels stay closed: what is told of them is what stored scores tell already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from regraft.data import Dataset
from regraft.data.duplicates import Threshold, nearly_constant
from regraft.errors import DataError
from regraft.spec import Run, Study
from regraft.study.bench import Bench, Setting
from regraft.study.keys import Keys
from regraft.study.plan import Cell, plan
from regraft.study.results import Results, read_results
from regraft.study.store import Store, default_store
from regraft.study.twins import STEPS, Part, Positions, SetKey, Twins

Advance = Callable[[float, str], None]
CLOSEST = 20  # pairs whose pictures are kept to be shown


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
    pictures: tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], ...]  # of the first pairs, (h, w, c) each
    unavailable: dict[str, str] = field(default_factory=dict)  # data set -> why it could not be looked at
    unseen: tuple[str, ...] = ()  # sources whose training images are not known here


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
    """Look at the images of every data set of `study`. Sets that cannot be had are named with the reason.

    Compared are test images with training and validation images and with each other, validation with training images
    (of all seeds and budgets), and the test images of rows whose source is a row with what that was trained on.
    Raises StudyError for a wrong study, DataError where no data set can be had."""
    store = store or default_store()
    budgets = _Budgets(Bench(Setting(str(store.root), tuple(plan(study)), "cpu", threads, offline)))
    twins = Twins(budgets.data, budgets.used, budgets.held_out)
    between = budgets.between()
    steps, done = STEPS * len(twins.data) + len(between), count()

    def began(what: str) -> None:
        advance(next(done) / steps, what)

    for key in twins.data:
        twins.search_in(key, began)
    for ours, theirs in between:
        began(f"{ours[0]} and {theirs[0]}")
        twins.search_between(ours, theirs)
    told = _Told(read_results(study, store), store)
    pairs = _pairs(twins, told)
    return Audit(
        study=study,
        sets=tuple(_set_audit(key, twins, told) for key in twins.data),
        crossings=tuple(budgets.crossings(twins)),
        pairs=tuple(pairs),
        flagged={cell: budgets.flagged(cell, twins) for cell in budgets.cells if budgets.task(cell) is not None},
        pictures=tuple((_picture(twins, pair.first), _picture(twins, pair.second)) for pair in pairs[:CLOSEST]),
        unavailable=budgets.unavailable,
        unseen=_unseen(budgets.keys.runs),
    )


def without_duplicates(results: Results, audited: Audit, store: Store | None = None) -> list[Without]:
    """Each scored cell of `results` again, its flagged test images left out. Reads stored scores, and no label.

    Few-shot episodes are left out: what they store is accuracies of episodes, not of images."""
    store = store or default_store()
    keys = Keys(plan(results.study), store, offline=True)
    found = []
    for cell in results.cells:
        positions = audited.flagged.get((cell.row, cell.seed))
        if cell.episodes is not None or positions is None:
            continue
        tensors = store.tensors(store.read(keys.score_key(keys.final((cell.row, cell.seed)))))
        correct = tensors["correct"].numpy().astype(bool)  # (n,)
        out = np.isin(tensors["positions"].numpy(), positions)
        if out.all():
            continue  # nothing would be left
        found.append(
            Without(
                cell.row, cell.seed, len(correct), int(out.sum()), cell.accuracy, float(correct[~out].mean()),
                float(correct[out].mean()) if out.any() else None,
            )
        )  # fmt: skip
    return found


def _unseen(runs: Sequence[Run]) -> tuple[str, ...]:
    """Sources with weights that somebody else trained."""
    sources = {run.source_name: run.source for run in runs}
    return tuple(
        f"{name} ({source.network}, {source.weights} weights)"
        for name, source in sources.items()
        if source.run is None and source.weights != "random"
    )


# --- which images are where ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Task:
    """A target with one seed: which images are in its parts."""

    train: Part
    validation: Part | None
    test: Part


class _Budgets:
    """The parts of all targets and seeds of a study."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.keys = bench, bench.keys
        self.cells = self.keys.by_cell
        self.data: dict[SetKey, Dataset] = {}
        self.tasks: dict[tuple[str, int], _Task] = {}  # target, seed
        self.unavailable: dict[str, str] = {}
        self._used: dict[tuple[SetKey, str], Positions] = {}
        for members in self.cells.values():
            self._read(members[0])
        if self.unavailable and not self.tasks:
            raise DataError("; ".join(self.unavailable.values()))

    def _read(self, run: Run) -> None:
        if (run.target_name, run.seed) in self.tasks or run.target.data in self.unavailable:
            return
        try:
            key = self.keys.info(run.target.data).name, self.keys.decoded_size(run)
            self.data[key] = self.bench.whole(run)
        except DataError as error:
            self.unavailable[run.target.data] = str(error)
            return
        train, held = self.bench.parts(run)
        self.tasks[run.target_name, run.seed] = _Task(
            (key, train.split, train.positions),
            None if held is None else (key, held.split, held.positions),
            (key, "test", self.bench.test(run).indices),
        )

    def task(self, cell: Cell) -> _Task | None:
        """None where the data could not be had."""
        return self.tasks.get((self.cells[cell][0].target_name, cell[1]))

    def learned(self, cell: Cell) -> list[tuple[str, Part]]:
        """What a row's network has learned from with a seed, each part with the row that did: its own images, and those
        of the rows that it was cut from."""
        run, task = self.cells[cell][0], self.task(cell)
        parts = []
        if task is not None:
            recipes = [member.recipe for member in self.cells[cell]]
            parts.append(task.train)
            if task.validation is not None and any(recipe.refit for recipe in recipes):
                parts.append(task.validation)
            if any(recipe.semi != "none" for recipe in recipes):
                parts.append((task.train[0], "train", self.bench.unlabelled(run).positions))
        source = self.keys.source_cell(run)
        return [*((cell[0], part) for part in parts), *(self.learned(source) if source else [])]

    def used(self, key: SetKey, split: str) -> Positions:
        """Sorted positions that any part of any run has."""
        if (key, split) not in self._used:
            parts = [part for task in self.tasks.values() for part in (task.train, task.validation, task.test)]
            learned = [part for cell in self.cells for _, part in self.learned(cell)]
            own = [part[2] for part in (*parts, *learned) if part is not None and part[:2] == (key, split)]
            self._used[key, split] = _union(own)
        return self._used[key, split]

    def held_out(self, key: SetKey) -> Positions:
        """Sorted positions, in the training split, of the images that validate any budget."""
        held = [task.validation for task in self.tasks.values() if task.validation is not None]
        return _union([part[2] for part in held if part[:2] == (key, "train")])

    def between(self) -> list[tuple[SetKey, SetKey]]:
        """(own, of a source): test images of the first are to be compared with training images of the second."""
        found = {
            (task.test[0], part[0]): None
            for cell in self.cells
            if (task := self.task(cell)) is not None
            for _, part in self.learned(cell)
            if part[0] != task.test[0]
        }
        return list(found)

    def flagged(self, cell: Cell, twins: Twins) -> Positions:
        """Test images that are like one that the cell's network has learned from."""
        task = self.task(cell)
        assert task is not None
        return _union([twins.of(task.test, part) for _, part in self.learned(cell)])

    def crossings(self, twins: Twins) -> Iterator[Crossing]:
        """Part by part for every target and seed, then for the rows that targets' sources are."""
        for (target, seed), task in self.tasks.items():
            sides = [("test", task.test, "training", task.train), ("test", task.test, "test", task.test)]
            if task.validation is not None:
                sides.insert(1, ("test", task.test, "validation", task.validation))
                sides.append(("validation", task.validation, "training", task.train))
            for name, part, other_name, other in sides:
                yield Crossing(target, seed, name, other_name, len(twins.of(part, other)), len(part[2]))
        told = set()
        for cell, members in self.cells.items():
            own = self.task(cell)
            if own is None:
                continue
            of_sources: dict[str, list[Positions]] = {}
            for row, part in self.learned(cell):
                if row != cell[0]:
                    of_sources.setdefault(row, []).append(twins.of(own.test, part))
            for row, found in of_sources.items():
                place = (members[0].target_name, cell[1], row)
                if place not in told:  # rows with the same source and target ask the same question
                    told.add(place)
                    yield Crossing(
                        *place[:2], "test", f"training, of source row {row}", len(_union(found)), len(own.test[2])
                    )


def _union(parts: Sequence[Positions]) -> Positions:
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


# --- what is told of them -----------------------------------------------------------------------------------------


class _Told:
    """What stored scores tell of test labels: of an image that any run was right about, its class."""

    def __init__(self, results: Results, store: Store) -> None:
        self.labels: dict[str, dict[int, str]] = {}  # data set -> position -> class
        self.counts: dict[str, dict[str, int]] = {}  # data set -> class -> test images, where all were scored
        keys = Keys(plan(results.study), store, offline=True)
        seen = set()
        for cell in results.cells:
            run = keys.final((cell.row, cell.seed))
            name = keys.info(run.target.data).name
            if cell.episodes is not None or cell.key in seen:
                continue
            seen.add(cell.key)
            if run.target.classes is None and run.target.test_images is None:
                self.counts[name] = dict(zip(cell.class_names, map(sum, cell.confusion), strict=True))
            tensors = store.tensors(store.read(keys.score_key(run)))
            right = tensors["correct"].bool()
            at, classes = tensors["positions"][right].tolist(), tensors["predicted"][right].tolist()
            self.labels.setdefault(name, {}).update(zip(at, (cell.class_names[c] for c in classes), strict=True))


def _pairs(twins: Twins, told: _Told) -> list[Pair]:
    """All pairs, the closest first."""

    def label(place: Place, key: SetKey) -> str | None:
        if place.split == "test":
            return told.labels.get(place.data, {}).get(place.position)
        data = twins.data[key]
        split = data.train if place.split == "train" else data.validation
        assert split is not None
        return split.classes[int(split.labels[place.position])]

    found = []
    for (key, split, other_key, other_split), pairs in twins.pairs.items():
        columns = (pairs.first, pairs.second, pairs.correlation, pairs.exact, pairs.mirrored)
        for first, second, correlation, exact, mirrored in zip(*(column.tolist() for column in columns), strict=True):
            one, other = Place(*key, split, first), Place(*other_key, other_split, second)
            found.append(Pair(one, other, correlation, exact, mirrored, (label(one, key), label(other, other_key))))
    return sorted(found, key=lambda pair: (not pair.exact, -pair.correlation, str(pair.first), str(pair.second)))


def _picture(twins: Twins, place: Place) -> NDArray[np.uint8]:
    """(h, w, c), a copy."""
    return np.array(twins.images((place.data, place.size), place.split)[place.position])


def _set_audit(key: SetKey, twins: Twins, told: _Told) -> SetAudit:
    data = twins.data[key]
    splits = {name: split for name, split in (("train", data.train), ("validation", data.validation)) if split}
    classes = {name: dict(zip(split.classes, split.class_counts, strict=True)) for name, split in splits.items()}
    if key[0] in told.counts:
        classes["test"] = told.counts[key[0]]
    images = {name: len(split) for name, split in splits.items()} | {"test": len(data.test)}
    constant = [
        Place(*key, split, position)
        for split, n in images.items()
        for position in nearly_constant(twins.images(key, split), np.arange(n)).tolist()
    ]
    return SetAudit(
        key[0], data.image_size, twins.thresholds[key], images, classes, tuple(constant), data.unreadable
    )  # fmt: skip
