"""Which rows of a study are worth setting side by side, and which of their differences hold.

Pairs are chosen by rule and by validation, never by their test scores: both rows learn from the same images (data,
classes and budget) and differ in one thing. Where several rows could stand opposite, one does: that with the same
recipes, then the best on validation; so the pairs are about as many as the rows for each kind. Each difference is
paired over the seeds that both have. All p-values of a study are one family, corrected after Holm; "clear" is said of
an adjusted p below 0.05 and of nothing else.

Rows with an alarm are left out: a broken run says nothing about transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    "head": "head − linear head, or the first",
    "recipe": "recipe − the first for the same head",
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

    def reversed(self) -> Comparison:
        """Row `b` minus row `a`."""
        return replace(self, a=self.b, b=self.a, difference=self.difference.reversed())

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
class Transfer:
    """The two rows that tell what transfer was worth on some images: of each kind the best on validation."""

    transferred: str  # name of a row
    scratch: str
    among: int  # transferred rows on these images
    validated: bool  # False: none of them has validation images, and the first stands for all


@dataclass(frozen=True)
class Comparisons:
    """All sensible pairs of a study."""

    family: tuple[Comparison, ...]  # in the order of KINDS, then of the study
    unjudged: tuple[tuple[str, str, str], ...]  # (kind, a, b) with fewer than two common seeds: no difference is given
    alarmed: int  # rows left out for their alarm
    transfers: tuple[Transfer, ...]  # for every choice of images that has both kinds, in the order of the study

    @property
    def too_few(self) -> int:
        """Pairs with fewer than two common seeds."""
        return len(self.unjudged)

    def of(self, a: str, b: str) -> Comparison | None:
        """Row `a` minus row `b`, whichever way round they were compared; None if they were not."""
        for pair in self.family:
            if (pair.a, pair.b) == (a, b):
                return pair
            if (pair.a, pair.b) == (b, a):
                return pair.reversed()
        return None

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
    unjudged: list[tuple[str, str, str]] = []
    seen: set[frozenset[str]] = set()
    for kind, rule in RULES.items():
        for a, b in rule(rows):
            pair = frozenset((a.name, b.name))
            if pair in seen:  # said once, by the first rule that names it
                continue
            seen.add(pair)
            if len(a.table.scores.keys() & b.table.scores.keys()) < 2:
                unjudged.append((kind, a.name, b.name))
                continue
            step = 1 / min(a.cell.test_images, b.cell.test_images)
            found.append((kind, a, b, paired_difference(a.table.scores, b.table.scores, step)))
    adjusted = holm([difference.p for *_, difference in found])
    family = tuple(
        Comparison(kind, a.name, b.name, difference, p, len(found))
        for (kind, a, b, difference), p in zip(found, adjusted, strict=True)
    )
    transfers = tuple(Transfer(a.name, b.name, among, a.validation >= 0) for a, b, among in _best(rows))
    return Comparisons(family, tuple(unjudged), alarmed, transfers)


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
    recipes: tuple[str, ...]  # that it chooses among

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

    @property
    def from_scratch(self) -> bool:
        return self.random and self.table.method == "finetune"


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
        found.append(_Row(table, own[0], classes, held, source, own[0].cut, method, head, row.recipe))
    return found


Pairs = Iterator[tuple[_Row, _Row]]


def _transferred_and_scratch(rows: list[_Row]) -> Pairs:
    """Every row with trained weights, against training from scratch on its images: of several rows from scratch the
    one with the same network, then the best on validation. And the best of both kinds, whatever its network."""
    from_scratch: dict[tuple[object, ...], list[_Row]] = {}
    for b in rows:
        if b.from_scratch:
            from_scratch.setdefault(b.images, []).append(b)
    for a in rows:
        scratch = from_scratch.get(a.images, [])
        if not a.random and scratch:
            yield a, max(scratch, key=lambda b: (b.cell.network == a.cell.network, b.validation))
    yield from ((a, b) for a, b, _ in _best(rows))


def _best(rows: list[_Row]) -> Iterator[tuple[_Row, _Row, int]]:
    """For the same images the transferred row and the one from scratch that are best on validation, and of how many
    transferred rows."""
    for group in _groups(rows, lambda row: row.images):
        transferred = [row for row in group if not row.random]
        scratch = [row for row in group if row.from_scratch]
        if transferred and scratch:
            best, other = (max(kind, key=lambda row: row.validation) for kind in (transferred, scratch))
            yield best, other, len(transferred)


def _trained_and_random(rows: list[_Row]) -> Pairs:
    """The same network, cut, method and head, with trained and with random weights."""

    for group in _groups(rows, _but_source):
        random = [row for row in group if row.random]
        yield from ((a, _opponent(a, random)) for a in group if random and not a.random)


def _trained_sources(rows: list[_Row]) -> Pairs:
    """The same network, cut, method and head, with weights trained on one thing and on another."""
    for group in _groups(rows, _but_source):
        by_source: dict[str, list[_Row]] = {}
        for row in group:
            if not row.random:
                by_source.setdefault(row.source, []).append(row)
        for own, other in combinations(by_source.values(), 2):
            yield from ((a, _opponent(a, other)) for a in own)


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
                if usual:
                    yield row, _opponent(row, plain[usual])


def _tuned_and_frozen(rows: list[_Row]) -> Pairs:
    for group in _groups(rows, _but_method):
        frozen = [row for row in group if row.method == "frozen"]
        yield from ((a, _opponent(a, frozen)) for a in group if frozen and a.method == "finetune")


def _heads(rows: list[_Row]) -> Pairs:
    """Every other head against the linear one on the same trunk; without one, against the first head there."""

    def arm(row: _Row) -> tuple[object, ...]:
        return (row.images, row.source, row.cut, row.method)

    for group in _groups(rows, arm):
        usual = "linear" if any(row.head == "linear" for row in group) else group[0].head
        plain = [row for row in group if row.head == usual]
        yield from ((a, _opponent(a, plain)) for a in group if a.head != usual)


def _recipes(rows: list[_Row]) -> Pairs:
    """Every other recipe, or choice of recipes, against the first of the study for the same trunk and head."""

    def arm(row: _Row) -> tuple[object, ...]:
        return (row.images, row.source, row.cut, row.method, row.head)

    for first, *others in _groups(rows, arm):
        yield from ((a, first) for a in others if a.recipes != first.recipes)


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


def _opponent(row: _Row, candidates: Sequence[_Row]) -> _Row:
    """Of rows that differ from `row` in the thing compared, the one it is compared with."""
    return max(candidates, key=lambda other: (other.recipes == row.recipes, other.validation))


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
    "recipe": _recipes,
    "cut": _neighbours,
}


def _groups(rows: list[_Row], key: Callable[[_Row], tuple[object, ...]]) -> Iterator[list[_Row]]:
    groups: dict[tuple[object, ...], list[_Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return iter(groups.values())


def _telling(comparison: Comparison) -> tuple[float, float]:
    return comparison.adjusted, -abs(comparison.difference.mean)
