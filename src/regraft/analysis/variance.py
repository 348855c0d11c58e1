"""How far a row's seeds lie apart, what that can come from, and how many seeds a difference takes.

What can be told. A study's seed draws everything at once: subset, initial weights, order, and so the source network if
that is a run with the same seeds. Their sum is the variance between seeds; apart they cannot be told, except where a
row holds all but one of them still (a head solved to its optimum on given weights varies by its subset alone), or where
subsets and initial weights were crossed (`crossed`).

The part of the test sample. All seeds answer the same images, so their accuracies vary, beyond what the networks differ
in general, by the images that one happens to get right and another does not. Of N images that adds the mean of
q (1 - q) / N, where q is the share of seeds that get an image right. It takes the answers to each image
(`disagreement`). From accuracies alone only its upper limit p (1 - p) / N is known, the binomial variance, which holds
for images that are all equally hard; what is left for the training is then a lower limit. Bouthillier et al. 2021
(arXiv:2103.03098) take the binomial variance for the part itself; Jordan 2023 (arXiv:2304.01910) parts the two.

Variances are of accuracies as fractions; texts give standard deviations in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # scipy.stats takes half a second to import

from regraft.analysis.stats import paired_difference
from regraft.analysis.table import TableRow, rows_table
from regraft.errors import TooFewSeeds
from regraft.spec import Row, Study
from regraft.study.answers import read_answers
from regraft.study.results import Cell, Results

MOST_SEEDS = 10_000  # more than anybody trains; beyond it a number says nothing
POWER = 0.8  # usual chance of seeing a difference that is there (Cohen 1988)
LEVEL = 0.05  # two-sided


@dataclass(frozen=True)
class Spread:
    """Variance of a row's accuracy between its seeds, and what is known of its parts."""

    n: int  # seeds
    test_images: int  # answered by each
    total: float  # variance between seeds, n - 1 in the denominator
    low: float  # 95 % interval of the variance, chi-squared
    high: float
    test: float  # expected from the test sample: the part itself if `measured`, else its upper limit
    measured: bool
    differs: tuple[str, ...]  # what the seeds draw anew in training; () if not said

    @property
    def training(self) -> float:
        """What is left for all that differs in training, at least 0; a lower limit unless `measured`."""
        return max(0.0, self.total - self.test)

    def text(self) -> str:
        """'1.2 points [0.62, 7.5]', the standard deviation with its interval, where a column says n."""
        return f"{points(self.total)} points [{points(self.low)}, {points(self.high)}]"

    def told(self) -> str:
        """What is left, and of what: 'at least 1.1 points: subset, initialisation, order (together)'."""
        if self.training == 0:
            return f"none that the test sample {'does' if self.measured else 'could'} not explain"
        limit = "" if self.measured else "at least "
        causes = ", ".join(self.differs) or "training"
        return f"{limit}{points(self.training)} points: {causes}{' (together)' if len(self.differs) > 1 else ''}"


@dataclass(frozen=True)
class Crossed:
    """Variances of accuracies of every subset trained from every initialisation. Each is at least 0."""

    subset: float
    initialisation: float
    rest: float  # their interplay, and the test sample
    subsets: int
    initialisations: int


@dataclass(frozen=True)
class SeedsNeeded:
    """Seeds for a paired comparison that sees a difference. None: more than MOST_SEEDS."""

    difference: float  # fraction
    seeds: int | None
    low: int | None  # from the 95 % interval of the standard deviation
    high: int | None
    n: int  # seeds that the standard deviation was measured on

    def text(self) -> str:
        """'12 [5, 340] seeds to see 1 point (80 % power, two-sided 5 %; deviation from n = 3 seeds)'."""
        unit = "point" if self.difference == 0.01 else "points"
        return (
            f"{self.short()} seeds to see {100 * self.difference:g} {unit} "
            f"({100 * POWER:.0f} % power, two-sided {100 * LEVEL:.0f} %; deviation from n = {self.n} seeds)"
        )

    def short(self) -> str:
        """'12 [5, 340]'."""
        seeds, low, high = (f"> {MOST_SEEDS:,}" if k is None else f"{k:,}" for k in (self.seeds, self.low, self.high))
        return f"{seeds} [{low}, {high}]"


