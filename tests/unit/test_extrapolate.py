"""Laws of carrying a learning curve on."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.analysis.extrapolate import extrapolate

BUDGETS = (50.0, 100.0, 200.0, 400.0, 800.0)


def curve(
    a: float, b: float, c: float, *, noise: float = 0.0, seeds: int = 5, seed: int = 0
) -> dict[float, list[float]]:
    """Accuracies of `seeds` trainings at every budget, about a - b n^-c."""
    rng = np.random.default_rng(seed)
    return {n: [float(a - b * n**-c + noise * rng.standard_normal()) for _ in range(seeds)] for n in BUDGETS}


@pytest.mark.parametrize(("a", "b", "c"), [(0.95, 3.0, 0.5), (1.0, 2.0, 0.4), (0.9, 4.0, 0.6)])
def test_a_curve_without_noise_is_carried_on_along_its_own_law(a: float, b: float, c: float) -> None:
    found = extrapolate(curve(a, b, c), chance=0.1, test_images=10**6)
    assert found.law is not None
    assert found.law == pytest.approx((a, b, c), rel=0.15)
    for forecast in found.forecasts:
        assert forecast.low <= a - b * forecast.labels**-c + 1e-3
        assert forecast.high >= a - b * forecast.labels**-c - 1e-3


def test_the_interval_covers_what_more_labels_would_have_given() -> None:
    inside = told = 0
    for seed in range(40):
        found = extrapolate(curve(0.92, 2.5, 0.45, noise=0.015, seed=seed), chance=0.1, test_images=2000)
        for forecast in found.forecasts:
            truth = 0.92 - 2.5 * forecast.labels**-0.45
            told, inside = told + 1, inside + (forecast.low <= truth <= forecast.high)
    assert told >= 60
    assert inside / told >= 0.9


def test_more_noise_or_a_farther_budget_widens_the_interval() -> None:
    calm, noisy = (
        extrapolate(curve(0.92, 2.5, 0.45, noise=noise), chance=0.1, test_images=5000) for noise in (0.004, 0.02)
    )
    widths = [[f.high - f.low for f in found.forecasts] for found in (calm, noisy)]
    assert widths[0][0] < widths[0][1]
    assert all(a < b for a, b in zip(*widths, strict=True))


def test_forecasts_stay_between_chance_and_one_and_do_not_fall() -> None:
    found = extrapolate(curve(1.0, 1.2, 0.5, noise=0.01), chance=0.1, test_images=500)
    last = found.points[-1].accuracy
    assert all(0.1 <= f.low <= f.accuracy <= f.high <= 1.0 for f in found.forecasts)
    assert found.forecasts[0].accuracy >= last - 0.02
    assert found.forecasts[1].accuracy >= found.forecasts[0].accuracy


@pytest.mark.parametrize(
    ("accuracies", "why"),
    [
        ({50.0: [0.5], 100.0: [0.6]}, "at least 3 are needed"),
        ({n: [0.7, 0.71, 0.69] for n in BUDGETS}, "not clearly more than chance"),
        ({n: [0.9 - 0.001 * n**0.5] * 3 for n in BUDGETS}, "not clearly more than chance"),
    ],
)
def test_it_says_that_it_cannot_tell(accuracies: dict[float, list[float]], why: str) -> None:
    found = extrapolate(accuracies, chance=0.1, test_images=200)
    assert not found.told
    assert not found.forecasts
    assert why in found.reason


def test_the_same_curve_gives_the_same_forecast() -> None:
    first, again = (
        extrapolate(curve(0.92, 2.5, 0.45, noise=0.01), chance=0.1, test_images=300).forecasts for _ in range(2)
    )
    assert first == again
