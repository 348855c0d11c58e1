"""Label worth: how many labelled images per class training from scratch needs to do as well as another row.

The curve is accuracy against labels of the rows from scratch (random weights, fine-tuned) on the same data and classes.
For each seed by itself: its points are made monotone by isotonic regression (Barlow et al. 1972), since more labels do
not hurt in expectation, and joined by straight lines in log(labels). The row's accuracy with the same seed is looked up
on it: the fewest labels at which the curve is as high. The interval is a t-interval over the seeds' logarithms.

A curve says nothing outside the budgets that it was measured at: there the worth is "beyond" or "below the data".
Labels count whole, with those kept for validation (Oliver et al. 2018, arXiv:1804.09170).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from regraft.analysis.alarm import alarm_kinds
from regraft.analysis.stats import t_interval
from regraft.analysis.variance import refitted
from regraft.spec import Row, Study
from regraft.study.results import Cell, Results

# Trainings that failed are no points of a curve. Others with an alarm may be: with two images of each class, chance is
# what training from scratch reaches.
FAILED = ("nan", "diverged", "flat")

Curve = tuple[tuple[float, float], ...]  # (labels per class, accuracy), ascending and never falling


@dataclass(frozen=True)
class Worth:
    """Labels per class that scratch needs for the accuracy of one row, over `n` seeds."""

    labels: float | None  # geometric mean over seeds; None if every seed lies outside the data
    low: float | None  # 95 % t-interval over the logarithms, from two seeds on, all inside the data
    high: float | None
    n: int  # seeds that both the row and the curve have
    of: int  # seeds of the row
    beyond: int  # seeds with an accuracy above the whole curve; they count with its last budget
    below: int  # seeds with an accuracy below the whole curve; they count with its first budget
    own: float  # labels per class of the row itself
    first: float  # budgets of the curve, labels per class
    last: float
    scratch: str  # source of the rows from scratch
    each: tuple[tuple[int, float], ...]  # (seed, labels), of the n seeds; 0 below the data, infinity beyond

    def text(self) -> str:
        """'310 [250, 384]', '310 [< 50, 1,920]', '> 5,000 (beyond the data)', '≥ 310 (2 of 3 seeds beyond the data)'.

        n is said where it is not the row's own: '310 [250, 384] (n = 2 of 5 seeds)'."""
        return self._number() if self.n == self.of else f"{self._number()} (n = {self.n} of {self.of} seeds)"

    def _number(self) -> str:
        if self.labels is None:
            if self.beyond == self.n:
                return f"> {count(self.last)} (beyond the data)"
            if self.below == self.n:
                return f"< {count(self.first)} (below the data)"
            return f"{self.beyond} of {self.n} seeds beyond the data, the others below"
        if self.beyond and self.below:
            return f"about {count(self.labels)} ({self.beyond} of {self.n} seeds beyond the data, {self.below} below)"
        if self.beyond or self.below:
            sign, side = ("≥", "beyond") if self.beyond else ("≤", "below")
            return f"{sign} {count(self.labels)} ({self.beyond + self.below} of {self.n} seeds {side} the data)"
        if self.low is None or self.high is None:
            return count(self.labels)
        low = f"< {count(self.first)}" if self.low < self.first else count(self.low)
        high = f"> {count(self.last)}" if self.high > self.last else count(self.high)
        return f"{count(self.labels)} [{low}, {high}]"

    @property
    def factor(self) -> float | None:
        """Labels from scratch for one label of the row; None outside the data."""
        return None if self.labels is None else self.labels / self.own


def label_worths(results: Results) -> dict[str, Worth]:
    """By row name, of every row that a curve from scratch with two budgets or more can be asked about.

    Left out: rows from scratch themselves, few-shot episodes, rows without a seed in common with the curve, and
    trainings that failed (FAILED)."""
    failed = {cell for cell, kinds in alarm_kinds(results).items() if set(kinds) & set(FAILED)}
    study, rows = results.study, {row.name: row for row in results.study.all_rows()}
    by_row: dict[str, list[Cell]] = {}
    for cell in results.cells:
        if (cell.row, cell.seed) not in failed and cell.episodes is None:
            by_row.setdefault(cell.row, []).append(cell)
    scratch = _scratch(study, rows, [cell for cells in by_row.values() for cell in cells if _from_scratch(cell)])
    found = {}
    for name, cells in by_row.items():
        first = cells[0]
        known = scratch.get(_images(study, first), [])
        if _from_scratch(first) or not known:
            continue
        chosen = max(known, key=lambda one: one.merit(first.network))
        accuracies = {cell.seed: cell.accuracy for cell in cells}
        if accuracies.keys() & chosen.curves.keys():
            own = labels_per_class(study, rows[name], first)
            found[name] = label_worth(accuracies, chosen.curves, own=own, scratch=chosen.source)
    return found