def spread(
    scores: Sequence[float],
    test_images: int,
    *,
    correct: ArrayLike | None = None,
    test_variance: float | None = None,
    differs: tuple[str, ...] = (),
) -> Spread:
    """The variance between seeds and the part that the test sample explains.

    scores: shape (n_seeds,), fractions in [0, 1], all on the same `test_images` images.
    correct: (n_seeds, test_images) of 0 and 1, whether each seed got each image right; measures the part.
    test_variance: of one score, known otherwise (few-shot episodes: their variance / their number); measured as well.
    Raises TooFewSeeds if n_seeds < 2."""
    n = len(scores)
    if n < 2:
        raise TooFewSeeds(f"a variance between seeds needs at least 2 scores, got {n}; add `seeds` to the study")
    values = np.asarray(scores, dtype=float)  # (n,)
    total, mean = float(values.var(ddof=1)), float(values.mean())
    if correct is not None:
        test_variance = disagreement(correct) / 2 / test_images
    low, high = variance_interval(total, n)
    limit = mean * (1 - mean) / test_images
    test = limit if test_variance is None else test_variance
    return Spread(n, test_images, total, low, high, test, test_variance is not None, differs)


def disagreement(correct: ArrayLike) -> float:
    """Share of images that exactly one of two seeds gets right, the mean over all pairs of seeds.

    correct: (n_seeds, images) of 0 and 1.  Half of it estimates the mean of q (1 - q) without bias.
    Raises TooFewSeeds if n_seeds < 2."""
    right = np.asarray(correct, dtype=float)
    n = len(right)
    if n < 2:
        raise TooFewSeeds(f"disagreement is between seeds: at least 2, got {n}")
    k = right.sum(axis=0)  # (images,): seeds that get each right
    return float((2 * k * (n - k)).mean() / (n * (n - 1)))


def variance_interval(variance: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the variance behind that of n seeds, as for normal values: chi-squared, n - 1 degrees of freedom.

    Raises TooFewSeeds if n < 2."""
    if n < 2:
        raise TooFewSeeds(f"a variance between seeds needs at least 2 scores, got {n}; add `seeds` to the study")
    above, below = special.chdtri(n - 1, (1 - level) / 2), special.chdtri(n - 1, (1 + level) / 2)
    return float((n - 1) * variance / above), float((n - 1) * variance / below)


def crossed(scores: ArrayLike) -> Crossed:
    """Parts of the variance where each of a subsets was trained from each of b initialisations (and orders).

    scores: (a, b), fractions in [0, 1].  Two-way random effects, one score a cell: mean squares equated to their
    expectations (Searle et al. 1992, section 4.4); negative estimates become 0.
    Raises TooFewSeeds unless a >= 2 and b >= 2."""
    values = np.asarray(scores, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2:
        raise TooFewSeeds(
            f"a crossed design needs scores of at least 2 subsets x 2 initialisations, got shape {values.shape}"
        )
    a, b = values.shape
    mean, rows, columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    rest = float(((values - rows[:, None] - columns + mean) ** 2).sum()) / ((a - 1) * (b - 1))
    subset = (b * float(rows.var(ddof=1)) - rest) / b
    initialisation = (a * float(columns.var(ddof=1)) - rest) / a
    return Crossed(max(0.0, subset), max(0.0, initialisation), rest, a, b)


def power(seeds: int, effect: float, level: float = LEVEL) -> float:
    """Chance that a two-sided paired t-test over `seeds` seeds sees a difference of `effect` standard deviations.

    From the noncentral t-distribution with seeds - 1 degrees of freedom (Cohen 1988): the normal tails, averaged over
    the measured deviation s by Simpson's rule. scipy.special.nctdtr is NaN at some large shifts."""
    freedom, shift = seeds - 1, abs(effect) * math.sqrt(seeds)
    limit = float(special.stdtrit(freedom, 1 - level / 2))
    reach = 9 / math.sqrt(freedom)  # 12 standard deviations of s, and more where it is skewed
    s, h = np.linspace(max(0.0, 1 - reach), 1 + reach, 2001, retstep=True)  # measured / true deviation
    constant = math.log(2) + freedom / 2 * math.log(freedom / 2) - float(special.gammaln(freedom / 2))
    density = np.exp(constant + special.xlogy(freedom - 1, s) - freedom * s**2 / 2)
    seen = special.ndtr(shift - limit * s) + special.ndtr(-shift - limit * s)
    values = seen * density
    return float(h / 3 * (values[0] + values[-1] + 4 * values[1:-1:2].sum() + 2 * values[2:-1:2].sum()))


def seeds_needed(deviation: float, difference: float, *, wanted: float = POWER, level: float = LEVEL) -> int | None:
    """Fewest seeds, 2 or more, with which a paired t-test sees `difference` with the chance `wanted`.

    deviation: standard deviation of the paired differences, in the unit of `difference`.  None: above MOST_SEEDS.
    Raises ValueError unless difference > 0."""
    if difference <= 0:
        raise ValueError(f"the difference to be seen must be above 0, got {difference}")
    if deviation == 0:
        return 2
    effect = difference / deviation
    low, high = 1, 2  # power grows with the seeds, so the fewest are found by halving
    while power(high, effect, level) < wanted:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, level) >= wanted else (middle, high)
    return high if high <= MOST_SEEDS else None


