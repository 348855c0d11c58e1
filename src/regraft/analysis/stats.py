"""Statistics over seeds and over test images. Accuracies are fractions in [0, 1]; texts are in percent.

Two different uncertainties: seeds vary the training (subset, initial weights, order), which the t-interval
describes; the test set is a sample of images, which the binomial error describes. A single seed has only the
second, and its text says so. How much either explains is in `analysis/variance`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats takes half a second to import

from regraft.errors import TooFewSeeds


@dataclass(frozen=True)
class Summary:
    """Accuracy of a row over its seeds. `low` and `high` are None for a single seed."""

    mean: float
    low: float | None  # 95 % t-interval of the mean, cut to [0, 1]
    high: float | None
    n: int  # seeds
    scores: tuple[float, ...]  # one per seed, in seed order
    test_images: int | None = None  # per seed; gives a single seed its binomial error
    episodes: int | None = None  # few-shot episodes per seed; with a single seed, the interval is over them

    def text(self) -> str:
        """'93.4 % [92.1, 94.7] (95 % t, n = 3 seeds)', or for one seed its interval from the test sample alone."""
        mean = f"{100 * self.mean:.1f} %"
        if self.low is not None and self.high is not None:
            n = f"n = {self.n} seeds"
            if self.episodes is not None:
                each = f"{self.episodes:,} episodes"
                n = f"n = {each}, 1 seed" if self.n == 1 else f"{n} of {each}"
            return f"{mean} [{100 * self.low:.1f}, {100 * self.high:.1f}] (95 % t, {n})"
        if self.test_images is None or math.isnan(self.mean):
            return f"{mean} (1 seed)"
        return f"{mean} (1 seed; {self.test_sample()})"

    def short(self) -> str:
        """'93.4 % [92.1, 94.7]' or '93.4 %', where a column says n."""
        return self.text().partition(" (")[0]

    def test_sample(self) -> str:
        """Of a single seed: 'from 10,000 test images alone [92.9, 93.9], 95 % Wilson'; '' where that is not known."""
        if self.n > 1 or self.low is not None or self.test_images is None or math.isnan(self.mean):
            return ""
        low, high = wilson_interval(round(self.mean * self.test_images), self.test_images)
        return f"from {self.test_images:,} test images alone [{100 * low:.1f}, {100 * high:.1f}], 95 % Wilson"


@dataclass(frozen=True)
class Difference:
    """a - b over the seeds that both have: mean and 95 % paired t-interval, two-sided p."""

    mean: float
    low: float
    high: float
    n: int
    p: float
    deviation: float  # standard deviation of the differences between seeds

    @property
    def clear(self) -> bool:
        """True if the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def reversed(self) -> Difference:
        """b - a."""
        return Difference(-self.mean, -self.high, -self.low, self.n, self.p, self.deviation)

    def text(self) -> str:
        """'+3.1 points [1.2, 5.0] (95 % paired t, n = 3 seeds)'."""
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.mean:+.1f} points [{low:+.1f}, {high:+.1f}] (95 % paired t, n = {self.n} seeds)"


def t_interval(scores: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """t-interval of the mean over seeds.

    scores: shape (n_seeds,).  Returns (low, high), not cut to [0, 1].
    Raises TooFewSeeds if n_seeds < 2.  Student 1908.
    """
    values = np.asarray(scores, dtype=float)  # (n,)
    n = len(values)
    if n < 2:
        raise TooFewSeeds(f"an interval over seeds needs at least 2 scores, got {n}; add `seeds` to the study")
    half = float(special.stdtrit(n - 1, 0.5 + level / 2) * values.std(ddof=1) / math.sqrt(n))
    mean = float(values.mean())
    return mean - half, mean + half


def summarise(
    scores: Sequence[float], test_images: int | None = None, episodes: tuple[int, float] | None = None
) -> Summary:
    """Mean of accuracies over seeds, with their 95 % t-interval from two seeds on.

    scores: shape (n_seeds,), fractions in [0, 1].  episodes: of few-shot scores, how many each seed is the mean over,
    and their standard deviation, which gives a single seed its interval.  Raises TooFewSeeds if there is none.
    """
    if not scores:
        raise TooFewSeeds("a summary needs at least 1 score, got 0")
    low, high = t_interval(scores) if len(scores) > 1 else (None, None)
    if len(scores) == 1 and episodes is not None:
        count, deviation = episodes
        half = float(special.stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
        low, high = scores[0] - half, scores[0] + half
    return Summary(
        mean=float(np.mean(scores)),
        low=None if low is None else max(low, 0.0),
        high=None if high is None else min(high, 1.0),
        n=len(scores),
        scores=tuple(scores),
        test_images=test_images,
        episodes=None if episodes is None else episodes[0],
    )


def wilson_interval(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion of n independent images.  Wilson 1927.

    Raises ValueError unless 0 <= correct <= n and n > 0.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"needs 0 <= correct <= n and n > 0, got correct = {correct}, n = {n}")
    z = float(special.ndtri(0.5 + level / 2))
    share, pull = correct / n, z * z / n
    centre = (share + pull / 2) / (1 + pull)
    half = z / (1 + pull) * math.sqrt(share * (1 - share) / n + pull / (4 * n))
    # At 0 or n correct the bound is exactly 0 or 1; rounding would leave 1e-17.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], step: float = 0.0) -> Difference:
    """a - b over common seeds, which share subset and order: 95 % paired t-interval and two-sided p.

    a, b: seed -> accuracy.  step: by which an accuracy can change at least, 1 / test images. On few images two seeds
    often give the very same difference, by chance; a deviation smaller than rounding to the step leaves behind
    (variance step^2 / 12 for each accuracy, Sheppard 1898) is not believed.
    Raises TooFewSeeds if fewer than 2 seeds are common.  Student 1908.
    """
    common = sorted(a.keys() & b.keys())
    if len(common) < 2:
        raise TooFewSeeds(
            f"a paired difference needs at least 2 common seeds, got {len(common)} "
            f"(seeds {sorted(a)} and {sorted(b)}); give both rows the same `seeds`"
        )
    differences = np.array([a[seed] - b[seed] for seed in common])  # (n,)
    mean, n = float(differences.mean()), len(common)
    deviation = max(float(differences.std(ddof=1)), step / math.sqrt(6))
    error = deviation / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 0.975)) * error
    # Every seed gave the same difference (up to rounding): t is infinite, or 0/0.
    t = abs(mean) / error if error > 1e-12 else (math.inf if abs(mean) > 1e-12 else 0.0)
    return Difference(mean, mean - half, mean + half, n, float(2 * special.stdtr(n - 1, -t)), deviation)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given: reject those below alpha and the whole family keeps alpha.

    Holm 1979.
    """
    m = len(p_values)
    adjusted, largest = [0.0] * m, 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def binomial_error(accuracy: float, n: int) -> float:
    """Standard error of an accuracy from n independent test images: sqrt(p (1 - p) / n), a fraction."""
    return math.sqrt(accuracy * (1 - accuracy) / n)
