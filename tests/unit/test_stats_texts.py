"""What statistics say of themselves, and their edges: one seed, no variation, levels, few-shot episodes."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from scipy import stats

from regraft.analysis.stats import (
    Difference,
    Summary,
    paired_difference,
    summarise,
    t_interval,
    wilson_interval,
)
from regraft.errors import TooFewSeeds

WILSON = "from 10,000 test images alone [92.9, 93.9], 95 % Wilson"


def test_few_shot_scores_say_how_many_episodes_each_seed_is_the_mean_over() -> None:
    one = summarise([0.5], episodes=(1600, 0.2))
    # 0.2 / sqrt(1600) = 0.005; t(0.975, 1599) = 1.9614
    assert (one.low, one.high) == pytest.approx((0.5 - 0.0098072, 0.5 + 0.0098072), abs=1e-6)
    assert one.text() == "50.0 % [49.0, 51.0] (95 % t, n = 1,600 episodes, 1 seed)"
    assert one.short() == "50.0 % [49.0, 51.0]"
    # two episodes: t(0.975, 1) = 12.7062; 0.01 / sqrt(2)
    assert summarise([0.5], episodes=(2, 0.01)).high == pytest.approx(0.5 + 12.7062 * 0.01 / math.sqrt(2), abs=1e-6)
    several = summarise([0.4, 0.5, 0.6], episodes=(1600, 0.2))
    assert several.text() == "50.0 % [25.2, 74.8] (95 % t, n = 3 seeds of 1,600 episodes)"
    assert (several.low, several.high) == t_interval([0.4, 0.5, 0.6])


def test_the_sample_of_test_images_is_told_of_a_single_seed_without_another_interval() -> None:
    assert summarise([0.934], 10_000).test_sample() == WILSON
    assert summarise([0.934, 0.934], 10_000).test_sample() == ""
    assert Summary(0.934, None, None, 2, (0.934, 0.934), 10_000).test_sample() == ""
    assert summarise([0.934], 10_000, episodes=(100, 0.1)).test_sample() == ""
    assert summarise([0.934]).test_sample() == ""
    assert summarise([math.nan], 10_000).test_sample() == ""


def test_a_summary_keeps_what_it_was_made_of() -> None:
    found = summarise([0.25, 0.75], 80)
    assert found == Summary(0.5, 0.0, 1.0, 2, (0.25, 0.75), 80, None)
    assert summarise([0.25]) == Summary(0.25, None, None, 1, (0.25,), None, None)
    assert summarise([0.25], episodes=(4, 0.01)).episodes == 4


def test_a_difference_is_told_in_points_and_is_clear_if_its_interval_excludes_zero() -> None:
    apart = Difference(0.5, 0.25, 0.75, 3, 0.01, 0.1)
    assert apart.text() == "+50.0 points [+25.0, +75.0] (95 % paired t, n = 3 seeds)"
    assert apart.reversed().text() == "-50.0 points [-75.0, -25.0] (95 % paired t, n = 3 seeds)"
    assert apart.reversed() == Difference(-0.5, -0.75, -0.25, 3, 0.01, 0.1)
    for low, high, clear in ((0.25, 0.75, True), (0.0, 0.5, False), (-0.5, 0.0, False), (-0.5, -0.25, True),
                             (-0.25, 0.25, False)):  # fmt: skip
        assert Difference((low + high) / 2, low, high, 3, 0.5, 0.1).clear is clear


def test_the_usual_level_is_95_percent() -> None:
    scores = [0.2, 0.4, 0.9]
    assert t_interval(scores) == t_interval(scores, 0.95)
    assert wilson_interval(7, 40) == wilson_interval(7, 40, 0.95)
    assert inspect.signature(paired_difference).parameters["step"].default == 0


def test_whole_numbers_are_scores_like_others() -> None:
    assert t_interval([0, 1]) == pytest.approx(t_interval([0.0, 1.0]))
    assert all(isinstance(bound, float) for bound in t_interval([0, 1]))
    single = np.array([0.1, 0.2, 0.4], np.float32)
    assert t_interval(single) == t_interval(single.tolist()), "computed in double precision"  # type: ignore[arg-type]


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (1, 2), (0, 7), (7, 7), (3, 7)])
def test_wilsons_interval_lies_within_0_and_1_and_touches_them_only_at_the_ends(correct: int, n: int) -> None:
    low, high = wilson_interval(correct, n)
    assert (low == 0.0) == (correct == 0)
    assert (high == 1.0) == (correct == n)
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_with_none_or_all_correct_a_bound_is_exactly_0_or_1() -> None:
    assert all(wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0 for n in range(1, 200))


def test_seeds_are_added_up_in_their_order_however_they_are_given() -> None:
    """To the bit: 0.3 + 0.2 + 0.1 is not 0.1 + 0.3 + 0.2."""
    gaps = {8: 0.1, 1: 0.3, 2: 0.2}
    found = [paired_difference({seed: gaps[seed] for seed in order}, dict.fromkeys(order, 0.0))
             for order in ((1, 2, 8), (8, 1, 2))]  # fmt: skip
    assert found[0].mean == found[1].mean == (0.3 + 0.2 + 0.1) / 3 != (0.1 + 0.3 + 0.2) / 3


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0), (1, 0)])
def test_counts_that_cannot_be_have_no_interval(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"correct = {correct}, n = {n}"):
        wilson_interval(correct, n)


def test_a_difference_so_small_that_it_is_rounding_is_none() -> None:
    for gap, p in ((0.0, 1.0), (1e-13, 1.0), (-1e-13, 1.0), (1e-11, 0.0), (-1e-11, 0.0)):
        exact = paired_difference({0: gap, 1: gap}, {0: 0.0, 1: 0.0})
        assert exact.p == p, gap
        assert exact.deviation == 0.0
    # the error itself is what is compared with rounding, not the deviation
    small = paired_difference({0: 1e-11, 1: 3e-11}, {0: 0.0, 1: 0.0})
    assert small.p == pytest.approx(stats.ttest_1samp([1e-11, 3e-11], 0).pvalue)


def test_a_difference_over_two_seeds_is_one() -> None:
    found = paired_difference({0: 0.5, 1: 0.75, 5: 0.1}, {0: 0.25, 1: 0.25, 6: 0.1})
    assert (found.n, found.mean) == (2, 0.375)
    assert found.p == pytest.approx(stats.ttest_rel([0.5, 0.75], [0.25, 0.25]).pvalue)
    with pytest.raises(TooFewSeeds, match=r"got 1 \(seeds \[0, 5\] and \[0, 6\]\)"):
        paired_difference({5: 0.1, 0: 0.5}, {6: 0.1, 0: 0.25})