def seeds_to_see(a: Mapping[int, float], b: Mapping[int, float], difference: float, step: float = 0.0) -> SeedsNeeded:
    """Seeds that a comparison of two rows takes to see `difference`, from the differences measured so far.

    a, b: seed -> accuracy.  difference: fraction, e.g. 0.01 for 1 point.  step: as in `paired_difference`.
    Few seeds hardly know their own deviation: the interval says how little.
    Raises TooFewSeeds if fewer than 2 seeds are common."""
    found = paired_difference(a, b, step)
    return seeds_from(found.deviation, found.n, difference)


def seeds_from(deviation: float, n: int, difference: float) -> SeedsNeeded:
    """The same from the deviation of the differences between n seeds."""
    low, high = variance_interval(deviation**2, n)
    seeds = seeds_needed(deviation, difference)
    return SeedsNeeded(
        difference, seeds, seeds_needed(math.sqrt(low), difference), seeds_needed(math.sqrt(high), difference), n
    )


def spreads(
    results: Results, correct: Mapping[tuple[str, int], ArrayLike] | None = None
) -> list[tuple[TableRow, Spread]]:
    """Of every row with two seeds or more that can be relied on (no alarm), in study order.

    correct: (row, seed) -> (test_images,) of 0 and 1; default: as the store keeps it that the results were read from.
    It measures the test sample's part of the rows that have it for every seed."""
    if correct is None:
        correct = {one: answers.correct for one, answers in read_answers(results).items()}
    cells: dict[str, list[Cell]] = {}
    for cell in results.cells:
        cells.setdefault(cell.row, []).append(cell)
    rows = {row.name: row for row in results.study.all_rows()}
    found = []
    for row in rows_table(results):
        if row.n < 2 or row.alarm:
            continue
        first, keys = cells[row.name][0], [(row.name, seed) for seed in row.scores]
        known = right = None
        if first.episodes is not None:
            known = (first.episode_deviation or 0.0) ** 2 / first.episodes
        elif all(key in correct for key in keys):
            right = np.stack([np.asarray(correct[key]) for key in keys])  # (seeds, images)
        scores, differs = list(row.scores.values()), what_differs(results.study, rows, cells[row.name])
        found.append((row, spread(scores, first.test_images, correct=right, test_variance=known, differs=differs)))
    return found


def what_differs(study: Study, rows: Mapping[str, Row], cells: Sequence[Cell]) -> tuple[str, ...]:
    """What the seeds of a row draw anew in training.

    rows: of the study, by name.  cells: of the row, scored."""
    row = rows[cells[0].row]
    target, source = study.targets[row.target], study.sources[row.source]
    found = []
    if target.episodes is not None:
        found.append("episodes")
    elif target.budget != "all":
        found.append("subset")
    elif target.holds_out and not all(refitted(study, row, cell) for cell in cells):
        found.append("images held out for validation")
    if source.run is not None and len(rows[source.run].seeds or study.seeds) > 1:
        found.append("source network")
    # Of heads solved to their optimum, or read off the features, the curve has no step with a learning rate.
    stepped = any(epoch.get("lr", 0.0) > 0 for cell in cells for epoch in cell.curve)
    drawn = row.head.start == "random" or row.method == "lora"  # lora's adapters start anew
    if cells[0].weights == "random" or (stepped and drawn):
        found.append("initialisation")
    if stepped:
        found.append("order")
    return tuple(found)


def refitted(study: Study, row: Row, cell: Cell) -> bool:
    """Whether the row's scored fit learned from its validation images too, after the choice made by them."""
    if not row.recipe:  # a head that is read off its images takes all that are labelled
        return study.targets[row.target].holds_out
    return study.recipe(cell.recipe).refit


def points(variance: float) -> str:
    """A variance as the standard deviation in points, '1.2'."""
    return f"{100 * math.sqrt(variance):.2g}"
