"""Two studies, or one study computed twice, set side by side: which rows agree, by how much others differ, and what
differs in how they were made.

Rows are matched by name, or by fields. Where both learned from the same images with the same seeds, the difference is
paired; else it is Welch's (1947), which knows nothing of pairs. All p-values are one family, corrected after Holm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, Literal

from scipy import special

from regraft.analysis.compare import LEVEL
from regraft.analysis.stats import Summary, holm, paired_difference
from regraft.analysis.table import TableRow, rows_table
from regraft.errors import StudyError, UnknownName, nearest
from regraft.spec import Row, Study
from regraft.study.results import Cell, Results

SHOWN = 6  # rows that only one side has, in a sentence
# What rows can be matched by; "name" is the usual
BY: dict[str, Callable[[TableRow, Cell], str]] = {
    "name": lambda row, cell: row.name,
    "source": lambda row, cell: row.source,
    "network": lambda row, cell: cell.network,
    "weights": lambda row, cell: cell.weights,
    "cut": lambda row, cell: row.cut,
    "method": lambda row, cell: row.method,
    "head": lambda row, cell: row.head,
    "target": lambda row, cell: row.target,
    "data": lambda row, cell: cell.data,
    "budget": lambda row, cell: row.budget,
    "recipe": lambda row, cell: "/".join(row.recipes),
}
FACTS = ("device", "machine", "threads", "precision")  # of a cell's cost
Kind = Literal["equal", "paired", "Welch", "no interval"]


@dataclass(frozen=True)
class Gap:
    """The difference of two means, first minus second, in fractions."""

    mean: float
    low: float | None  # 95 % t-interval; None with too few seeds
    high: float | None
    p: float | None  # two-sided
    n: int  # pairs of seeds, or the fewer seeds of the two


@dataclass(frozen=True)
class Differs:
    """One thing that is not the same on both sides."""

    what: str  # "recipe.lr", "versions.torch"
    first: str
    second: str

    def text(self) -> str:
        """'recipe.lr: 0.1, 0.05'."""
        return f"{self.what}: {self.first}, {self.second}"


@dataclass(frozen=True)
class Match:
    """A row of each side."""

    first: str  # name
    second: str
    means: tuple[Summary, Summary]
    kind: Kind
    why: str  # why the difference is not paired, or what is equal
    gap: Gap
    adjusted: float | None  # p after Holm
    differs: tuple[Differs, ...]  # in how the two rows were made, beyond what all matched rows share

    @property
    def verdict(self) -> str:
        """'equal', 'clear', 'not clear', or 'not judged' where there are too few seeds."""
        if self.kind == "equal":
            return "equal"
        return "not judged" if self.adjusted is None else "clear" if self.adjusted < LEVEL else "not clear"

    def text(self) -> str:
        """'+3.1 points [+1.2, +5.0] (95 % paired t, n = 3 seeds)'."""
        if self.kind == "equal":
            return f"equal ({self.why})"
        mean = f"{100 * self.gap.mean:+.2f} points"
        if self.gap.low is None or self.gap.high is None:
            return f"{mean} (no interval: {self.why})"
        told = "paired t" if self.kind == "paired" else f"Welch t; not paired: {self.why}"
        n = f"n = {self.gap.n} seeds" if self.kind == "paired" else f"n = {self.means[0].n} and {self.means[1].n} seeds"
        return f"{mean} [{100 * self.gap.low:+.2f}, {100 * self.gap.high:+.2f}] (95 % {told}, {n})"


@dataclass(frozen=True)
class Between:
    """Two sets of results, row by row."""

    names: tuple[str, str]  # of the studies
    matches: tuple[Match, ...]  # in the order of the first
    only: tuple[tuple[str, ...], tuple[str, ...]]  # rows that the other has not, or that are not scored there
    shared: tuple[Differs, ...]  # that all matched rows differ in
    machines: tuple[Differs, ...]  # devices, threads, versions

    def summary(self) -> list[str]:
        """In sentences."""
        kinds = [match.verdict for match in self.matches]
        said = [
            f"{len(self.matches)} rows matched: {kinds.count('equal')} equal, {kinds.count('clear')} differ clearly, "
            f"{kinds.count('not clear')} not clearly, {kinds.count('not judged')} not judged; p is adjusted after Holm."
        ]
        for name, rows in zip(("first", "second"), self.only, strict=True):
            if rows:
                more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
                said.append(f"Only the {name} has scores of {len(rows)} rows: {'; '.join(rows[:SHOWN])}{more}.")
        if self.shared:
            said.append(f"In all matched rows differ: {'; '.join(one.text() for one in self.shared)}.")
        if self.machines:
            said.append(f"Computed differently: {'; '.join(one.text() for one in self.machines)}.")
        return said


def between(first: Results, second: Results, *, by: Sequence[str] = ("name",)) -> Between:
    """Match the scored rows of both and compare them.

    Raises UnknownName for a field that rows cannot be matched by, StudyError where two rows of one side are the same
    by those fields, or where nothing matches."""
    for field in by:
        if field not in BY:
            raise UnknownName(f"rows cannot be matched by {field!r}{nearest(field, BY)} Fields: {', '.join(BY)}")
    sides = [_rows(results, by) for results in (first, second)]
    common = [key for key in sides[0] if key in sides[1]]
    if not common:
        known = [", ".join(repr(" | ".join(key)) for key in list(side)[:3]) or "no scored row" for side in sides]
        raise StudyError(
            f"no scored row of {first.study.study} has the same {', '.join(by)} as one of {second.study.study}: "
            f"the first has {known[0]}, the second {known[1]}; name other fields with --by, as --by source,cut"
        )
    pairs = [(sides[0][key], sides[1][key]) for key in common]
    said = [{row.name: row for row in results.study.all_rows()} for results in (first, second)]
    made = [
        _unlike(made_by(first.study, said[0], a.row.name), made_by(second.study, said[1], b.row.name)) for a, b in pairs
    ]
    shared = tuple(one for one in made[0] if all(one in other for other in made)) if len(made) > 1 else ()
    found = [_gap(a, b) for a, b in pairs]
    judged = [gap.p for _, _, gap in found if gap.p is not None]
    adjusted = iter(holm(judged))
    matches = tuple(
        Match(
            a.row.name, b.row.name, (a.summary, b.summary), kind, why, gap,
            next(adjusted) if gap.p is not None else None, tuple(one for one in own if one not in shared),
        )
        for (a, b), (kind, why, gap), own in zip(pairs, found, made, strict=True)
    )  # fmt: skip
    only = [
        tuple(one.row.name for key, one in side.items() if key not in other)
        for side, other in (sides, sides[::-1])
    ]  # fmt: skip
    names = (first.study.study, second.study.study)
    return Between(names, matches, (only[0], only[1]), shared, _machines(first, second))


@dataclass(frozen=True)
class _Scored:
    row: TableRow
    cells: dict[int, Cell]  # by seed
    classes: tuple[str, ...] | None

    @property
    def summary(self) -> Summary:
        assert self.row.summary is not None
        return self.row.summary

    @property
    def images(self) -> tuple[object, ...]:
        """Rows with equal ones learned from the same images, seed by seed, and were asked the same."""
        cell = next(iter(self.cells.values()))
        return (cell.data, self.classes, cell.budget, cell.train_images, cell.validation_images, cell.test_images,
                cell.episodes)  # fmt: skip


def _rows(results: Results, by: Sequence[str]) -> dict[tuple[str, ...], _Scored]:
    cells: dict[str, dict[int, Cell]] = {}
    for cell in results.cells:
        cells.setdefault(cell.row, {})[cell.seed] = cell
    found: dict[tuple[str, ...], _Scored] = {}
    for row in rows_table(results):
        if row.summary is None or not math.isfinite(row.summary.mean):
            continue
        own = cells[row.name]
        key = tuple(BY[field](row, next(iter(own.values()))) for field in by)
        if key in found:
            raise StudyError(
                f"{results.study.study}: rows {found[key].row.name!r} and {row.name!r} have the same {', '.join(by)}; "
                f"add a field that tells them apart, of {', '.join(BY)}"
            )
        found[key] = _Scored(row, own, results.study.targets[row.target].classes)
    return found


def _gap(a: _Scored, b: _Scored) -> tuple[Kind, str, Gap]:
    common = sorted(a.cells.keys() & b.cells.keys())
    mean = a.summary.mean - b.summary.mean
    if common and a.cells.keys() == b.cells.keys() and all(_equal(a.cells[s], b.cells[s]) for s in common):
        keys = all(a.cells[seed].key == b.cells[seed].key for seed in common)
        told = "bit for bit" + (", under the same keys" if keys else ", under other keys")
        return "equal", told, Gap(mean, None, None, None, len(common))
    step = 1 / min(next(iter(one.cells.values())).test_images for one in (a, b))
    if a.images == b.images and len(common) > 1:
        found = paired_difference(a.row.scores, b.row.scores, step)
        return "paired", "", Gap(found.mean, found.low, found.high, found.p, found.n)
    why = "other images" if a.images != b.images else "fewer than two seeds in common"
    n = min(a.row.n, b.row.n)
    if n < 2:
        return "no interval", f"{why}, and one seed" if a.images != b.images else why, Gap(mean, None, None, None, n)
    return "Welch", why, welch(a.summary.scores, b.summary.scores, step)


def _equal(a: Cell, b: Cell) -> bool:
    """Whether nothing that was measured differs: accuracies, curve, and what the test images were taken for."""
    same = (a.accuracy, a.validation_accuracy, a.train_accuracy, a.test_images) == (
        b.accuracy, b.validation_accuracy, b.train_accuracy, b.test_images)  # fmt: skip
    matrices = not a.confusion or not b.confusion or a.confusion == b.confusion
    return same and matrices and a.curve == b.curve


def welch(a: Sequence[float], b: Sequence[float], step: float = 0.0) -> Gap:
    """Difference of two means with unequal variances: 95 % t-interval and two-sided p.

    a, b: shapes (n,) and (m,), two or more each.  step: by which an accuracy can change at least; a variance below
    that of rounding to it (step^2 / 12) is not believed.  Welch 1947."""
    parts = [max(variance(one), step * step / 12) / len(one) for one in (a, b)]
    mean, error = fmean(a) - fmean(b), math.sqrt(sum(parts))
    if error == 0:
        return Gap(mean, mean, mean, 1.0 if mean == 0 else 0.0, min(len(a), len(b)))
    freedom = sum(parts) ** 2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (a, b), strict=True))
    half = float(special.stdtrit(freedom, 0.975)) * error
    p = float(2 * special.stdtr(freedom, -abs(mean) / error))
    return Gap(mean, mean - half, mean + half, p, min(len(a), len(b)))


def made_by(study: Study, rows: Mapping[str, Row], name: str, *, usual: bool = True) -> dict[str, str]:
    """All that a study says of a row, field by field: source (and the row that it was trained by), cut, method, head,
    target, recipe, seeds.  rows: of the study by name.  usual: also fields that nothing was said of."""
    row = rows[name]
    source = study.sources[row.source]
    parts: dict[str, Any] = {
        "tuning": row.tuning, "head": row.head, "source": source, "target": study.targets[row.target],
        **{"recipe" if len(row.recipe) == 1 else f"recipe {one}": study.recipe(one) for one in row.recipe},
    }  # fmt: skip
    found = {"cut": str(row.cut), "method": row.method, "seeds": str(list(row.seeds or study.seeds))}
    for where, part in parts.items():
        found |= _flat(where, part.model_dump(mode="json", exclude_defaults=not usual, exclude={"run"}))
    if source.run is not None:
        before = made_by(study, rows, source.run, usual=usual)
        found |= {f"source's {field}": value for field, value in before.items() if field != "seeds"}
    return found


def _flat(where: str, values: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, value in values.items():
        if isinstance(value, dict):
            found |= _flat(f"{where}.{field}", value)
        elif value is not None:
            found[f"{where}.{field}"] = str(value)
    return found


def _unlike(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Differs, ...]:
    fields = dict.fromkeys([*a, *b])
    return tuple(Differs(f, a.get(f, "–"), b.get(f, "–")) for f in fields if a.get(f) != b.get(f))


def _machines(first: Results, second: Results) -> tuple[Differs, ...]:
    sides = []
    for results in (first, second):
        seen: dict[str, dict[str, None]] = {}
        for cell in results.cells:
            cost = cell.cost
            facts: dict[str, Any] = {name: cost[name] for name in FACTS if name in cost}
            facts |= {f"versions.{name}": value for name, value in cost.get("versions", {}).items()}
            if isinstance(cost.get("mechanism"), dict) and "mechanism" in cost["mechanism"]:
                facts["mechanism"] = cost["mechanism"]["mechanism"]
            for name, value in facts.items():
                seen.setdefault(name, {})[str(value)] = None
        sides.append({name: " and ".join(sorted(values)) for name, values in seen.items()})
    return _unlike(sides[0], sides[1])
