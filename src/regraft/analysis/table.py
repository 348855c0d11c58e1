"""The table that everything shows: one entry per row name, seeds summarised, in study order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.analysis.alarm import alarm_kinds
from regraft.analysis.stats import Summary, summarise
from regraft.spec.tuning import told
from regraft.study.results import Cell, Results


@dataclass(frozen=True)
class TableRow:
    """One row of a study over all its seeds. Fields that only a scored cell knows are None without one."""

    name: str
    n: int  # scored seeds
    summary: Summary | None
    scores: dict[int, float]  # seed -> accuracy
    chance: float | None
    test_images: int | None
    train_images: int | None
    note: str
    original: float | None
    cut: str
    method: str
    head: str
    source: str
    target: str
    budget: str
    recipes: tuple[str, ...]  # chosen on validation: one name, or several if seeds chose differently
    missing: tuple[str, ...]  # "seed 2: reason", or "reason" if it is the same for all
    alarm: str  # "" or e.g. "chance (seeds 0, 1)"

    @property
    def what(self) -> str:
        """'rn50 at layer2.2, frozen, linear head → cifar100 (10 %)'."""
        at = "" if self.cut == "all" else f" at {self.cut}"
        return f"{self.source}{at}, {self.method}, {self.head} head → {self.target} ({self.budget})"


def rows_table(results: Results) -> list[TableRow]:
    """One entry per row of the study, in study order; rows without a scored cell say why in `missing`."""
    cells: dict[str, list[Cell]] = {}
    for cell in results.cells:
        cells.setdefault(cell.row, []).append(cell)
    raised: dict[str, dict[int, tuple[str, ...]]] = {}  # row -> seed -> kinds of its alarms
    for (name, seed), kinds in alarm_kinds(results).items():
        raised.setdefault(name, {})[seed] = kinds
    reasons: dict[str, dict[int, str]] = {}
    for gap in results.missing:
        reasons.setdefault(gap.row, {})[gap.seed] = gap.reason
    table = []
    for row in results.study.all_rows():
        own = sorted(cells.get(row.name, []), key=lambda cell: cell.seed)
        first = own[0] if own else None
        scores = {cell.seed: cell.accuracy for cell in own}
        table.append(
            TableRow(
                name=row.name,
                n=len(own),
                summary=_summary(own) if own else None,
                scores=scores,
                chance=first.chance if first else None,
                test_images=first.test_images if first else None,
                train_images=first.train_images if first else None,
                note=row.note,
                original=row.original,
                cut=first.cut if first else row.cut or "all",
                method=told(row.method, row.tuning),
                head=row.head.label,
                source=row.source,
                target=row.target,
                budget=results.study.targets[row.target].budget,
                recipes=tuple(dict.fromkeys(cell.recipe for cell in own)),
                missing=_reasons(reasons.get(row.name, {}), scored=bool(own)),
                alarm=_alarm_text(raised.get(row.name, {})),
            )
        )
    return table


def _summary(cells: Sequence[Cell]) -> Summary:
    first = cells[0]
    episodes = None if first.episodes is None else (first.episodes, first.episode_deviation or 0.0)
    return summarise([cell.accuracy for cell in cells], first.test_images, episodes)


def _reasons(by_seed: dict[int, str], *, scored: bool) -> tuple[str, ...]:
    distinct = list(dict.fromkeys(by_seed.values()))
    if len(distinct) == 1 and not scored:
        return (distinct[0],)
    return tuple(f"{_seeds([s for s, r in by_seed.items() if r == reason])}: {reason}" for reason in distinct)


def _alarm_text(raised: dict[int, tuple[str, ...]]) -> str:
    """raised: seed -> kinds."""
    kinds = dict.fromkeys(kind for of_seed in raised.values() for kind in of_seed)
    return "; ".join(f"{kind} ({_seeds([seed for seed in raised if kind in raised[seed]])})" for kind in kinds)


def _seeds(seeds: list[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, sorted(seeds)))
