"""All figures of a study by name, and how one is saved: for a page, a column of a paper, or a slide.

chart = figure("cuts", results)
save_figure(chart, "cuts.pdf", width_mm=85)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from regraft.errors import StudyError, UnknownName, nearest
from regraft.show import figures, figures_science, figures_transfer
from regraft.show.figures_base import Chart
from regraft.show.figures_classes import class_accuracies, confusion
from regraft.show.figures_compare import accuracy_by_cost, differences, worth_by_row
from regraft.show.figures_save import SIZES, save_figure
from regraft.study.results import Results

__all__ = ["FIGURES", "NEEDS", "SHOWS", "SIZES", "drawable", "figure", "save_figure"]

FIGURES: dict[str, Callable[[Results], Chart | None]] = {
    "rows": figures.accuracy_by_row,
    "cuts": figures.accuracy_by_cut,
    "budgets": figures.accuracy_by_budget,
    "differences": differences,
    "worth": worth_by_row,
    "curves": figures.learning_curves,
    "confusion": confusion,
    "classes": class_accuracies,
    "cost": accuracy_by_cost,
    "transfer": figures_transfer.lost_by_cut,
    "mixing": figures_transfer.mixing_curve,
    "advice": figures_science.advice_figure,
    "regret": figures_science.regret_figure,
}
# What each shows, and what a study needs for it
SHOWS = {
    "rows": "accuracy of every row: seeds, mean with interval, chance, the original study's figure",
    "cuts": "accuracy against the cut, by target",
    "budgets": "accuracy against labelled images",
    "differences": "paired differences between rows, with Holm's correction",
    "worth": "label worth: the labels that training from scratch needs for as much",
    "curves": "validation accuracy while training",
    "confusion": "confusion matrix of the best cell by validation accuracy",
    "classes": "accuracy of every class, of the best row by validation accuracy",
    "cost": "accuracy against seconds of training",
    "transfer": "what a cut costs: co-adaptation and specificity",
    "mixing": "weights mixed between the start and the end of fine-tuning",
    "advice": "measured accuracy against the adviser's score",
    "regret": "regret of every transferability score, beside rules without any",
}
NEEDS = {
    "rows": "a scored row",
    "cuts": "an arm (source, method, head, target) with two cuts",
    "budgets": "an arm (source, cut, method, head, data) with two budgets",
    "differences": "two rows on the same images that differ in one thing, with two seeds in common",
    "worth": "rows from scratch (random weights, fine-tuned) with two budgets, and other rows on the same data",
    "curves": "a training of two epochs or more, with validation images",
    "confusion": "a confusion matrix, which results.json has and records in small leave out",
    "classes": "a confusion matrix, which results.json has and records in small leave out",
    "cost": "a training whose seconds were recorded",
    "transfer": "frozen rows with a `rest` head, cut from a source of the target and from another one, with two seeds",
    "mixing": "a row with the method wise-ft",
    "advice": "scores in the store: `regraft scores STUDY`",
    "regret": "scores in the store: `regraft scores STUDY`",
}


def figure(name: str, results: Results, *, row: str | None = None) -> Chart:
    """The figure `name` of a study; `row`: of this row alone.

    Raises UnknownName for a name that is in none of FIGURES or of the study's rows, StudyError where the study has
    nothing to draw, with what it needs."""
    if name not in FIGURES:
        raise UnknownName(f"there is no figure {name!r}{nearest(name, FIGURES)} Figures: {', '.join(FIGURES)}")
    if row is not None:
        known = [one.name for one in results.study.all_rows()]
        if row not in known:
            raise UnknownName(f"{results.study.study} has no row {row!r}{nearest(row, known)}")
        results = dataclasses.replace(results, cells=[cell for cell in results.cells if cell.row == row])
    chart = FIGURES[name](results)
    if chart is None:
        scored = f"{len(results.cells)} scored cells" if results.cells else "no scored cell yet"
        raise StudyError(
            f"{results.study.study} ({scored}) has nothing to draw for the figure {name!r}: it needs {NEEDS[name]}. "
            "List what can be drawn with: regraft figure --list STUDY"
        )
    return chart


def drawable(results: Results) -> dict[str, bool]:
    """Name of every figure -> whether the study has something to draw for it."""
    return {name: make(results) is not None for name, make in FIGURES.items()}
