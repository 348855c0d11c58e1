"""Statistics against scipy, hand-computed examples, and their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from regraft.analysis.stats import (
    binomial_error,
    holm,
    paired_difference,
    summarise,
    t_interval,
    wilson_interval,
)
from regraft.errors import TooFewSeeds
from regraft.seeding import stream

SCORES = [0.921, 0.934, 0.947]


def test_t_interval_is_scipys() -> None:
    mean, error = np.mean(SCORES), stats.sem(SCORES)
    assert t_interval(SCORES) == pytest.approx(stats.t.interval(0.95, 2, loc=mean, scale=error))
    assert t_interval(SCORES, level=0.5) == pytest.approx(stats.t.interval(0.5, 2, loc=mean, scale=error))


def test_t_interval_of_a_hand_computed_example() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.302653; half-width 4.302653 / sqrt(3)
    assert t_interval([1, 2, 3]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = stream(0, "coverage").normal(0.9, 0.01, size=(4000, 3))
    covered = [low <= 0.9 <= high for low, high in (t_interval(list(row)) for row in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * binomial_error(0.95, 4000))


@pytest.mark.parametrize("scores", [[], [0.9]])
def test_an_interval_needs_two_seeds(scores: list[float]) -> None:
    with pytest.raises(TooFewSeeds, match=f"got {len(scores)}"):
        t_interval(scores)


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (1, 20), (9340, 10_000), (20, 20), (5, 5)])
def test_wilson_interval_is_scipys(correct: int, n: int) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="correct = 6, n = 5"):
        wilson_interval(6, 5)
    with pytest.raises(ValueError, match="n = 0"):
        wilson_interval(0, 0)


def test_paired_difference_is_scipys_paired_test_over_common_seeds() -> None:
    a, b = {0: 0.93, 1: 0.95, 2: 0.96, 7: 0.1}, {2: 0.92, 0: 0.90, 1: 0.91, 9: 0.5}
    got = paired_difference(a, b)
    reference = stats.ttest_rel([0.93, 0.95, 0.96], [0.90, 0.91, 0.92])
    interval = reference.confidence_interval(0.95)
    assert got.n == 3
    assert got.p == pytest.approx(reference.pvalue)
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high))
    assert got.text() == "+3.7 points [+2.2, +5.1] (95 % paired t, n = 3 seeds)"


def test_paired_difference_changes_sign_with_its_arms() -> None:
    a, b = dict(enumerate(SCORES)), {0: 0.5, 1: 0.6, 2: 0.55}
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert (forth.mean, forth.low, forth.p) == pytest.approx((-back.mean, -back.high, back.p))
    assert forth.clear
    assert back.clear


def test_equal_arms_differ_by_nothing_and_a_constant_gap_is_certain() -> None:
    a = dict(enumerate(SCORES))
    assert paired_difference(a, a).p == 1.0
    assert not paired_difference(a, a).clear
    gap = paired_difference({seed: score + 0.01 for seed, score in a.items()}, a)
    assert gap.p == 0.0
    assert gap.mean == pytest.approx(0.01)


def test_a_difference_needs_two_common_seeds() -> None:
    with pytest.raises(TooFewSeeds, match="got 1"):
        paired_difference({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.6})


def test_holm_of_a_hand_computed_example() -> None:
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, each at least as large as the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_holm_is_at_least_p_and_keeps_order() -> None:
    p_values = stream(1, "holm").uniform(size=30).tolist()
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values)
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_binomial_error_of_a_hand_computed_example() -> None:
    assert binomial_error(0.9, 10_000) == pytest.approx(0.003)


def test_a_summary_says_interval_and_n() -> None:
    assert summarise(SCORES).text() == "93.4 % [90.2, 96.6] (95 % t, n = 3 seeds)"
    assert summarise(SCORES).short() == "93.4 % [90.2, 96.6]"


def test_one_seed_says_the_test_samples_error_instead() -> None:
    assert summarise([0.934], 10_000).text() == "93.4 % (1 seed; test-sample error ± 0.5, Wilson)"
    assert summarise([0.934]).text() == "93.4 % (1 seed)"
    assert summarise([math.nan], 100).text() == "nan % (1 seed)"


def test_a_summarys_interval_stays_within_an_accuracys_range() -> None:
    summary = summarise([0.1, 0.9])
    assert (summary.low, summary.high) == (0.0, 1.0)


def test_a_summary_needs_a_score() -> None:
    with pytest.raises(TooFewSeeds):
        summarise([])
