"""Accuracy with more labels than there are: a learning curve carried on to 2 and 4 times the labels, or "cannot tell".

The curve is taken to follow a power law, accuracy = a - b n^-c, a the accuracy that no number of labels exceeds. That
error falls so with the number of images was measured by Hestness et al. 2017 (arXiv:1712.00409) and, down to an error
that stays, by Rosenfeld et al. 2020 (arXiv:1909.12673).

The uncertainty has three parts, drawn together many times: what the seeds leave open at each budget (t-distributed
about the mean), what the test images leave open (one shift for all budgets, since all are scored on the
same images), and which law it is: each draw fits one of three (a free; a = 1, error falls to nothing; c = 1/2). The
interval is the middle 95 % of the draws. What lies outside chance to 1 is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from regraft.analysis.stats import binomial_error
from regraft.seeding import stream

Floats = NDArray[np.float64]

FEWEST_BUDGETS = 3  # three numbers are fitted
DRAWS = 2000
EXPONENTS = np.linspace(0.05, 1.5, 59)  # those reported for images lie between 0.1 and 0.7
TOO_WIDE = 0.3  # an interval of 30 points says nothing that a person could act on
CLEARLY = 2.0  # standard errors by which the last budget must be above the first


@dataclass(frozen=True)
class Point:
    """What was measured at one budget."""

    labels: float  # labelled images per class, or all told; the unit is the caller's
    accuracy: float  # mean over seeds, a fraction
    error: float  # standard error of that mean over seeds; the test images' own is not in it
    n: int  # seeds


@dataclass(frozen=True)
class Forecast:
    """Expected accuracy with `factor` times the labels."""

    factor: float
    labels: float
    accuracy: float  # median of the draws
    low: float  # 95 % interval
    high: float

    def text(self) -> str:
        """'91.2 % [88.0, 94.1]'."""
        return f"{100 * self.accuracy:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Extrapolation:
    """The measured curve and where it goes; `reason` says why that cannot be told, and is "" where it can."""

    points: tuple[Point, ...]
    forecasts: tuple[Forecast, ...]
    law: tuple[float, float, float] | None  # a, b, c of accuracy = a - b n^-c, n in the caller's unit
    reason: str

    @property
    def told(self) -> bool:
        """Whether there is a forecast."""
        return not self.reason


def extrapolate(
    accuracies: Mapping[float, Sequence[float]],
    *,
    chance: float,
    test_images: int,
    factors: Sequence[float] = (2.0, 4.0),
    seed: int = 0,
) -> Extrapolation:
    """Carry on a learning curve.  accuracies: labels -> accuracy of each seed.  chance: 1 / classes.

    test_images: on which all of them were scored.  factors: multiples of the largest budget.
    """
    budgets = sorted(accuracies)
    points = _points(accuracies, budgets)
    if len(budgets) < FEWEST_BUDGETS:
        said = f"{len(budgets)} budgets of labels were measured, and at least {FEWEST_BUDGETS} are needed"
        return Extrapolation(points, (), None, said)
    if reason := _no_curve(points, test_images):
        return Extrapolation(points, (), None, reason)
    labels = np.array(budgets, dtype=float)
    scale = labels[-1]
    means = np.array([point.accuracy for point in points])
    targets = np.array([*labels, *(scale * factor for factor in factors)])
    drawn = _drawn(points, accuracies, test_images, seed)  # (draws, budgets)
    beyond = _carried_on(drawn, labels / scale, targets[len(labels) :] / scale, seed)  # (draws, factors)
    beyond = np.clip(beyond, chance, 1.0)
    forecasts = tuple(
        Forecast(factor, float(scale * factor), *(float(np.quantile(column, q)) for q in (0.5, 0.025, 0.975)))
        for factor, column in zip(factors, beyond.T, strict=True)
    )
    a, b, c = (float(value[0]) for value in _fitted(means[None], labels / scale, EXPONENTS))
    law = (a, b * scale**c, c)
    worst = max(forecasts, key=lambda one: one.high - one.low)
    if worst.high - worst.low > TOO_WIDE:
        wide = f"with {worst.factor:g} times the labels anything from {100 * worst.low:.0f} to {100 * worst.high:.0f} %"
        return Extrapolation(points, (), law, f"the curve is too uncertain to be carried on: {wide} would fit it")
    return Extrapolation(points, forecasts, law, "")


def _points(accuracies: Mapping[float, Sequence[float]], budgets: Sequence[float]) -> tuple[Point, ...]:
    """At the largest budget every seed has the same images, so seeds would say that nothing varies, or there is one:
    the deviation of the budget before it stands in, for one drawing of that many images."""
    points, before = [], 0.0
    for i, n in enumerate(budgets):
        each = accuracies[n]
        own = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        last = i == len(budgets) - 1
        deviation = max(own, before) if last else own
        points.append(Point(n, float(np.mean(each)), deviation / (1.0 if last else math.sqrt(len(each))), len(each)))
        before = own or before
    return tuple(points)


def _no_curve(points: Sequence[Point], test_images: int) -> str:
    """Why there is no curve to carry on: flat, falling, or noise; "" if there is one."""
    first, last = points[0], points[-1]
    seeds = math.hypot(first.error, last.error)
    # Both are scored on the same images: only those on which they differ can make the difference by chance.
    paired = math.sqrt(max(abs(last.accuracy - first.accuracy), 1.0 / test_images) / test_images)
    error = math.hypot(seeds, paired)
    rise = last.accuracy - first.accuracy
    if rise > CLEARLY * error:
        return ""
    span = f"from {first.labels:g} to {last.labels:g} labels accuracy changed by {100 * rise:+.1f} points"
    return f"{span}, which is not clearly more than chance gives (± {100 * CLEARLY * error:.1f} points)"


def _drawn(points: Sequence[Point], accuracies: Mapping[float, Sequence[float]], test_images: int, seed: int) -> Floats:
    """(draws, budgets): means that seeds and test images could as well have given."""
    rng = stream(seed, "extrapolate")
    means = np.array([point.accuracy for point in points])
    errors = np.array([point.error for point in points])
    freedom = max(1, sum(len(each) - 1 for each in accuracies.values()))
    t = special.stdtrit(freedom, rng.uniform(size=(DRAWS, len(points))))
    shift = binomial_error(float(means[-1]), test_images) * rng.standard_normal((DRAWS, 1))
    return np.clip(means + errors * t + shift, 0.0, 1.0)


def _carried_on(drawn: Floats, labels: Floats, targets: Floats, seed: int) -> Floats:
    """(draws, targets): each draw by the law that falls to it."""
    which = stream(seed, "extrapolate-law").integers(3, size=len(drawn))
    found = np.empty((len(drawn), len(targets)))
    laws = ((EXPONENTS, None), (EXPONENTS, 1.0), (np.array([0.5]), None))
    for number, (exponents, asymptote) in enumerate(laws):
        own = which == number
        a, b, c = _fitted(drawn[own], labels, exponents, asymptote)
        found[own] = a[:, None] - b[:, None] * targets[None] ** -c[:, None]
    return found


def _fitted(
    means: Floats, labels: Floats, exponents: Floats, asymptote: float | None = None
) -> tuple[Floats, Floats, Floats]:
    """Least squares of a - b n^-c with a <= 1 and b >= 0: (rows,) each of a, b and c.

    means: (rows, budgets).  labels: (budgets,), the largest 1.  asymptote: a, where it is given."""
    best = np.full(len(means), np.inf)
    a_best, b_best, c_best = (np.zeros(len(means)) for _ in range(3))
    for c in exponents:
        x = labels**-c  # (budgets,)
        if asymptote is None:
            centred = x - x.mean()
            b = -(means @ centred) / (centred @ centred)
            a = means.mean(1) + b * x.mean()
            high = a > 1.0
            a = np.where(high, 1.0, a)
            b = np.where(high, (1.0 - means) @ x / (x @ x), b)
            low = b < 0
            a, b = np.where(low, means.mean(1), a), np.where(low, 0.0, b)
        else:
            a = np.full(len(means), asymptote)
            b = np.maximum(0.0, (asymptote - means) @ x / (x @ x))
        left = ((means - (a[:, None] - b[:, None] * x)) ** 2).sum(1)
        better = left < best
        best = np.where(better, left, best)
        a_best, b_best, c_best = (np.where(better, new, old) for new, old in ((a, a_best), (b, b_best), (c, c_best)))
    return a_best, b_best, c_best
