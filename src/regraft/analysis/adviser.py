"""The adviser for cut and source, and its judge.

A score advises the candidate with the highest value. What that is worth is measured, over groups (a seed on a target,
and whatever else the candidates share): how well the score ranks the measured accuracies, and the regret, the accuracy
of the measured best less that of the advised. The trivial scores are judged beside the published ones, always, and so
are two rules that look at no score: any candidate, and the one that is best on the other targets.

Intervals are over seeds, that is over other training images, with the same sources and test images. They say nothing
of sources and targets that are not in the study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from regraft.analysis.stats import Difference, paired_difference, t_interval
from regraft.errors import UnknownName, nearest
from regraft.learn.score_names import LOGME, PROBE
from regraft.study.scores import DEPTH, SIZE, VALIDATION, WIDTH, ScoreRow

AT_RANDOM, ELSEWHERE = "(any candidate)", "(best on other targets)"
TRIVIAL = (DEPTH, SIZE, WIDTH, PROBE, VALIDATION, AT_RANDOM, ELSEWHERE)
ADVISER = LOGME  # whose advice is taken; the table says what that is worth
By = Literal["cut", "source", "both"]


class Choice(NamedTuple):
    """A candidate in its group: the same target, seed, and `among` (what else candidates have in common)."""

    target: str
    seed: int
    candidate: str
    among: str = ""


Group = tuple[str, int, str]  # target, seed, among
Values = dict[str, float]  # by candidate


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, each the mean over its groups, with its 95 % t-interval from two seeds on."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """'0.71 [0.60, 0.82]', or '0.71' for a single seed."""
        values = [self.mean] if self.low is None or self.high is None else [self.mean, self.low, self.high]
        mean, *ends = (f"{scale * value:.{digits}f}" for value in values)
        return f"{mean} [{', '.join(ends)}]" if ends else mean


@dataclass(frozen=True)
class Judgement:
    """What a score's advice was worth. A ranking correlation is None where it is not defined."""

    score: str
    trivial: bool
    kendall: Estimate | None  # tau-b
    weighted: Estimate | None  # weighted tau: disagreement at the top weighs more.  Vigna 2015
    regret: Estimate  # fraction of test images
    margin: Difference | None  # its regret less that of the ridge probe, by seed; from two seeds on that have both
    hits: float  # share of groups in which it advised the measured best; of equal scores, each counts its part
    groups: int  # in which every candidate has the score
    candidates: float  # mean number in a group


def advised(scores: Mapping[str, float]) -> list[str]:
    """Of {candidate: score}, the advised one, or all that share the highest score. Those with NaN are out."""
    known = {name: value for name, value in scores.items() if not math.isnan(value)}
    return [name for name, value in known.items() if value == max(known.values())]


def advice(rows: Sequence[ScoreRow], score: str, by: By = "cut") -> dict[Group, list[str]]:
    """What `score` advises in every group, (target, seed, what else is shared): a candidate, several with the same
    score, or none where it is not known. Needs no accuracy. by: as for `adviser_table`.  Raises UnknownName."""
    known = list(dict.fromkeys(name for row in rows for name in row.scores))
    if score not in known:
        raise UnknownName(f"no score {score!r}{nearest(score, known)} Scores: {', '.join(known) or 'none'}.")
    groups: dict[Group, Values] = {}
    for row in _deepest(rows) if by == "source" else rows:
        choice = _choice(row, by)
        groups.setdefault(_group(choice), {}).setdefault(choice.candidate, row.scores.get(score, math.nan))
    return {group: advised(values) for group, values in groups.items()}


