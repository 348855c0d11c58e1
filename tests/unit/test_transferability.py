"""Laws of transferability scores: the published formulas, computed otherwise; what must not change them; no NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from torch import Tensor

from regraft.errors import Diverged
from regraft.learn.score_names import PROBE
from regraft.learn.solve import scaling_of
from regraft.learn.transferability import (
    answer_scores,
    feature_scores,
    h_score,
    leep,
    logme,
    nce,
    ridge_probe,
    transrate,
)
from regraft.seeding import torch_stream

Score = Callable[[Tensor, Tensor], float]
TURNED: dict[str, Score] = {"LogME": logme, "H-score": h_score, "TransRate": transrate}  # rotations change nothing
EVERY: dict[str, Score] = {**TURNED, "ridge probe": ridge_probe}


def digits(n: int) -> tuple[Tensor, Tensor]:
    """Pixels (n, 64), a few of them constant, and labels."""
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x[:n]).float(), torch.from_numpy(y[:n])


def mixed(n: int, d: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Correlated, positive features with some signal, as networks give."""
    rng = torch_stream(0, "mixed")
    y = torch.arange(n) % classes
    x = torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=rng) / d**0.5
    x += torch.randn(classes, d, generator=rng)[y]
    return x.relu(), y


def rotation(d: int) -> Tensor:
    turned: Tensor = torch.linalg.qr(torch.randn(d, d, generator=torch_stream(1, "turn"), dtype=torch.float64))[0]
    return turned


# --- the formulas -----------------------------------------------------------------------------------------------


def test_logme_is_the_largest_evidence_of_any_two_precisions() -> None:
    x, y = mixed(12, 3)

    def loss(log_precisions: np.ndarray, target: np.ndarray) -> float:
        alpha, beta = np.exp(log_precisions)
        covariance = np.eye(12) / beta + (x @ x.T).double().numpy() / alpha
        return -float(multivariate_normal(np.zeros(12), covariance).logpdf(target))

    targets = [(y == label).double().numpy() for label in range(3)]
    largest = [-minimize(loss, np.zeros(2), args=(t,), method="Nelder-Mead", tol=1e-8).fun / 12 for t in targets]
    assert logme(x, y) == pytest.approx(np.mean(largest), abs=1e-6)


def test_h_score_is_the_trace_with_ledoit_and_wolfs_covariance() -> None:
    for x, y in (digits(300), mixed(20, 50)):
        z = x.double() - x.double().mean(0)
        covariance = LedoitWolf().fit(z.numpy())
        means = torch.stack([z[y == label].mean(0) for label in y])  # (n, d), each image's class mean
        between = means.T @ means / len(z)
        shrunk = torch.from_numpy(covariance.covariance_)
        expected = (1 - covariance.shrinkage_) * (torch.linalg.pinv(shrunk, rtol=1e-15) @ between).trace()
        assert h_score(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_h_score_of_one_feature_is_the_share_of_variance_between_classes() -> None:
    x, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
    assert h_score(x, y) == pytest.approx(1.0 / 1.25)  # class means 0.5 and 2.5 around 1.5; variance 1.25


def test_transrate_of_one_feature_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1, 0])
    # Scaled to mean square 1, class 0 lies at +- sqrt(1.8), class 1 at +- sqrt(0.2)
    expected = 0.5 * math.log(11) - 0.25 * (math.log(19) + math.log(3))
    assert transrate(x, y, distortion=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50)])
def test_transrate_is_the_difference_of_coding_rates(n: int, d: int) -> None:
    x, y = mixed(n, d)
    z = x.double() - x.double().mean(0)
    z = z / (z.square().sum() / n).sqrt()

    def rate(rows: Tensor) -> float:
        inside = torch.eye(d, dtype=torch.float64) + rows.T @ rows / (len(rows) * 1e-4)
        return 0.5 * float(torch.linalg.slogdet(inside).logabsdet)

    expected = rate(z) - sum((y == c).double().mean().item() * rate(z[y == c]) for c in range(3))
    assert transrate(x, y) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("x", "y"), [digits(60), mixed(24, 40)], ids=["digits", "fewer images than features"])
def test_the_ridge_probe_predicts_each_image_with_a_head_that_has_not_seen_it(x: Tensor, y: Tensor) -> None:
    z = scaling_of(x)(x).numpy()
    targets = np.eye(int(y.max()) + 1)[y.numpy()]
    right = []
    for i in range(len(z)):
        others = np.arange(len(z)) != i
        head = Ridge(alpha=len(z) * 0.01).fit(z[others], targets[others])
        right.append(head.predict(z[i : i + 1]).argmax() == int(y[i]))
    assert ridge_probe(x, y, penalties=[0.01]) == pytest.approx(np.mean(right))


def test_leep_by_hand() -> None:
    posteriors = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    # P(label 0 | source class 0) = 0.75, P(label 0 | source class 1) = 0.25: 0.75 * 0.75 + 0.25 * 0.25
    assert leep(posteriors, torch.tensor([0, 1])) == pytest.approx(math.log(0.625))


