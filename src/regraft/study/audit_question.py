"""What an audit of a study asks, and what determines its answer: data sets, budgets, and what each row learned from.
Names of rows, targets and folders play no part in it. No image is read, and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import DataError, WeightsError
from regraft.spec import Run
from regraft.study.keys import Keys
from regraft.study.plan import Cell
from regraft.study.presets import HANDED

VERSION = 1  # raised by hand when another search finds other pairs

Positions = NDArray[np.int64]
SetKey = tuple[str, int | None]  # name, and the side in pixels that pictures of any size are decoded to
Budget = tuple[str, int]  # target, seed


@dataclass(frozen=True)
class Lineage:
    """What a row's network has learned from with a seed: images of a budget, and whatever its source learned from."""

    budget: int  # its place among the question's budgets
    refit: bool  # its validation images too
    unlabelled: bool  # and, without their labels, all training images that it left
    source: int | None  # the lineage of the row that it was cut from


class Question:
    """Of a study: its data sets, its budgets (target and seed), and the lineages of its cells.

    A set whose size or folder cannot be told is in `unavailable` (data set -> why), and its budgets have no set."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.sets: dict[SetKey, Run] = {}  # with a run that uses it
        self.budgets: dict[Budget, Run] = {}
        self.lineages: list[Lineage] = []
        self.of_cell: dict[Cell, int] = {}  # row and seed -> lineage
        self.unavailable: dict[str, str] = {}
        self._places: dict[Lineage, int] = {}
        for cell in keys.by_cell:
            self._add(cell)

    def _add(self, cell: Cell) -> int:
        if cell in self.of_cell:
            return self.of_cell[cell]
        members = self.keys.by_cell[cell]  # they differ in their recipes alone
        run = members[0]
        source = self.keys.source_cell(run)
        above = None if source is None else self._add(source)
        self.budgets.setdefault((run.target_name, run.seed), run)
        if (key := self.set_of(run)) is not None:
            self.sets.setdefault(key, run)
        found = Lineage(
            list(self.budgets).index((run.target_name, run.seed)),
            any(member.recipe.refit for member in members),
            any(member.recipe.semi != "none" for member in members),
            above,
        )
        if found not in self._places:
            self._places[found] = len(self.lineages)
            self.lineages.append(found)
        self.of_cell[cell] = self._places[found]
        return self.of_cell[cell]

    def set_of(self, run: Run) -> SetKey | None:
        """The data set of the run's target; None if that cannot be told here."""
        if run.target.data not in self.unavailable:
            try:
                return self.keys.info(run.target.data).name, self.keys.decoded_size(run)
            except (DataError, WeightsError) as error:
                self.unavailable[run.target.data] = str(error)
        return None

    def chain(self, lineage: int) -> list[int]:
        """The lineage, that of its source, and so on."""
        source = self.lineages[lineage].source
        return [lineage, *([] if source is None else self.chain(source))]

    def source_rows(self, cell: Cell) -> list[str]:
        """The rows that a cell was cut from, the nearest first, in the order of `chain`."""
        source = self.keys.source_cell(self.keys.by_cell[cell][0])
        return [] if source is None else [source[0], *self.source_rows(source)]

    def spec(self) -> dict[str, Any] | None:
        """What determines the answer; None while a data set's content is not known here."""
        if self.unavailable:
            return None
        try:
            digests = [self.keys.data_digest(run) for run in self.sets.values()]
        except DataError:
            return None
        places = {key: i for i, key in enumerate(self.sets)}
        return {
            "stage": "audit", "version": VERSION,
            "sets": [
                {"digest": digest, "mirrors": key[0] not in HANDED}
                for key, digest in zip(self.sets, digests, strict=True)
            ],
            "budgets": [
                {"set": places[key], **_budget(run)} for run in self.budgets.values() if (key := self.set_of(run))
            ],
            "lineages": [[each.budget, each.refit, each.unlabelled, each.source] for each in self.lineages],
        }  # fmt: skip


def _budget(run: Run) -> dict[str, Any]:
    target = run.target
    return {
        "classes": target.classes, "per_class": target.per_class, "fraction": target.fraction,
        "validation": target.validation, "test_images": target.test_images, "seed": run.seed,
        "episodes": None if target.episodes is None else target.episodes.model_dump(mode="json"),
    }  # fmt: skip