def judged(scores: Mapping[str, Mapping[Choice, float]], accuracies: Mapping[Choice, float]) -> list[Judgement]:
    """Every score's advice against measured accuracies, least regret first; both rules that look at no score too.

    scores: by name, the value for each candidate in each group; NaN or absent: not known there.
    accuracies: measured, fractions of the test images.
    A group needs two candidates with an accuracy, and for a score to be judged on it, all of them need that score.
    Scores that tell no two candidates apart in any group are left out. Compare scores on the same `groups` only; where
    targets are budgets of one data set, the best on other targets has as good as seen the target."""
    measured: dict[Group, Values] = {}
    for choice, accuracy in accuracies.items():
        measured.setdefault(_group(choice), {})[choice.candidate] = accuracy
    measured = {group: values for group, values in measured.items() if len(values) > 1}
    found = []
    known = {name: _by_group(values, measured) for name, values in {**scores, ELSEWHERE: _elsewhere(measured)}.items()}
    probe = {group: _regret(held, measured[group]) for group, held in known.get(PROBE, {}).items()}
    for name, telling in known.items():
        if any(len(set(held.values())) > 1 for held in telling.values()):
            found.append(_judgement(name, telling, measured, probe))
    if measured:
        nothing = {group: dict.fromkeys(values, 0.0) for group, values in measured.items()}
        found.append(_judgement(AT_RANDOM, nothing, measured, probe))
    return sorted(found, key=lambda judgement: judgement.regret.mean)


def adviser_table(rows: Sequence[ScoreRow], by: By = "cut") -> list[Judgement]:
    """`judged` of a study's rows, as `regraft.study.scores.scores_table` gives them; rows without a score are left out.

    by: what is chosen between. cut: the cuts of a source; source: sources, each at its deepest cut in the study; both:
    all pairs. Candidates share target, seed, head and optimizer."""
    scores: dict[str, dict[Choice, float]] = {}
    accuracies: dict[Choice, float] = {}
    for row in _deepest(rows) if by == "source" else rows:
        choice = _choice(row, by)
        if row.accuracy is None or choice in accuracies:  # rows that differ in nothing told apart here: the first
            continue
        accuracies[choice] = row.accuracy
        for name, value in row.scores.items():
            scores.setdefault(name, {})[choice] = value
    return judged(scores, accuracies)


@dataclass(frozen=True)
class Advised:
    """A candidate of a group, mean over seeds."""

    target: str
    among: str  # what the group's candidates have in common
    candidate: str
    depth: float
    score: float
    accuracy: float  # measured, fraction of the test images
    picks: int  # seeds in which the score advises it
    best: int  # seeds in which it is the measured best
    seeds: int


def advised_beside_measured(rows: Sequence[ScoreRow], score: str = ADVISER, by: By = "cut") -> list[Advised]:
    """Every candidate that has the score and a measured accuracy in every seed of its group; groups of two or more."""
    values: dict[Group, dict[str, tuple[float, float, float]]] = {}  # candidate -> score, accuracy, depth
    for row in _deepest(rows) if by == "source" else rows:
        if row.accuracy is None or math.isnan(row.scores.get(score, math.nan)):
            continue
        choice = _choice(row, by)
        known = values.setdefault(_group(choice), {})
        known.setdefault(choice.candidate, (row.scores[score], row.accuracy, row.scores[DEPTH]))
    groups: dict[tuple[str, str], list[dict[str, tuple[float, float, float]]]] = {}
    for (target, _, among), of_seed in values.items():
        groups.setdefault((target, among), []).append(of_seed)
    found = []
    for (target, among), seeds in groups.items():
        names = [name for name in seeds[0] if all(name in of_seed for of_seed in seeds)]
        if len(names) < 2:
            continue
        tops = [[{n for n in names if s[n][i] == max(s[m][i] for m in names)} for i in (0, 1)] for s in seeds]
        for name in names:
            score_mean, accuracy, depth = (fmean(of_seed[name][i] for of_seed in seeds) for i in (0, 1, 2))
            picks, best = (sum(name in top[i] for top in tops) for i in (0, 1))
            found.append(Advised(target, among, name, depth, score_mean, accuracy, picks, best, len(seeds)))
    return found


def table_cells(table: Sequence[Judgement]) -> list[list[str]]:
    """The table as text, its heading first; regret in points (hundredths of the test images)."""
    cells = [
        ["score", "", "regret, points", f"less {PROBE}'s", "Kendall", "weighted", "best advised", "groups", "seeds"]
    ]
    for one in table:
        taus = (tau.text() if tau is not None else "–" for tau in (one.kendall, one.weighted))
        gap = one.margin
        margin = "–" if gap is None else f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        counts = f"{100 * one.hits:.0f} %", str(one.groups), str(one.regret.seeds)
        cells.append([one.score, "trivial" * one.trivial, one.regret.text(100, 1), margin, *taus, *counts])
    return cells


def table_lines(table: Sequence[Judgement]) -> list[str]:
    """The same as lines of plain text."""
    cells = table_cells(table)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


