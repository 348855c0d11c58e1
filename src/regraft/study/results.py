"""What a study found: one row per scored cell (row x seed), in a form that tables, figures and files share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regraft.spec import Study


@dataclass(frozen=True)
class Cell:
    """One scored cell. Everything up to `key` is determined by the study; `cost` is what it took here."""

    row: str
    seed: int
    accuracy: float  # fraction of the test images
    test_images: int
    chance: float  # 1 / classes
    validation_accuracy: float | None  # of the kept epoch
    train_accuracy: float | None  # on the training images without augmentation
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
    key: str  # of the fit in the store
    # Not in results.csv: differs from machine to machine, or is too large
    cost: dict[str, Any] = field(default_factory=dict)  # seconds, device, threads, images, versions, command
    curve: list[dict[str, float]] = field(default_factory=list)  # per epoch: epoch, train_loss, lr, validation_*
    confusion: list[list[int]] = field(default_factory=list)  # [true][predicted], counts
    class_names: tuple[str, ...] = ()


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
