"""Parts of the variance between seeds and seeds needed: against scipy, published values, and made data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from regraft.analysis.stats import binomial_error
from regraft.analysis.variance import (
    MOST_SEEDS,
    crossed,
    disagreement,
    power,
    seeds_needed,
    seeds_to_see,
    spread,
    spreads,
    variance_interval,
    what_differs,
)
from regraft.errors import TooFewSeeds
from regraft.seeding import stream
from regraft.spec import Study
from regraft.study.results import Cell, Results
from tests.unit.show_example import cell, seven_rows

QUICKSTART = Path(__file__).parents[2] / "docs" / "records" / "quickstart.json"


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 40, 1000])
@pytest.mark.parametrize("effect", [0.0, 0.1, 0.5, 1.0, 3.0, 6.0, 20.0, 100.0, -0.5])
def test_power_is_that_of_scipys_noncentral_t(seeds: int, effect: float) -> None:
    limit = stats.t.ppf(0.975, seeds - 1)
    shift = abs(effect) * math.sqrt(seeds)
    # The far tail is below 1e-9 from a shift of 6 on, where scipy's is NaN now and then.
    tails = [stats.nct.sf(limit, seeds - 1, shift), stats.nct.sf(limit, seeds - 1, -shift) if shift < 6 else 0.0]
    assert power(seeds, effect) == pytest.approx(sum(tails), abs=1e-7)


def test_without_a_difference_power_is_the_level() -> None:
    assert power(5, 0.0) == pytest.approx(0.05)
    assert power(5, 0.0, level=0.2) == pytest.approx(0.2)


def test_power_is_the_share_of_paired_tests_that_see_the_difference() -> None:
    differences = stream(0, "power").normal(0.02, 0.02, size=(4000, 8))
    seen = np.mean(stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05)
    assert seen == pytest.approx(power(8, 1.0), abs=4 * binomial_error(0.7, 4000))


@pytest.mark.parametrize(
    ("effect", "pairs"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6), (2.0, 5)]
)
def test_seeds_needed_are_the_tables_for_paired_tests(effect: float, pairs: int) -> None:
    # Two-sided 5 %, power 80 %, as in G*Power (Faul et al. 2007) and statsmodels' TTestPower, rounded up
    assert seeds_needed(1.0, effect) == pairs
    assert seeds_needed(0.02, 0.02 * effect) == pairs


@pytest.mark.parametrize("effect", [0.07, 0.33, 0.9, 2.5, 20.0])
def test_seeds_needed_are_the_fewest_that_have_the_power(effect: float) -> None:
    seeds = seeds_needed(1.0, effect)
    assert seeds is not None
    assert power(seeds, effect) >= 0.8
    assert seeds == 2 or power(seeds - 1, effect) < 0.8


def test_seeds_needed_at_the_ends() -> None:
    assert seeds_needed(0.0, 0.01) == 2
    assert seeds_needed(1e-9, 0.01) == 2
    assert seeds_needed(1.0, 1e-4) is None
    with pytest.raises(ValueError, match="above 0, got 0"):
        seeds_needed(0.01, 0.0)


def test_seeds_to_see_says_how_little_three_seeds_know_of_their_deviation() -> None:
    a, b = {0: 0.93, 1: 0.95, 2: 0.97}, {0: 0.92, 1: 0.92, 2: 0.92}  # differences 1, 3, 5 points: deviation 2
    found = seeds_to_see(a, b, 0.01)
    assert found.seeds == seeds_needed(2.0, 1.0) == 34
    low, high = (math.sqrt(2 * 4 / stats.chi2.ppf(p, 2)) for p in (0.975, 0.025))
    assert (found.low, found.high) == (seeds_needed(low, 1.0), seeds_needed(high, 1.0))
    assert found.text().startswith("34 [")
    assert found.text().endswith("] seeds to see 1 point (80 % power, two-sided 5 %; deviation from n = 3 seeds)")
    assert seeds_to_see(a, b, 1e-5).text().startswith(f"> {MOST_SEEDS:,} [")


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_of_a_variance_is_chi_squared(n: int) -> None:
    low, high = variance_interval(4.0, n)
    assert low == pytest.approx((n - 1) * 4 / stats.chi2.ppf(0.975, n - 1))
    assert high == pytest.approx((n - 1) * 4 / stats.chi2.ppf(0.025, n - 1))


def test_the_interval_of_a_variance_covers_it_as_often_as_it_says() -> None:
    draws = stream(1, "variance").normal(0.9, 0.02, size=(4000, 3))
    bounds = [variance_interval(row.var(ddof=1), 3) for row in draws]
    covered = np.mean([low <= 0.02**2 <= high for low, high in bounds])
    assert covered == pytest.approx(0.95, abs=4 * binomial_error(0.95, 4000))


def answers(seeds: int, shares: NDArray[np.float64], offsets: NDArray[np.float64] | float = 0.0) -> NDArray[np.bool_]:
    """(seeds, images): each seed gets an image right with the image's share, moved by the seed's offset."""
    chance = np.clip(shares + np.reshape(offsets, (-1, 1)), 0, 1)
    right: NDArray[np.bool_] = stream(0, "answers", seeds).random((seeds, len(shares))) < chance
    return right


def test_seeds_that_differ_by_single_images_alone_leave_nothing_for_the_training() -> None:
    shares = stream(0, "shares").beta(2, 0.5, size=2000)  # most images easy, some hard
    right = answers(300, shares)
    found = spread(right.mean(axis=1).tolist(), 2000, correct=right)
    assert found.measured
    assert found.test == pytest.approx(float((shares * (1 - shares)).mean()) / 2000, rel=0.03)
    assert found.total == pytest.approx(found.test, rel=4 * math.sqrt(2 / 299))
    limit = spread(right.mean(axis=1).tolist(), 2000)
    assert not limit.measured
    assert limit.test > 1.3 * found.test  # images differ in difficulty, so the binomial variance is too much
    assert limit.training == 0.0
    assert limit.told() == "none that the test sample could not explain"


def test_what_the_training_varies_is_found_beside_the_test_sample() -> None:
    offsets = stream(1, "offsets").normal(0, 0.02, size=400)
    right = answers(400, np.full(1000, 0.7), offsets)
    found = spread(right.mean(axis=1).tolist(), 1000, correct=right)
    assert found.training == pytest.approx(0.02**2, rel=0.35)
    assert spread(right.mean(axis=1).tolist(), 1000).training == pytest.approx(0.02**2, rel=0.35)


def test_disagreement_of_a_hand_computed_example() -> None:
    # images right by 3, 2, 0 of 3 seeds: of 3 pairs 0, 2, 0 disagree
    assert disagreement([[1, 1, 0], [1, 1, 0], [1, 0, 0]]) == pytest.approx((0 + 2 / 3 + 0) / 3)
    with pytest.raises(TooFewSeeds, match="got 1"):
        disagreement([[1, 0]])


def test_spread_of_a_hand_computed_example() -> None:
    found = spread([0.88, 0.90, 0.92], 100, differs=("subset", "order"))
    assert found.total == pytest.approx(0.02**2)
    assert found.test == pytest.approx(0.9 * 0.1 / 100)
    assert found.training == 0.0
    found = spread([0.88, 0.90, 0.92], 10_000, differs=("subset", "order"))
    assert found.training == pytest.approx(0.02**2 - 0.003**2)
    assert found.text() == "2 points [1, 13]"
    assert found.told() == "at least 2 points: subset, order (together)"
    with pytest.raises(TooFewSeeds, match="got 1"):
        spread([0.9], 100)


def test_crossed_parts_of_a_table_without_noise_are_its_effects() -> None:
    subsets, starts = np.array([-0.02, 0.0, 0.02]), np.array([-0.01, 0.01])
    found = crossed(0.8 + subsets[:, None] + starts)
    assert found.subset == pytest.approx(subsets.var(ddof=1))
    assert found.initialisation == pytest.approx(starts.var(ddof=1))
    assert found.rest == pytest.approx(0.0, abs=1e-12)


def test_crossed_parts_are_right_on_average() -> None:
    rng, parts = stream(0, "crossed"), []
    for _ in range(1500):
        table = rng.normal(0, 3, (6, 1)) + rng.normal(0, 2, (1, 5)) + rng.normal(0, 1, (6, 5))
        found = crossed(table)
        parts.append((found.subset, found.initialisation, found.rest))
    assert np.mean(parts, axis=0) == pytest.approx([9, 4, 1], rel=0.12)


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (4,)])
def test_a_crossed_design_needs_two_of_each(shape: tuple[int, ...]) -> None:
    with pytest.raises(TooFewSeeds, match="at least 2 subsets x 2 initialisations"):
        crossed(np.zeros(shape))


def test_what_the_seeds_of_a_row_draw_anew_is_told_from_its_design() -> None:
    results = Results.from_json(QUICKSTART)
    rows = {row.name: row for row in results.study.all_rows()}
    by_row: dict[str, list[Cell]] = {}
    for one in results.cells:
        by_row.setdefault(one.row, []).append(one)
    told = {name: what_differs(results.study, rows, cells) for name, cells in by_row.items()}
    assert told["random, fine-tuned, 5 per class"] == ("subset", "initialisation", "order")
    assert told["random, frozen at stage2, 5 per class"] == ("subset", "initialisation")
    # One trained source for all seeds and a head solved to its optimum: the subset alone is left.
    assert told["trained on 0-4, frozen at stage2, 5 per class"] == ("subset",)


@pytest.mark.parametrize(
    ("target", "refit", "expected"),
    [
        ({}, False, ("images held out for validation", "source network")),
        ({"validation": 0}, False, ("source network",)),
        ({}, True, ("source network",)),
    ],
)
def test_all_images_leave_no_subset(target: dict[str, float], refit: bool, expected: tuple[str, ...]) -> None:
    study = Study(
        study="all", seeds=[0, 1], sources={"net": {"network": "resnet18"}, "own": {"run": "trained"}},
        targets={"digits": {"data": "digits", "validation": 0.1}, "t": {"data": "digits", **target}},
        recipes={"solved": {"optimizer": "lbfgs", "refit": refit}, "steps": {"epochs": 1}},
        rows=[
            {"name": "trained", "source": "net", "target": "digits", "recipe": "steps"},
            {"name": "probe", "source": "own", "method": "frozen", "target": "t", "recipe": "solved"},
        ],
    )  # fmt: skip
    rows = {row.name: row for row in study.all_rows()}
    curve = [{"epoch": 1.0, "lr": 0.0, "train_loss": 0.1}]
    cells = [cell(row="probe", weights="trained", recipe="solved", seed=seed, curve=curve) for seed in (0, 1)]
    assert what_differs(study, rows, cells) == expected


def test_rows_with_an_alarm_or_one_seed_have_no_spread() -> None:
    names = [row.name for row, _ in spreads(seven_rows())]
    assert "1 rn50 scratch" in names
    assert "5 rn50, 10 %" not in names  # an alarm
    assert "8 ImageNet, all images" not in names  # no score


def test_few_shot_episodes_bring_the_variance_of_their_mean() -> None:
    study = Study(
        study="shots", seeds=[0, 1], sources={"net": {"network": "resnet18"}},
        targets={"t": {"data": "digits", "episodes": {"count": 400}}},
        rows=[{"name": "few", "source": "net", "method": "frozen", "head": "prototype", "target": "t"}],
    )  # fmt: skip
    cells = [
        cell(row="few", seed=seed, method="frozen", head="prototype", target="t", accuracy=0.9 + 0.02 * seed,
             episodes=400, episode_deviation=0.1, curve=[])
        for seed in (0, 1)
    ]  # fmt: skip
    ((_, found),) = spreads(Results(study, cells, [], 2))
    assert found.measured
    assert found.test == pytest.approx(0.1**2 / 400)
    assert found.differs == ("episodes", "initialisation")


def test_the_answers_of_every_seed_measure_a_rows_test_part() -> None:
    results, name = seven_rows(), "6 ImageNet, 50 per class"
    right = answers(3, np.full(10_000, 0.9))
    correct = {(name, seed): right[seed] for seed in range(3)}
    found = {row.name: spread for row, spread in spreads(results, correct)}
    assert found[name].measured
    assert found[name].test == pytest.approx(disagreement(right) / 2 / 10_000)
    assert not found["1 rn50 scratch"].measured
    del correct[name, 2]
    assert not any(spread.measured for _, spread in spreads(results, correct))
