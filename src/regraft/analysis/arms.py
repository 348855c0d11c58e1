"""The arms of layer transfer (Yosinski et al. 2014, arXiv:1411.1792): what a cut costs, and why.

A base network learns task B. Its blocks up to a cut are frozen, those above start anew and learn B again (B n B). What
is lost against the base is the price of tearing blocks apart that had learned together: co-adaptation. The same with
the blocks of a network that had learned task A (A n B) loses more by as much as those blocks are specific to A.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.analysis.stats import Difference, Summary, paired_difference, summarise
from regraft.errors import TooFewSeeds
from regraft.study.results import Cell, Results

Scores = dict[int, float]  # seed -> accuracy


@dataclass(frozen=True)
class Lost:
    """Of one cut and target, in fractions; positive numbers are losses."""

    target: str
    other: str  # the source that had learned something else
    cut: str
    depth: float | None
    base: Summary  # the whole network on the target
    co_adaptation: Difference  # base - B n B
    specificity: Difference  # B n B - A n B
    recovered: Difference | None  # A n B+ - base: what fine-tuning the blocks of A is worth in the end
    each: tuple[Scores, Scores]  # of co-adaptation and specificity, by seed


def lost_by_cut(results: Results) -> list[Lost]:
    """For every target whose base network is a source of this study, every other trained source and every cut that both
    were frozen at with a `rest` head; in the order of the study. Empty where there are no such arms, or one seed."""
    rows = {row.name: row for row in results.study.all_rows()}
    scores: dict[str, Scores] = {}
    for cell in results.cells:
        scores.setdefault(cell.row, {})[cell.seed] = cell.accuracy
    arms = _arms(results, scores)
    found = []
    for (source, target, cut, method), own in arms.items():
        base_row = results.study.sources[source].run
        if method != "frozen" or base_row is None or rows[base_row].target != target:
            continue
        for (other, other_target, other_cut, other_method), theirs in arms.items():
            their_base = results.study.sources[other].run
            alike = (other_target, other_cut, other_method) == (target, cut, "frozen")
            if not alike or their_base is None or rows[their_base].target == target:
                continue
            base = scores.get(base_row, {})
            tuned = arms.get((other, target, cut, "finetune"), {})
            try:
                lost = Lost(
                    target, other, cut, _depth(results, cut), summarise(list(base.values())),
                    paired_difference(base, own), paired_difference(own, theirs),
                    paired_difference(tuned, base) if len(tuned.keys() & base.keys()) > 1 else None,
                    (_less(base, own), _less(own, theirs)),
                )  # fmt: skip
            except TooFewSeeds:
                continue
            found.append(lost)
    return found


def _arms(results: Results, scores: dict[str, Scores]) -> dict[tuple[str, str, str, str], Scores]:
    """(source, target, cut, method) -> scores, of the rows whose blocks above the cut start anew."""
    first: dict[str, Cell] = {}
    for cell in results.cells:
        first.setdefault(cell.row, cell)
    return {
        (row.source, row.target, first[row.name].cut, row.method): scores[row.name]
        for row in results.study.all_rows()
        if row.head.kind == "rest" and row.name in first
    }


def _less(a: Scores, b: Scores) -> Scores:
    """a - b of the seeds that both have."""
    return {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}


def _depth(results: Results, cut: str) -> float | None:
    return next((cell.depth for cell in results.cells if cell.cut == cut), None)
