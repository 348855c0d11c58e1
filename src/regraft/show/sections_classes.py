"""What is confused with what, and how well each class is told, by the best cell of each target on validation."""

from __future__ import annotations

from typing import Any

from regraft.analysis.stats import wilson_interval
from regraft.show.sections import Bar, Column, Entry, Table, number
from regraft.study.results import Cell, Results

MAX_MATRIX_CLASSES = 20  # beyond it a confusion matrix is not readable; its largest entries are
SHOWN_PAIRS = 12
SHOWN_TARGETS = 4
WORST, BEST = 8, 4  # classes that are shown of more than MAX_MATRIX_CLASSES


def best_cells(results: Results) -> list[Cell]:
    """Per target the cell with a confusion matrix and the highest validation accuracy."""
    best: dict[str, Cell] = {}
    for cell in results.cells:
        if not any(map(any, cell.confusion)):
            continue
        other = best.get(cell.target)
        if other is None or (cell.validation_accuracy or 0.0) > (other.validation_accuracy or 0.0):
            best[cell.target] = cell
    return list(best.values())


def class_names(cell: Cell) -> tuple[str, ...]:
    """Numbers where the cell knows no names."""
    return cell.class_names or tuple(map(str, range(len(cell.confusion))))


def confusion(cell: Cell) -> dict[str, Any]:
    """A matrix with each line's shares, or for many classes its largest entries off the diagonal."""
    n, names = len(cell.confusion), class_names(cell)
    found = {"row": cell.row, "seed": cell.seed, "target": cell.target, "names": names, "classes": n, "pairs": None}
    found["bars"] = class_table(cell)
    if n <= MAX_MATRIX_CLASSES:
        matrix = [
            [{"count": count, "share": f"{0.75 * count / max(1, sum(line)):.3f}"} for count in line]
            for line in cell.confusion
        ]
        return {**found, "matrix": matrix}
    wrong = [(count, i, j) for i, line in enumerate(cell.confusion) for j, count in enumerate(line) if i != j]
    largest = sorted(wrong, reverse=True)[:SHOWN_PAIRS]
    pairs = tuple((Entry(names[i]), Entry(names[j]), number(count)) for count, i, j in largest if count)
    columns = (Column("true class"), Column("taken for"), Column("images", number=True))
    caption = f"{n} classes; the most frequent confusions."
    return {
        **found,
        "matrix": None,
        "pairs": Table("Most frequent confusions", columns, pairs, caption, "compact narrow", heads=False),
    }


def class_table(cell: Cell) -> Table:
    """Accuracy of each class with its 95 % Wilson interval, which its test images leave open; of many classes the worst
    and the best."""
    names = class_names(cell)
    rows: list[tuple[float, tuple[Entry, ...]]] = []
    for label, line in enumerate(cell.confusion):
        images, right = sum(line), line[label]
        if not images:
            continue
        share, (low, high) = right / images, wilson_interval(right, images)
        other = max((i for i in range(len(line)) if i != label), key=lambda i: line[i])
        taken = Entry(f"{names[other]} ({line[other]:,})" if line[other] else "")
        interval = f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        picture = Entry("", share, bar=Bar(share, low, high))
        rows.append((share, (Entry(names[label]), number(share, interval), picture, number(images), taken)))
    caption = "Of each true class: accuracy [95 % Wilson interval, from its test images alone]."
    if len(rows) > MAX_MATRIX_CLASSES:
        caption = f"The {WORST} worst and {BEST} best of {len(rows)} classes. {caption}"
        ranked = sorted(rows, key=lambda row: row[0])
        rows = ranked[:WORST] + ranked[-BEST:]
    columns = (
        Column("class"), Column("accuracy", number=True), Column(""), Column("test images", number=True),
        Column("most often taken for"),
    )  # fmt: skip
    return Table("Accuracy of each class", columns, tuple(row for _, row in rows), caption, "compact classes")
