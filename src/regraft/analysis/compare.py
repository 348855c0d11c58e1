"""Which rows of a study are worth setting side by side, and which of their differences hold.

Pairs are chosen by rule, never by their numbers: both rows learn from the same images (data, classes and budget) and
differ in one thing. Each difference is paired over the seeds that both have. All p-values of a study are one family,
corrected after Holm; "clear" is said of an adjusted p below 0.05 and of nothing else.

Rows with an alarm are left out: a broken run says nothing about transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from statistics import fmean

from regraft.analysis.stats import Difference, holm, paired_difference
from regraft.analysis.table import TableRow, rows_table
from regraft.analysis.variance import SeedsNeeded, seeds_from
from regraft.study.results import Cell, Results

LEVEL = 0.05  # of the whole family
SHOWN = 20
# kind -> how its difference is read: the first row minus the second
KINDS = {
    "scratch": "transferred − from scratch",
    "weights": "trained − random weights",
    "source": "one trained source − another",
    "method": "method − its usual form or fine-tuned",
    "frozen": "fine-tuned − frozen",
    "head": "head − linear head",
    "cut": "later cut − the one before",
}


@dataclass(frozen=True)
class Comparison:
    """Row `a` minus row `b` over their common seeds."""

    kind: str  # a key of KINDS
    a: str  # name of a row
    b: str
    difference: Difference
    adjusted: float  # p after Holm, over the whole family
    family: int  # comparisons corrected together

    @property
    def clear(self) -> bool:
        """Whether it holds after the correction."""
        return self.adjusted < LEVEL

    @property
    def verdict(self) -> str:
        """'clear', or 'not clear' where the seeds alone could explain it."""
        return "clear" if self.clear else "not clear"

    def seeds_needed(self, difference: float = 0.01) -> SeedsNeeded:
        """Seeds with which this pair would show a difference of 1 point, by its own deviation, uncorrected."""
        return seeds_from(self.difference.deviation, self.difference.n, difference)

    def text(self) -> str:
        """'“a” − “b”: +3.1 points [...] (95 % paired t, n = 3 seeds), Holm-adjusted p = 0.012 of 8: clear'."""
        return (
            f"“{self.a}” − “{self.b}”: {self.difference.text()}, "
            f"Holm-adjusted p {p_text(self.adjusted)} of {self.family}: {self.verdict}"
        )


@dataclass(frozen=True)
class Comparisons:
    """All sensible pairs of a study."""

    family: tuple[Comparison, ...]  # in the order of KINDS, then of the study
    too_few: int  # pairs with fewer than two common seeds, of which no difference can be judged
    alarmed: int  # rows left out for their alarm

    def shown(self, limit: int = SHOWN) -> tuple[Comparison, ...]:
        """At most `limit`: of every kind in turn its next smallest p, so that no kind fills the table."""
        waiting = [sorted((c for c in self.family if c.kind == kind), key=_telling) for kind in KINDS]
        chosen: list[Comparison] = []
        while any(waiting) and len(chosen) < limit:
            for line in waiting:
                if line and len(chosen) < limit:
                    chosen.append(line.pop(0))
        order = list(KINDS)
        return tuple(sorted(chosen, key=lambda c: (order.index(c.kind), _telling(c))))

    def note(self, shown: int) -> str:
        """How many were compared, what the correction is over, and what was left out."""
        n, clear = len(self.family), sum(pair.clear for pair in self.family)
        pairs = "pair was" if n == 1 else "pairs were"
        parts = [f"{n} {pairs} compared, {clear} of them clear; p is adjusted after Holm over all of them"]
        if shown < n:
            parts.append(f"the {shown} shown are, of each kind, those with the smallest p")
        if self.too_few:
            parts.append(f"{self.too_few} more have fewer than two seeds in common, and no difference is given")
        if self.alarmed:
            parts.append(f"{self.alarmed} {'row' if self.alarmed == 1 else 'rows'} with an alarm left out")
        return "; ".join(parts) + "."


def comparisons(results: Results) -> Comparisons:
    """Every pair that the rules name, with its difference."""
    table = rows_table(results)
    rows = _rows(results, [row for row in table if row.summary and not row.alarm])
    alarmed = sum(bool(row.alarm) for row in table)
    found: list[tuple[str, _Row, _Row, Difference]] = []
    too_few = 0
    seen: set[frozenset[str]] = set()
    for kind, rule in RULES.items():
        for a, b in rule(rows):
            pair = frozenset((a.name, b.name))
            if pair in seen:  # said once, by the first rule that names it
                continue
            seen.add(pair)
            if len(a.table.scores.keys() & b.table.scores.keys()) < 2:
                too_few += 1
                continue
            step = 1 / min(a.cell.test_images, b.cell.test_images)
            found.append((kind, a, b, paired_difference(a.table.scores, b.table.scores, step)))
    adjusted = holm([difference.p for *_, difference in found])
    family = tuple(
        Comparison(kind, a.name, b.name, difference, p, len(found))
        for (kind, a, b, difference), p in zip(found, adjusted, strict=True)
    )
    return Comparisons(family, too_few, alarmed)


def p_text(p: float) -> str:
    """'= 0.012', '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.0995 else f"= {p:.2f}"