def test_nce_by_hand() -> None:
    predicted, labels = torch.tensor([7, 7, 3, 3]), torch.tensor([0, 1, 1, 1])
    assert nce(predicted, labels) == pytest.approx(-0.5 * math.log(2))  # half of the images, of an even pair


def test_leep_of_a_source_without_doubt_is_nce() -> None:
    rng = torch_stream(0, "answers")
    predicted, labels = torch.randint(0, 5, (200,), generator=rng), torch.randint(0, 4, (200,), generator=rng)
    posteriors = torch.eye(5)[predicted]
    assert leep(posteriors, labels) == pytest.approx(nce(predicted, labels))
    assert answer_scores(posteriors, labels) == pytest.approx(
        {"LEEP": nce(predicted, labels), "NCE": nce(predicted, labels)}
    )


def test_answers_that_settle_the_labels_score_0_and_uniform_ones_the_entropy_of_the_labels() -> None:
    labels = torch.arange(12) % 3
    assert leep(torch.eye(3)[labels], labels) == pytest.approx(0.0)
    assert leep(torch.full((12, 1000), 1e-3), labels) == pytest.approx(-math.log(3))


# --- what must not change them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.parametrize(("n", "d"), [(80, 12), (30, 50)])
def test_rotating_and_scaling_all_features_changes_nothing(name: str, n: int, d: int) -> None:
    x, y = mixed(n, d)
    turned = 30 * x.double() @ rotation(d)
    assert TURNED[name](turned, y) == pytest.approx(TURNED[name](x, y), rel=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_numbering_of_classes_and_absent_ones_change_nothing(name: str) -> None:
    x, y = mixed(60, 10)
    renamed = torch.tensor([40, 7, 19])[y]
    order = torch.randperm(60, generator=torch_stream(0, "order"))
    assert EVERY[name](x[order], renamed[order]) == pytest.approx(EVERY[name](x, y), rel=1e-7)


@pytest.mark.parametrize("name", ["LogME", "TransRate", "ridge probe"])
def test_features_that_are_constant_add_nothing(name: str) -> None:
    x, y = mixed(40, 13)
    wider = torch.cat([x, torch.zeros(40, 60)], dim=1)  # now more features than images: the other decomposition
    assert EVERY[name](wider, y) == pytest.approx(EVERY[name](x, y), rel=1e-7)


@pytest.mark.parametrize("n", [40, 300])
def test_together_they_are_what_they_are_alone(n: int) -> None:
    x, y = digits(n)
    assert feature_scores(x, y) == pytest.approx({name: score(x, y) for name, score in EVERY.items()})


# --- real features, and odd ones --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [50, 500])  # of 64 features
def test_real_labels_score_more_than_shuffled_ones(name: str, n: int) -> None:
    x, y = digits(n)
    real = EVERY[name](x, y)
    for path in range(5):
        shuffled = y[torch.randperm(n, generator=torch_stream(0, "shuffle", path))]
        assert real > EVERY[name](x, shuffled)


@pytest.mark.parametrize("name", EVERY)
def test_noise_in_the_features_lowers_every_score(name: str) -> None:
    x, y = digits(1700)  # TransRate of fewer images a class than features may rise with noise
    noise = torch.randn(x.shape, generator=torch_stream(0, "noise"))
    scores = [EVERY[name](x + level * noise, y) for level in (0.0, 10.0, 100.0)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(12, 4), torch.full((12, 4), 0.1), torch.eye(3)[torch.arange(12) % 3], torch.full((12, 1), 3e30)],
    ids=["zeros", "constant", "the labels themselves", "huge"],
)
def test_odd_features_give_finite_scores(x: Tensor) -> None:
    y = torch.arange(12) % 3
    assert all(math.isfinite(value) for value in feature_scores(x, y).values())


@pytest.mark.parametrize("x", [torch.zeros(12, 4), torch.full((12, 4), 0.1)])
def test_features_that_do_not_vary_tell_no_classes_apart(x: Tensor) -> None:
    y = torch.arange(12) % 3
    assert h_score(x, y) == transrate(x, y) == 0.0
    assert ridge_probe(x, y) <= 1 / 3


def test_one_class_or_classes_of_one_image_are_no_error() -> None:
    x, _ = digits(10)
    alone = feature_scores(x, torch.arange(10))
    assert math.isnan(alone.pop(PROBE))  # the class of the image left out is unknown
    single = feature_scores(x, torch.zeros(10, dtype=torch.int64))
    assert all(math.isfinite(value) for value in [*alone.values(), *single.values()])
    assert single["H-score"] == pytest.approx(0.0, abs=1e-12)


def test_features_that_are_not_finite_are_refused() -> None:
    x, y = digits(20)
    x[3, 5] = torch.nan
    for score in (*EVERY.values(), feature_scores):
        with pytest.raises(Diverged, match="NaN or infinity"):
            score(x, y)