def label_worth(accuracies: Mapping[int, float], curves: Mapping[int, Curve], *, own: float, scratch: str) -> Worth:
    """The worth of a row from its accuracies and the curve from scratch, both by seed.

    own: labels per class of the row.  scratch: what the curve is called.  Raises ValueError without a common seed."""
    common = sorted(accuracies.keys() & curves.keys())
    if not common:
        raise ValueError(f"label worth needs a common seed, got {sorted(accuracies)} and {sorted(curves)}")
    first = min(curves[seed][0][0] for seed in common)
    last = max(curves[seed][-1][0] for seed in common)
    logs: list[float] = []
    each: list[tuple[int, float]] = []
    beyond = below = 0
    for seed in common:
        labels = labels_for(accuracies[seed], curves[seed])
        each.append((seed, labels))
        beyond, below = beyond + (labels == math.inf), below + (labels == 0)
        logs.append(math.log(min(max(labels, curves[seed][0][0]), curves[seed][-1][0])))
    n = len(common)
    inside = n - beyond - below
    low, high = t_interval(logs) if inside == n > 1 else (None, None)
    return Worth(
        labels=math.exp(fmean(logs)) if inside else None,
        low=None if low is None else math.exp(low),
        high=None if high is None else math.exp(min(high, 700.0)),  # two seeds can make an interval past any float
        n=n, of=len(accuracies), beyond=beyond, below=below, own=own, first=first, last=last, scratch=scratch,
        each=tuple(each),
    )  # fmt: skip


def labels_for(accuracy: float, curve: Curve) -> float:
    """Fewest labels at which the curve reaches `accuracy`, interpolated in log(labels).

    0: the curve starts above it.  Infinity: the curve ends below it."""
    if accuracy < curve[0][1]:
        return 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if accuracy == y0:
            return x0
        if accuracy < y1:
            share = (accuracy - y0) / (y1 - y0)
            return math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0)))
    return curve[-1][0] if accuracy == curve[-1][1] else math.inf


def isotonic(points: Mapping[float, Sequence[float]]) -> Curve:
    """The never falling curve nearest to the points in least squares: neighbours that fall are pooled.

    points: labels per class -> accuracies there (several rows may share a budget; they weigh in by number)."""
    blocks: list[tuple[float, int, list[float]]] = []  # mean, weight, the labels it stands for
    for labels in sorted(points):
        blocks.append((fmean(points[labels]), len(points[labels]), [labels]))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean, weight, left), (other, more, right) = blocks[-2:]
            blocks[-2:] = [((mean * weight + other * more) / (weight + more), weight + more, left + right)]
    return tuple((labels, mean) for mean, _, members in blocks for labels in members)


def labels_per_class(study: Study, row: Row, cell: Cell) -> float:
    """Labelled images per class that a cell of the row used, those kept for validation with them."""
    # A refit's training images hold the validation images already.
    held = 0 if refitted(study, row, cell) else cell.validation_images
    return (cell.train_images + held) / cell.classes


def count(labels: float) -> str:
    """Labels to three figures: '4.17', '62.3', '417', '5,000', '12,300'."""
    if labels >= 1e7:
        return f"{labels:.1e}"
    rounded = float(f"{labels:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _from_scratch(cell: Cell) -> bool:
    return cell.weights == "random" and cell.method == "finetune"


def _images(study: Study, cell: Cell) -> tuple[object, ...]:
    """Data and classes. Not by `class_names`: records in small leave them out."""
    return (cell.data, study.targets[cell.target].classes)


@dataclass(frozen=True)
class _Scratch:
    """Rows from scratch with the same source, cut and head."""

    source: str
    network: str
    budgets: int
    validation: float  # mean accuracy at the largest
    curves: dict[int, Curve]  # by seed, of those with two budgets or more

    def merit(self, network: str) -> tuple[bool, int, float]:
        """That of a row's own network is its curve if it has two budgets, then that of the most budgets, then the one
        that is best on validation at its largest."""
        return (self.network == network and self.budgets > 1, self.budgets, self.validation)


def _scratch(study: Study, rows: Mapping[str, Row], cells: Sequence[Cell]) -> dict[tuple[object, ...], list[_Scratch]]:
    """The curves of every data set and choice of classes."""
    groups: dict[tuple[object, ...], dict[tuple[str, str, str], list[Cell]]] = {}
    for cell in cells:
        kinds = groups.setdefault(_images(study, cell), {})
        kinds.setdefault((cell.source, cell.cut, cell.head), []).append(cell)
    found: dict[tuple[object, ...], list[_Scratch]] = {}
    for images, kinds in groups.items():
        for (source, _, _), own in kinds.items():
            points: dict[int, dict[float, list[float]]] = {}  # seed -> labels per class -> accuracies
            for cell in own:
                labels = labels_per_class(study, rows[cell.row], cell)
                points.setdefault(cell.seed, {}).setdefault(labels, []).append(cell.accuracy)
            curves = {seed: isotonic(by_labels) for seed, by_labels in points.items() if len(by_labels) > 1}
            most = max(cell.train_images for cell in own)
            held = fmean(cell.validation_accuracy or 0.0 for cell in own if cell.train_images == most)
            budgets = len({cell.budget for cell in own})
            found.setdefault(images, []).append(_Scratch(source, own[0].network, budgets, held, curves))
    return found
