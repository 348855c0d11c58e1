"""What a study found: one row per scored cell (row x seed), in a form that tables, figures and files share."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import RegraftError
from regraft.spec import Row, Run, Study
from regraft.study.files import write_text
from regraft.study.html import html_table

if TYPE_CHECKING:
    from regraft.study.keys import Keys
    from regraft.study.store import Store


@dataclass(frozen=True)
class Cell:
    """One scored cell. Everything up to `key` is determined by the study; `cost` is what it took here."""

    row: str
    seed: int
    accuracy: float  # fraction of the test images
    test_images: int
    chance: float  # 1 / classes
    validation_accuracy: float | None  # of the kept epoch
    train_accuracy: float | None  # on the training batches of the last epoch, as augmented
    source: str
    network: str
    weights: str  # "random", "pretrained", "file", or the name of the source row
    cut: str
    method: str
    head: str
    target: str
    data: str
    budget: str
    train_images: int
    validation_images: int
    classes: int
    image_size: int
    recipe: str
    note: str
    original: float | None  # accuracy the original study reported for this row
    episodes: int | None  # few-shot episodes that `accuracy` is the mean over; None: one training, all test images
    episode_deviation: float | None  # standard deviation of the accuracy between them
    key: str  # of the fit in the store
    # Not in results.csv: differs from machine to machine, or is too large
    cost: dict[str, Any] = field(default_factory=dict)  # seconds, device, threads, versions, ...
    curve: list[dict[str, float]] = field(default_factory=list)  # per epoch: epoch, train_loss, lr, validation_*
    confusion: list[list[int]] = field(default_factory=list)  # [true][predicted], counts
    class_names: tuple[str, ...] = ()
    depth: float | None = None  # share of the network's FLOPs below the cut
    mixing: list[list[float]] = field(default_factory=list)  # of WiSE-FT: factor, validation loss and accuracy


CSV_FIELDS = tuple(f.name for f in fields(Cell))[: tuple(f.name for f in fields(Cell)).index("key") + 1]


@dataclass(frozen=True)
class Missing:
    """A cell without a score, and why."""

    row: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Results:
    """All cells of a study, scored or missing with the reason."""

    study: Study
    cells: list[Cell]
    missing: list[Missing]
    scores_taken: int  # how often the test labels were read for this study
    store: Store | None = field(default=None, repr=False, compare=False)  # where the fits are; None: not known

    @classmethod
    def read(cls, study: Study, keys: Keys, reasons: Mapping[tuple[str, int], str]) -> Results:
        """Collect what the store has; cells in the order of the study, then by seed."""
        found: list[Cell] = []
        missing: list[Missing] = []
        rows = {row.name: (i, row) for i, row in enumerate(study.all_rows())}
        for cell in sorted(keys.by_cell, key=lambda c: (rows[c[0]][0], c[1])):
            try:
                found.append(_read_cell(keys, keys.final(cell), rows[cell[0]][1]))
            except RegraftError as error:
                missing.append(Missing(*cell, reasons.get(cell, _why(error, cell[0]))))
        keys.index.save()
        return cls(study, found, missing, len(found), keys.store)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The cells as plain dictionaries: `pandas.DataFrame(results.rows)`."""
        return [{name: getattr(cell, name) for name in CSV_FIELDS} for cell in self.cells]

    def to_csv(self, path: str | Path) -> Path:
        """What the study determines, and nothing else: the same study gives the same file."""
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({**row, "accuracy": repr(row["accuracy"])})
        return write_text(Path(path), text.getvalue())

    def to_json(self, path: str | Path) -> Path:
        """Everything, costs, curves and confusion matrices included."""
        content = {
            "study": self.study.model_dump(mode="json", exclude_defaults=True),
            "cells": [asdict(cell) for cell in self.cells],
            "missing": [asdict(cell) for cell in self.missing],
            "scores_taken": self.scores_taken,
        }
        return write_text(Path(path), json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Results:
        """What `to_json` wrote."""
        content = json.loads(Path(path).read_text("utf-8"))
        before_episodes = {"episodes": None, "episode_deviation": None}  # in files of version 0.1
        cells = [Cell(**{**before_episodes, **c, "class_names": tuple(c["class_names"])}) for c in content["cells"]]
        missing = [Missing(**m) for m in content["missing"]]
        return cls(Study.from_dict(content["study"]), cells, missing, content["scores_taken"])

    def _repr_html_(self) -> str:
        return html_table(self)


def read_results(
    study: Study,
    store: Store | None = None,
    *,
    keys: Keys | None = None,
    reasons: Mapping[tuple[str, int], str] | None = None,
) -> Results:
    """What the store has of `study`, without computing anything."""
    from regraft.study.keys import Keys
    from regraft.study.plan import plan
    from regraft.study.store import default_store

    keys = keys or Keys(plan(study), store or default_store(), offline=True)
    return Results.read(study, keys, reasons or {})


def _why(error: RegraftError, row: str) -> str:
    """Why a cell has no score, in few words where it is simply not its turn yet."""
    waits_for = getattr(error, "row", "")  # of NotTrained
    if not waits_for:
        return str(error)
    return "not trained yet" if waits_for == row else f"waits for {waits_for!r}"


def _read_cell(keys: Keys, run: Run, row: Row) -> Cell:
    fitted = keys.fitted(run)
    scored = keys.index.get(keys.score_key(run))
    if scored is None:
        raise RegraftError("trained, but not scored yet")
    network, stem = keys.network(run)
    values, classes = fitted.values, len(scored.values["class_names"])
    # A refit has no validation images left: it is judged by the run that it repeats.
    judged = keys.fitted(run.model_copy(update={"refit": False})).values if run.refit else values
    episodes = scored.values.get("episodes") or {"count": None, "ways": classes, "deviation": None}
    return Cell(
        row=run.row, seed=run.seed, accuracy=scored.values["accuracy"], test_images=scored.values["test_images"],
        chance=1.0 / episodes["ways"], validation_accuracy=judged["validation_accuracy"],
        train_accuracy=values["train_accuracy"], source=run.source_name,
        network=network if stem == "imagenet" else f"{network} ({stem} stem)",
        weights=run.source.run or run.source.weights.split(":")[0], cut=fitted.spec["cut"], method=run.how,
        head=run.head.label, target=run.target_name, data=run.target.data, budget=run.target.budget,
        train_images=values["train_images"], validation_images=judged["validation_images"], classes=classes,
        image_size=fitted.spec["preprocessing"]["image_size"], recipe=run.recipe_name, note=row.note,
        original=row.original, episodes=episodes["count"], episode_deviation=episodes["deviation"],
        key=fitted.key, cost={**fitted.record, "score": scored.record},
        curve=values["curve"], confusion=scored.values["confusion"],
        class_names=tuple(scored.values["class_names"]), depth=values.get("depth"), mixing=values.get("mixing", []),
    )  # fmt: skip
