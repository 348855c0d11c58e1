"""The search of an audit: which images of a study's budgets are like one of another part. All it gives is plain data,
by places in the audit's question and not by names, so that it can be kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.data import Dataset
from regraft.data.sketches import nearly_constant
from regraft.errors import DataError
from regraft.spec import Run
from regraft.study.audit_question import Positions, Question, SetKey
from regraft.study.bench import Bench
from regraft.study.twins import STEPS, Part, Twins

Advance = Callable[[float, str], None]
CLOSEST = 20  # pairs whose pictures are kept to be shown
PICTURE = 96  # pixels, the side of those at most


@dataclass(frozen=True, eq=False)
class Task:
    """A target with one seed: which images are in its parts."""

    train: Part
    validation: Part | None
    test: Part


class Search:
    """Of everything that a question asks. Sets that cannot be had are in `unavailable` (data set -> why)."""

    def __init__(self, question: Question, bench: Bench) -> None:
        self.question, self.bench = question, bench
        self.unavailable = dict(question.unavailable)
        self.data: dict[SetKey, Dataset] = {}
        self.tasks = [self._task(run) for run in question.budgets.values()]  # None: its data cannot be had
        self._used: dict[tuple[SetKey, str], Positions] = {}

    def found(self, advance: Advance) -> dict[str, Any]:
        """All that was found, as JSON; None in place of what cannot be had."""
        twins = Twins(self.data, self.used, self.held_out)
        between = self.between()
        steps, done = STEPS * len(twins.data) + len(between), count()

        def began(what: str) -> None:
            advance(next(done) / steps, what)

        for key in twins.data:
            twins.search_in(key, began)
        for ours, theirs in between:
            began(f"{ours[0]} and {theirs[0]}")
            twins.search_between(ours, theirs)
        pairs = self._pairs(twins)
        keys = list(self.question.sets)
        closest = [[_png(twins.images(keys[at[0]], at[1])[at[2]]) for at in pair[:2]] for pair in pairs[:CLOSEST]]
        return {
            "sets": [_set_found(i, key, twins) if key in self.data else None for i, key in enumerate(keys)],
            "budgets": [None if task is None else _crossings(task, twins) for task in self.tasks],
            "lineages": [self._lineage(place, twins) for place in range(len(self.question.lineages))],
            "pairs": pairs,
            "pictures": closest,
        }

    # --- which images are where -----------------------------------------------------------------------------

    def _task(self, run: Run) -> Task | None:
        key = self.question.set_of(run)
        if key is None or run.target.data in self.unavailable:
            return None
        try:
            self.data[key] = self.bench.whole(run)
        except DataError as error:
            self.unavailable[run.target.data] = str(error)
            return None
        train, held = self.bench.parts(run)
        return Task(
            (key, train.split, train.positions),
            None if held is None else (key, held.split, held.positions),
            (key, "test", self.bench.test(run).indices),
        )

    def own(self, place: int) -> list[Part]:
        """What a lineage has learned from, but for its sources."""
        lineage = self.question.lineages[place]
        if (task := self.tasks[lineage.budget]) is None:
            return []
        parts = [task.train]
        if task.validation is not None and lineage.refit:
            parts.append(task.validation)
        if lineage.unlabelled:
            run = list(self.question.budgets.values())[lineage.budget]
            parts.append((task.train[0], "train", self.bench.unlabelled(run).positions))
        return parts

    def learned(self, place: int) -> list[Part]:
        """The same with its sources."""
        return [part for each in self.question.chain(place) for part in self.own(each)]

    def used(self, key: SetKey, split: str) -> Positions:
        """Sorted positions that any part of any run has."""
        if (key, split) not in self._used:
            of_tasks = [part for task in self.tasks if task for part in (task.train, task.validation, task.test)]
            learned = [part for place in range(len(self.question.lineages)) for part in self.own(place)]
            own = [part[2] for part in (*of_tasks, *learned) if part is not None and part[:2] == (key, split)]
            self._used[key, split] = _union(own)
        return self._used[key, split]

    def held_out(self, key: SetKey) -> Positions:
        """Sorted positions, in the training split, of the images that validate any budget."""
        held = [task.validation for task in self.tasks if task is not None and task.validation is not None]
        return _union([part[2] for part in held if part[:2] == (key, "train")])

    def between(self) -> list[tuple[SetKey, SetKey]]:
        """(own, of a source): test images of the first are to be compared with training images of the second."""
        found = {
            (task.test[0], part[0]): None
            for place, lineage in enumerate(self.question.lineages)
            if (task := self.tasks[lineage.budget]) is not None
            for part in self.learned(place)
            if part[0] != task.test[0]
        }
        return list(found)

    # --- what is found --------------------------------------------------------------------------------------

    def _lineage(self, place: int, twins: Twins) -> dict[str, Any] | None:
        """Test images that are like one it has learned from, and how many are like one that each source has."""
        task = self.tasks[self.question.lineages[place].budget]
        if task is None:
            return None
        test = task.test
        like = [_union([twins.of(test, part) for part in self.own(each)]) for each in self.question.chain(place)]
        return {"flagged": _union(like).tolist(), "of": len(test[2]), "of_sources": [len(each) for each in like[1:]]}

    def _pairs(self, twins: Twins) -> list[list[Any]]:
        """All pairs, the closest first: [[set, split, position], the same of the other, correlation, same bytes,
        mirrored, class, class of the other]; None for the class of a test image."""
        places = {key: i for i, key in enumerate(self.question.sets)}
        found = []
        for (key, split, other_key, other_split), pairs in twins.pairs.items():
            columns = (pairs.first, pairs.second, pairs.correlation, pairs.exact, pairs.mirrored)
            for first, second, *rest in zip(*(column.tolist() for column in columns), strict=True):
                ends = [places[key], split, first], [places[other_key], other_split, second]
                found.append(
                    [*ends, *rest, self._label(key, split, first), self._label(other_key, other_split, second)]
                )
        return sorted(found, key=lambda pair: (not pair[3], -pair[2], pair[0], pair[1]))

    def _label(self, key: SetKey, split: str, position: int) -> str | None:
        if split == "test":
            return None
        part = self.data[key].train if split == "train" else self.data[key].validation
        assert part is not None
        return part.classes[int(part.labels[position])]


def _union(parts: Sequence[Positions]) -> Positions:
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def _crossings(task: Task, twins: Twins) -> list[tuple[str, str, int, int]]:
    """(part, other, images of the part that are in the other, images of the part)"""

    def counted() -> Iterator[tuple[str, str, Part, Part]]:
        yield "test", "training", task.test, task.train
        if task.validation is not None:
            yield "test", "validation", task.test, task.validation
        yield "test", "test", task.test, task.test
        if task.validation is not None:
            yield "validation", "training", task.validation, task.train

    return [(name, other, len(twins.of(part, in_other)), len(part[2])) for name, other, part, in_other in counted()]


def _set_found(place: int, key: SetKey, twins: Twins) -> dict[str, Any]:
    data = twins.data[key]
    splits = {name: split for name, split in (("train", data.train), ("validation", data.validation)) if split}
    images = {name: len(split) for name, split in splits.items()} | {"test": len(data.test)}
    return {
        "image_size": data.image_size,
        "threshold": asdict(twins.thresholds[key]),
        "images": images,
        "classes": {name: list(zip(split.classes, split.class_counts, strict=True)) for name, split in splits.items()},
        "constant": [
            [place, split, position]
            for split, n in images.items()
            for position in nearly_constant(twins.images(key, split), np.arange(n)).tolist()
        ],
        "unreadable": list(data.unreadable),
    }


def _png(picture: NDArray[np.uint8]) -> str:
    """(h, w, c) -> a PNG file in base64; larger ones are shrunk."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    image.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
