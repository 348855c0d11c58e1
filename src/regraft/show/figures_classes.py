"""Figures of one row class by class: the confusion matrix and the accuracy of every class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt

from regraft.show.figures_base import BLUE, WIDTH, Chart, Entries, chart_of, percent_axis
from regraft.show.text import printable
from regraft.study.results import Cell, Results

MATRIX_CLASSES = 20  # beyond it a matrix is not readable: its largest entries are drawn instead
SHOWN_PAIRS = 25
HARDEST, EASIEST = 30, 10  # of more classes than these together, the hardest and the easiest
CLASS_LIMIT = 40  # characters


def best_cell(results: Results) -> Cell | None:
    """The cell with a confusion matrix and the highest validation accuracy; None where none has one."""
    known = [cell for cell in results.cells if cell.confusion]
    return max(known, key=lambda cell: cell.validation_accuracy or 0.0, default=None)


def confusion(results: Results) -> Chart | None:
    """Of the best cell by validation accuracy: what its test images were taken for."""
    cell = best_cell(results)
    if cell is None:
        return None
    names = class_names(cell)
    told = f"{printable(cell.row, 90)}, seed {cell.seed}, {cell.test_images:,} test images"
    return _matrix(cell, names, told) if len(names) <= MATRIX_CLASSES else _pairs(cell, names, told)


def _matrix(cell: Cell, names: Sequence[str], told: str) -> Chart:
    entries: Entries = [
        {"of": names[i], "as": names[j], "count": count, "share": 100 * count / max(1, sum(line)),
         "text": f"{count:,}" if count else "", "light": count > 0.55 * sum(line)}
        for i, line in enumerate(cell.confusion)
        for j, count in enumerate(line)
    ]  # fmt: skip
    title = "Confusion matrix"
    base = chart_of(entries).encode(
        x=alt.X("as:N", sort=list(names), axis=alt.Axis(title="predicted class", labelAngle=-45, labelLimit=140)),
        y=alt.Y("of:N", sort=list(names), axis=alt.Axis(title="true class", labelLimit=160)),
        tooltip=[
            alt.Tooltip("of:N", title="true"), alt.Tooltip("as:N", title="predicted"),
            alt.Tooltip("count:Q", title="test images"), alt.Tooltip("share:Q", format=".1f", title="% of the class"),
        ],
    )  # fmt: skip
    scale = alt.Scale(domain=[0, 100], range=["#ffffff", "#08519c"], interpolate="rgb")
    rects = base.mark_rect(stroke="#9aa3ad", strokeWidth=0.3).encode(
        color=alt.Color("share:Q", scale=scale, legend=alt.Legend(title="% of the true class", gradientLength=160))
    )
    ink = alt.condition(alt.datum.light, alt.value("#ffffff"), alt.value("#1b1e23"))
    numbers = base.mark_text(fontSize=10).encode(text="text:N", color=ink)
    side = max(240, min(WIDTH - 120, 42 * len(names)))
    return alt.layer(rects, numbers).properties(
        width=side, height=side * 0.8, title={"text": title, "subtitle": told},
        description=f"{title} of {len(names)} classes: {told}.",
    )  # fmt: skip


def _pairs(cell: Cell, names: Sequence[str], told: str) -> Chart:
    wrong = [(count, i, j) for i, line in enumerate(cell.confusion) for j, count in enumerate(line) if i != j and count]
    wrong.sort(key=lambda one: (-one[0], one[1], one[2]))
    entries: Entries = [
        {"rank": rank, "pair": f"{names[i]} taken for {names[j]}", "count": count,
         "share": 100 * count / max(1, sum(cell.confusion[i]))}
        for rank, (count, i, j) in enumerate(wrong[:SHOWN_PAIRS])
    ]  # fmt: skip
    title = f"The {len(entries)} most frequent confusions of {len(names)} classes"
    chart = (
        chart_of(entries)
        .mark_bar(color=BLUE, height=alt.RelativeBandSize(0.7))
        .encode(
            y=alt.Y("pair:N", sort=[entry["pair"] for entry in entries], axis=alt.Axis(title=None, labelLimit=320)),
            x=alt.X("share:Q", axis=alt.Axis(title="% of the true class's test images")),
            tooltip=["pair:N", alt.Tooltip("count:Q", title="test images"), alt.Tooltip("share:Q", format=".1f")],
        )
    )
    done: Chart = chart.properties(
        width=WIDTH - 260, height=20 * len(entries), title={"text": title, "subtitle": told},
        description=f"{title}, of {told}.",
    )  # fmt: skip
    return done


def class_accuracies(results: Results) -> Chart | None:
    """Of the row of the best cell by validation: the accuracy of every class, all seeds and their mean, the hardest
    class first."""
    best = best_cell(results)
    if best is None:
        return None
    names = class_names(best)
    cells = [cell for cell in results.cells if cell.row == best.row and len(cell.confusion) == len(names)]
    by_class: list[list[float]] = [
        [100 * cell.confusion[i][i] / sum(cell.confusion[i]) for cell in cells if sum(cell.confusion[i])]
        for i in range(len(names))
    ]
    means = {i: math.fsum(own) / len(own) for i, own in enumerate(by_class) if own}
    order = sorted(means, key=lambda i: means[i])
    title = "Accuracy of every class"
    if len(order) > HARDEST + EASIEST:
        title = f"Accuracy of the {HARDEST} hardest and the {EASIEST} easiest of {len(order)} classes"
        order = order[:HARDEST] + order[-EASIEST:]
    entries: Entries = []
    for i in order:
        entries.append({"class": names[i], "kind": "mean", "value": means[i], "seed": "mean"})
        entries += [
            {"class": names[i], "kind": "seed", "value": value, "seed": str(cell.seed)}
            for cell, value in zip(cells, by_class[i], strict=True)
        ]
    return _class_bars(entries, [names[i] for i in order], title, best, len(cells))


def _class_bars(entries: Entries, order: list[str], title: str, best: Cell, seeds: int) -> Chart:
    base = chart_of(entries).encode(
        y=alt.Y("class:N", sort=order, axis=alt.Axis(title=None, labelLimit=240)),
        x=alt.X("value:Q", axis=percent_axis("test accuracy of the class (%)"), scale=alt.Scale(domain=[0, 100])),
        tooltip=["class:N", "seed:N", alt.Tooltip("value:Q", format=".1f", title="accuracy (%)")],
    )
    bars = base.transform_filter("datum.kind == 'mean'").mark_bar(
        color=BLUE, opacity=0.45, height=alt.RelativeBandSize(0.75)
    )
    points = base.transform_filter("datum.kind == 'seed'").mark_point(filled=True, color=BLUE, size=22, opacity=1)
    told = f"{printable(best.row, 90)}: mean as a bar, each of {seeds} seeds a point"
    return alt.layer(bars, points).properties(
        width=WIDTH - 140, height=(20 if len(order) <= 20 else 16) * len(order),
        title={"text": title, "subtitle": told}, description=f"{title}, of {told}.",
    )  # fmt: skip


def class_names(cell: Cell) -> list[str]:
    """One printable name for each class, none of them twice."""
    n = len(cell.confusion)
    names = [printable(name, CLASS_LIMIT) for name in cell.class_names] or [str(i) for i in range(n)]
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        unique.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return unique
