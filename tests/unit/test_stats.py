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


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99])
def test_t_interval_is_scipys_for_every_n_and_level(n: int, level: float) -> None:
    scores = stream(n, "scores").normal(0.8, 0.02, size=n)
    expected = stats.t.interval(level, n - 1, loc=scores.mean(), scale=stats.sem(scores))
    assert t_interval(scores.tolist(), level) == pytest.approx(expected, rel=1e-12)


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


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_wilson_interval_is_scipys_at_other_levels(level: float) -> None:
    expected = stats.binomtest(7, 40).proportion_ci(level, method="wilson")
    assert wilson_interval(7, 40, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_published_examples(correct: int, n: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, score method without continuity correction
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


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


def test_paired_difference_of_students_own_example() -> None:
    # Student 1908: hours of sleep gained with one drug and with the other, ten patients
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    other = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    got = paired_difference(dict(enumerate(other)), dict(enumerate(one)))
    assert (got.mean, got.low, got.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-6)
    assert got.p == pytest.approx(0.002833, abs=1e-6)
    assert got.deviation == pytest.approx(1.229995, abs=1e-6)


def test_paired_difference_changes_sign_with_its_arms() -> None:
    a, b = dict(enumerate(SCORES)), {0: 0.5, 1: 0.6, 2: 0.55}
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert (forth.mean, forth.low, forth.p) == pytest.approx((-back.mean, -back.high, back.p))
    assert forth.clear
    assert back.clear
    assert forth.reversed() == back
    assert back.reversed().text() == forth.text()


def test_equal_arms_differ_by_nothing_and_a_constant_gap_is_certain() -> None:
    a = dict(enumerate(SCORES))
    assert paired_difference(a, a).p == 1.0
    assert not paired_difference(a, a).clear
    gap = paired_difference({seed: score + 0.01 for seed, score in a.items()}, a)
    assert gap.p == 0.0
    assert gap.mean == pytest.approx(0.01)


def test_the_same_gap_on_few_images_is_not_certain() -> None:
    a, b = {0: 0.50, 1: 0.60}, {0: 0.48, 1: 0.58}
    assert paired_difference(a, b).p == 0.0
    got = paired_difference(a, b, step=1 / 50)
    assert got.deviation == pytest.approx(1 / 50 / math.sqrt(6))
    assert got.p > 0.1
    assert got.low < 0 < got.high


def test_a_step_below_the_deviation_changes_nothing() -> None:
    a, b = dict(enumerate(SCORES)), {0: 0.5, 1: 0.6, 2: 0.55}
    assert paired_difference(a, b, step=1e-4) == paired_difference(a, b)


@pytest.mark.parametrize("images", [20, 200])
def test_equal_arms_on_few_images_are_told_apart_no_more_often_than_said(images: int) -> None:
    right = stream(2, "images").binomial(images, 0.7, size=(3000, 2, 2)) / images  # (study, arm, seed)
    found = [paired_difference(dict(enumerate(a)), dict(enumerate(b)), 1 / images) for a, b in right]
    assert np.mean([difference.p < 0.05 for difference in found]) < 0.05 + 3 * binomial_error(0.05, 3000)
    assert all((difference.p < 0.05) == difference.clear for difference in found)


def test_a_difference_needs_two_common_seeds() -> None:
    with pytest.raises(TooFewSeeds, match="got 1"):
        paired_difference({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.6})


def test_holm_of_a_hand_computed_example() -> None:
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, each at least as large as the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_holm_of_a_second_hand_computed_example() -> None:
    # 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.03]) == [0.03]
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])


def test_holm_rejects_what_its_step_down_procedure_rejects() -> None:
    # Holm 1979 as stated there: from the smallest p on, compare with alpha / m, alpha / (m - 1), ..., stop at the first
    for seed in range(50):
        p_values = (stream(seed, "step down").uniform(size=9) ** 3).tolist()
        rejected: set[int] = set()
        for rank, i in enumerate(sorted(range(9), key=lambda i: p_values[i])):
            if p_values[i] > 0.05 / (9 - rank):
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_holm_finds_something_in_pure_noise_as_rarely_as_it_says() -> None:
    families = stream(3, "noise").uniform(size=(3000, 12))
    wrong = np.mean([min(holm(family.tolist())) < 0.05 for family in families])
    assert wrong == pytest.approx(0.05, abs=4 * binomial_error(0.05, 3000))


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
    text = "93.4 % (1 seed; from 10,000 test images alone [92.9, 93.9], 95 % Wilson)"
    assert summarise([0.934], 10_000).text() == text
    assert summarise([0.934], 10_000).test_sample() in text
    assert summarise(SCORES, 10_000).test_sample() == ""
    assert summarise([0.934]).text() == "93.4 % (1 seed)"
    assert summarise([math.nan], 100).text() == "nan % (1 seed)"


def test_a_summarys_interval_stays_within_an_accuracys_range() -> None:
    summary = summarise([0.1, 0.9])
    assert (summary.low, summary.high) == (0.0, 1.0)


def test_a_summary_needs_a_score() -> None:
    with pytest.raises(TooFewSeeds):
        summarise([])