# --- of one score -----------------------------------------------------------------------------------------------


def _judgement(
    name: str, scores: Mapping[Group, Values], measured: Mapping[Group, Values], probe: Mapping[Group, float]
) -> Judgement:
    """scores: in every group where all candidates have one.  probe: the ridge probe's regret."""
    taus: dict[Group, float] = {}
    weighted: dict[Group, float] = {}
    regrets: dict[Group, float] = {}
    hits = []
    for group, values in scores.items():
        accuracies = measured[group]
        regrets[group] = _regret(values, accuracies)
        hits.append(fmean(accuracies[c] == max(accuracies.values()) for c in advised(values)))
        if len(set(values.values())) > 1 and len(set(accuracies.values())) > 1:
            x, y = [values[c] for c in accuracies], list(accuracies.values())
            taus[group], weighted[group] = _correlations(x, y)
    both = regrets.keys() & probe.keys()
    own, other = (_by_seed({group: r[group] for group in both}) for r in (regrets, probe))
    return Judgement(
        score=name,
        trivial=name in TRIVIAL,
        kendall=_estimate(taus) if taus else None,
        weighted=_estimate(weighted) if weighted else None,
        regret=_estimate(regrets),
        margin=paired_difference(own, other) if len(own) > 1 and name != PROBE else None,
        hits=fmean(hits),
        groups=len(scores),
        candidates=fmean(map(len, scores.values())),
    )


def _regret(scores: Values, accuracies: Values) -> float:
    """The best accuracy less that of the advised candidate, or less the mean of those that share the advice."""
    return max(accuracies.values()) - fmean(accuracies[candidate] for candidate in advised(scores))


def _correlations(x: list[float], y: list[float]) -> tuple[float, float]:
    """Kendall's tau-b, and the weighted tau."""
    from scipy import stats  # takes half a second

    return float(stats.kendalltau(x, y).statistic), float(stats.weightedtau(x, y).statistic)


def _estimate(values: Mapping[Group, float]) -> Estimate:
    means = list(_by_seed(values).values())
    low, high = t_interval(means) if len(means) > 1 else (None, None)
    return Estimate(fmean(means), low, high, len(means))


def _by_seed(values: Mapping[Group, float]) -> dict[int, float]:
    """Mean over the groups of each seed."""
    found: dict[int, list[float]] = {}
    for (_, seed, _), value in values.items():
        found.setdefault(seed, []).append(value)
    return {seed: fmean(of_seed) for seed, of_seed in found.items()}


# --- groups -----------------------------------------------------------------------------------------------------


def _group(choice: Choice) -> Group:
    return choice.target, choice.seed, choice.among


def _by_group(scores: Mapping[Choice, float], measured: Mapping[Group, Values]) -> dict[Group, Values]:
    """The scores of the candidates of each group, where all of them have one."""
    found = {}
    for (target, seed, among), accuracies in measured.items():
        held = {c: scores.get(Choice(target, seed, c, among), math.nan) for c in accuracies}
        if not any(map(math.isnan, held.values())):
            found[target, seed, among] = held
    return found


def _elsewhere(measured: Mapping[Group, Values]) -> dict[Choice, float]:
    """For every choice, the candidate's mean accuracy on the other targets, in groups of the same `among`."""
    found = {}
    for target, seed, among in measured:
        others = [v for (other, _, kin), v in measured.items() if other != target and kin == among]
        for candidate in measured[target, seed, among]:
            known = [values[candidate] for values in others if candidate in values]
            found[Choice(target, seed, candidate, among)] = fmean(known) if known else math.nan
    return found


def _choice(row: ScoreRow, by: By) -> Choice:
    arm = f"{row.head}, {row.optimizer}"
    if by == "cut":
        return Choice(row.target, row.seed, row.cut, f"{row.source}; {arm}")
    return Choice(row.target, row.seed, row.source if by == "source" else f"{row.source} at {row.cut}", arm)


def _deepest(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Of each source, the rows at its deepest cut for the target."""
    depths: dict[tuple[str, str], float] = {}
    for row in rows:
        place = row.source, row.target
        depths[place] = max(row.scores[DEPTH], depths.get(place, 0.0))
    return [row for row in rows if row.scores[DEPTH] == depths[row.source, row.target]]