@dataclass(frozen=True)
class _Row:
    """A row of the table with what the rules ask for."""

    table: TableRow
    cell: Cell  # of its first seed
    classes: tuple[str, ...] | None  # that the target keeps; records in small leave the cell's names out
    validation: float  # mean over seeds; -1 without validation images
    source: str  # that the weights came from: of a head started from its source's, the source's own
    cut: str
    method: str  # with its details; "LP-FT" for a network fine-tuned with the head of its frozen source
    head: str

    @property
    def name(self) -> str:
        return self.table.name

    @cached_property
    def images(self) -> tuple[object, ...]:
        """Rows with equal ones learn from the same images, seed by seed."""
        return (self.cell.data, self.classes, self.cell.budget, self.cell.episodes)

    @property
    def random(self) -> bool:
        return self.cell.weights == "random"


def _rows(results: Results, tables: list[TableRow]) -> list[_Row]:
    cells: dict[str, list[Cell]] = {}
    for cell in results.cells:
        cells.setdefault(cell.row, []).append(cell)
    study, rows = results.study, {row.name: row for row in results.study.all_rows()}
    found = []
    for table in tables:
        own = cells[table.name]
        row = rows[table.name]
        source, method, head = row.source, table.method, table.head
        parent = study.sources[row.source].run
        if row.head.start == "source" and parent is not None:
            before = rows[parent]
            source, head = before.source, before.head.label
            if (before.method, row.method) == ("frozen", "finetune"):
                method = method.replace("finetune", "LP-FT", 1)
        held = fmean(-1.0 if cell.validation_accuracy is None else cell.validation_accuracy for cell in own)
        classes = study.targets[row.target].classes
        found.append(_Row(table, own[0], classes, held, source, own[0].cut, method, head))
    return found


Pairs = Iterator[tuple[_Row, _Row]]


def _transferred_and_scratch(rows: list[_Row]) -> Pairs:
    """Every row with trained weights, against training from scratch on its images.

    Of several rows from scratch the one with the same network, then the best on validation."""
    for a in rows:
        scratch = [b for b in rows if b.random and b.table.method == "finetune" and b.images == a.images]
        if not a.random and scratch:
            yield a, max(scratch, key=lambda b: (b.cell.network == a.cell.network, b.validation))


def _trained_and_random(rows: list[_Row]) -> Pairs:
    """The same network, cut, method and head, with trained and with random weights."""

    for group in _groups(rows, _but_source):
        yield from ((a, b) for a in group if not a.random for b in group if b.random)


def _trained_sources(rows: list[_Row]) -> Pairs:
    """The same network, cut, method and head, with weights trained on one thing and on another."""
    for group in _groups(rows, _but_source):
        trained = [row for row in group if not row.random]
        yield from ((a, b) for a, b in combinations(trained, 2) if a.source != b.source)


def _methods(rows: list[_Row]) -> Pairs:
    """A method with details ("frozen norms=target") against its usual form; any other method, or one whose usual form
    is not there, against plain fine-tuning, or without that against the frozen trunk."""
    for group in _groups(rows, _but_method):
        plain: dict[str, list[_Row]] = {}
        for row in group:
            plain.setdefault(row.method, []).append(row)
        for row in group:
            if row.method not in ("finetune", "frozen"):
                candidates = (row.method.partition(" ")[0], "finetune", "frozen")
                usual = next((name for name in candidates if name in plain and name != row.method), "")
                yield from ((row, b) for b in plain.get(usual, []))


def _tuned_and_frozen(rows: list[_Row]) -> Pairs:
    for group in _groups(rows, _but_method):
        tuned = [row for row in group if row.method == "finetune"]
        yield from ((a, b) for a in tuned for b in group if b.method == "frozen")


def _heads(rows: list[_Row]) -> Pairs:
    """Every other head against the linear one on the same trunk."""

    def arm(row: _Row) -> tuple[object, ...]:
        return (row.images, row.source, row.cut, row.method)

    for group in _groups(rows, arm):
        linear = [row for row in group if row.head == "linear"]
        yield from ((a, b) for a in group if a.head != "linear" for b in linear)


def _neighbours(rows: list[_Row]) -> Pairs:
    """Cuts next to each other, from the image to the classifier; without recorded depths in the study's order."""

    def arm(row: _Row) -> tuple[object, ...]:
        return (row.images, row.source, row.method, row.head)

    for group in _groups(rows, arm):
        by_cut = {row.cut: row for row in reversed(group)}  # the first row of each cut
        along = [row for row in group if by_cut[row.cut] is row]
        if all(row.cell.depth is not None for row in along):
            along.sort(key=lambda row: row.cell.depth or 0.0)
        yield from ((later, before) for before, later in pairwise(along))


def _but_source(row: _Row) -> tuple[object, ...]:
    return (row.images, row.cell.network, row.cut, row.method, row.head)


def _but_method(row: _Row) -> tuple[object, ...]:
    return (row.images, row.source, row.cut, row.head)


RULES: dict[str, Callable[[list[_Row]], Pairs]] = {
    "scratch": _transferred_and_scratch,
    "weights": _trained_and_random,
    "source": _trained_sources,
    "method": _methods,
    "frozen": _tuned_and_frozen,
    "head": _heads,
    "cut": _neighbours,
}


def _groups(rows: list[_Row], key: Callable[[_Row], tuple[object, ...]]) -> Iterator[list[_Row]]:
    groups: dict[tuple[object, ...], list[_Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return iter(groups.values())


def _telling(comparison: Comparison) -> tuple[float, float]:
    return comparison.adjusted, -abs(comparison.difference.mean)
