"""Laws of ridge and logistic heads: scikit-learn's optimum, for each penalty together as alone, and no NaN ever."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor
from torch.nn.functional import cross_entropy

from regraft.errors import Diverged
from regraft.learn import logistic as logistic_module
from regraft.learn import solve
from regraft.learn.lbfgs import LEAST_LOSS
from regraft.learn.logistic import TOLERANCE, logistic, logistic_each
from regraft.learn.ridge import ridge, ridge_each
from regraft.learn.solve import Solved, scaling_of
from regraft.seeding import torch_stream

PENALTIES = [1e-4, 1e-2, 1.0, 10.0]
Labelled = tuple[Tensor, Tensor]


def digits(n: int) -> Labelled:
    """Pixels (n, 64), a few of them constant, and labels."""
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x[:n]).float(), torch.from_numpy(y[:n])


def wine() -> Labelled:
    """Features (178, 13) of very different scales, and labels."""
    x, y = load_wine(return_X_y=True)
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def mixed(n: int, d: int, classes: int) -> Labelled:
    """Correlated, positive features with some signal, as networks give."""
    rng = torch_stream(0, "mixed")
    y = torch.arange(n) % classes
    x = torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=rng) / d**0.5
    x += torch.randn(classes, d, generator=rng)[y]
    return x.relu(), y


DATA: dict[str, Callable[[], Labelled]] = {
    "digits": lambda: digits(500),
    "wine": wine,
    "fewer images than features": lambda: digits(40),
    "many more features": lambda: mixed(50, 400, 5),
}


def standardised(x: Tensor) -> Tensor:
    return scaling_of(x)(x)


def loss(found: Solved, x: Tensor, y: Tensor, penalty: float) -> float:
    """What `logistic` minimises, in float64."""
    scaling = scaling_of(x)
    logits = x.double() @ found.weight.double().T + found.bias.double()
    varying = torch.isfinite(scaling.scale)
    weight = torch.where(varying, found.weight.double() * scaling.scale, 0.0)  # for standardised features
    return float(cross_entropy(logits, y) + 0.5 * penalty * weight.square().sum())


def peer(x: Tensor, y: Tensor, penalty: float) -> Solved:
    """scikit-learn's optimum, for features as they came."""
    model = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-9, max_iter=50_000).fit(standardised(x).numpy(), y)
    weight, bias = scaling_of(x).fold(torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_))
    return Solved(weight, bias, True, 0)


# --- logistic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_logistic_losses_are_scikit_learns(name: str) -> None:
    x, y = DATA[name]()
    found = logistic(x, y, classes=int(y.max()) + 1, penalties=PENALTIES, max_iterations=1000)
    for solved, penalty in zip(found, PENALTIES, strict=True):
        optimum = loss(peer(x, y, penalty), x, y, penalty)
        assert solved.converged
        # Never below the optimum, but for rounding; at most the tolerance of it above
        assert -1e-5 * optimum < loss(solved, x, y, penalty) - optimum < TOLERANCE * max(optimum, LEAST_LOSS)


def test_a_tight_tolerance_gives_scikit_learns_probabilities() -> None:
    x, y = wine()
    found = logistic(x, y, classes=3, penalties=[0.1], max_iterations=1000, tolerance=1e-7)[0]
    probabilities = [torch.softmax(x @ s.weight.T + s.bias, 1) for s in (found, peer(x, y, 0.1))]
    assert (probabilities[0] - probabilities[1]).abs().max() < 1e-3


@pytest.mark.parametrize("name", DATA)
def test_penalties_solved_together_reach_the_losses_of_each_alone(name: str) -> None:
    x, y = DATA[name]()
    classes = int(y.max()) + 1
    together = logistic(x, y, classes=classes, penalties=PENALTIES, max_iterations=1000)
    for solved, penalty in zip(together, PENALTIES, strict=True):
        alone = logistic(x, y, classes=classes, penalties=[penalty], max_iterations=1000)[0]
        assert loss(solved, x, y, penalty) == pytest.approx(loss(alone, x, y, penalty), rel=TOLERANCE)


def test_how_many_images_or_logits_are_held_at_once_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits(200)
    whole = logistic(x, y, classes=10, penalties=PENALTIES, max_iterations=1000)
    ridges = ridge(x, y, classes=10, penalties=PENALTIES)
    wide = ridge(x[:20], y[:20], classes=10, penalties=PENALTIES)
    monkeypatch.setattr(solve, "CHUNK_VALUES", 64 * 7)
    monkeypatch.setattr(logistic_module, "CHUNK_LOGITS", 1)
    for a, b, penalty in zip(
        whole, logistic(x, y, classes=10, penalties=PENALTIES, max_iterations=1000), PENALTIES, strict=True
    ):
        assert loss(a, x, y, penalty) == pytest.approx(loss(b, x, y, penalty), rel=1e-4)
    for a, b in zip(ridges, ridge(x, y, classes=10, penalties=PENALTIES), strict=True):
        assert torch.allclose(a.weight, b.weight, atol=1e-7)
    for a, b in zip(wide, ridge(x[:20], y[:20], classes=10, penalties=PENALTIES), strict=True):
        assert torch.allclose(a.weight, b.weight, atol=1e-7)


def test_the_least_penalties_are_solved_in_some_dozens_of_iterations() -> None:
    """Where float32 resolves no more, the search ends instead of going round in rounding errors."""
    x, y = wine()
    for solved in logistic(x, y, classes=3, penalties=[1e-8, 1e-12, 0.0], max_iterations=10_000):
        assert solved.iterations < 300
        assert loss(solved, x, y, 0.0) < 1e-4


def test_too_few_iterations_are_owned_up_to() -> None:
    x, y = digits(200)
    found = logistic(x, y, classes=10, penalties=[1e-4, 10.0], max_iterations=5)
    assert (found[0].converged, found[0].iterations) == (False, 5)
    assert found[1].converged
    assert found[1].iterations <= 5


def test_separable_classes_without_penalty_end_at_a_loss_near_0() -> None:
    x, y = mixed(30, 40, 3)
    found = logistic(x, y, classes=3, penalties=[0.0], max_iterations=1000)[0]
    assert found.converged
    assert loss(found, x, y, 0.0) < 1e-4


def test_the_scale_of_the_features_plays_no_part() -> None:
    x, y = digits(200)
    scaled = x * 10.0 ** torch.linspace(-15, 15, 64)
    found = logistic(x, y, classes=10, penalties=PENALTIES, max_iterations=1000)
    others = logistic(scaled, y, classes=10, penalties=PENALTIES, max_iterations=1000)
    for a, b, penalty in zip(found, others, PENALTIES, strict=True):
        assert loss(a, x, y, penalty) == pytest.approx(loss(b, scaled, y, penalty), rel=TOLERANCE)


# --- ridge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_ridge_heads_are_scikit_learns(name: str) -> None:
    x, y = DATA[name]()
    targets = np.eye(int(y.max()) + 1)[y]
    for penalty, found in zip(PENALTIES, ridge(x, y, classes=targets.shape[1], penalties=PENALTIES), strict=True):
        model = Ridge(alpha=len(x) * penalty).fit(standardised(x).numpy(), targets)
        weight, bias = scaling_of(x).fold(torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_))
        assert torch.allclose(found.weight, weight, atol=1e-6)
        assert torch.allclose(found.bias, bias, atol=1e-5)
        assert found.converged
        assert found.iterations == 0


@pytest.mark.parametrize("name", DATA)
def test_ridge_without_penalty_is_the_solution_of_least_norm(name: str) -> None:
    x, y = DATA[name]()
    targets = np.eye(int(y.max()) + 1)[y]
    least = np.linalg.lstsq(standardised(x).numpy(), targets - targets.mean(0), rcond=1e-8)[0]
    found = ridge(x, y, classes=targets.shape[1], penalties=[0.0])[0]
    expected, _ = scaling_of(x).fold(torch.from_numpy(least.T), torch.zeros(targets.shape[1]))
    assert torch.allclose(found.weight, expected, atol=1e-5)


@pytest.mark.parametrize("name", DATA)
def test_ridge_penalties_together_are_bit_equal_to_each_alone(name: str) -> None:
    x, y = DATA[name]()
    classes = int(y.max()) + 1
    for penalty, found in zip(
        [0.0, *PENALTIES], ridge(x, y, classes=classes, penalties=[0.0, *PENALTIES]), strict=True
    ):
        alone = ridge(x, y, classes=classes, penalties=[penalty])[0]
        assert torch.equal(found.weight, alone.weight)
        assert torch.equal(found.bias, alone.bias)


# --- episodes ---------------------------------------------------------------------------------------------------


def episodes(count: int, images: int, d: int, classes: int) -> Labelled:
    """(count, images, d), (count, images)."""
    x, y = mixed(count * images, d, classes)
    return x.view(count, images, d), y.view(count, images)


@pytest.mark.parametrize("shape", [(7, 25, 60), (7, 25, 8), (3, 5, 512)])
@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_episodes_solved_together_are_scikit_learns_on_features_as_they_come(
    shape: tuple[int, int, int], penalty: float
) -> None:
    x, y = episodes(*shape, classes=5)
    weights, biases = ridge_each(x, y, classes=5, penalty=penalty)
    logistic_weights, logistic_biases = logistic_each(x, y, classes=5, penalty=penalty, max_iterations=1000)
    for i, features in enumerate(x.double().numpy()):
        alpha = shape[1] * penalty
        model = Ridge(alpha=alpha).fit(features, np.eye(5)[y[i]])
        assert torch.allclose(weights[i].double(), torch.from_numpy(model.coef_), atol=1e-5)
        assert torch.allclose(biases[i].double(), torch.from_numpy(model.intercept_), atol=1e-4)
        peers = LogisticRegression(C=1 / alpha, tol=1e-9, max_iter=50_000).fit(features, y[i])
        found = logistic_weights[i].double()
        logits = x[i].double() @ found.T + logistic_biases[i].double()
        ours = cross_entropy(logits, y[i]) + 0.5 * penalty * found.square().sum()
        probabilities = torch.from_numpy(peers.predict_proba(features))
        optimum = -probabilities[range(shape[1]), y[i]].log().mean() + 0.5 * penalty * (peers.coef_**2).sum()
        assert float(ours) == pytest.approx(float(optimum), rel=1e-5, abs=1e-8)


def test_episodes_solved_together_are_those_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = episodes(6, 20, 32, classes=4)
    solvers: list[Callable[[Tensor, Tensor], Labelled]] = [
        lambda x, y: ridge_each(x, y, classes=4, penalty=0.01),
        lambda x, y: logistic_each(x, y, classes=4, penalty=0.01, max_iterations=500),
    ]
    for each in solvers:
        weights, biases = each(x, y)
        for i in range(6):
            weight, bias = each(x[i : i + 1], y[i : i + 1])
            assert torch.allclose(weights[i], weight[0], atol=1e-3)
            assert torch.allclose(biases[i], bias[0], atol=1e-3)
        with monkeypatch.context() as patch:
            patch.setattr(solve, "CHUNK_VALUES", 1)
            assert torch.allclose(each(x, y)[0], weights, atol=1e-3)


# --- odd features -----------------------------------------------------------------------------------------------

ODD: dict[str, Callable[[], Labelled]] = {
    "one image": lambda: (torch.rand(1, 5, generator=torch_stream(0, "x")), torch.tensor([1])),
    "all features constant": lambda: (torch.full((6, 4), 7.7), torch.arange(6) % 3),
    "all features zero": lambda: (torch.zeros(6, 4), torch.arange(6) % 3),
    "some constant": lambda: (torch.cat([mixed(30, 3, 3)[0], torch.full((30, 2), 0.1)], 1), torch.arange(30) % 3),
    "every image twice": lambda: (mixed(10, 30, 3)[0].repeat(2, 1), mixed(10, 30, 3)[1].repeat(2)),
    "features twice": lambda: (mixed(40, 5, 3)[0].repeat(1, 2), mixed(40, 5, 3)[1]),
    "the same images under two labels": lambda: (mixed(10, 5, 3)[0].repeat(2, 1), torch.arange(20) // 10),
    "huge": lambda: (mixed(40, 5, 3)[0] * 1e30, mixed(40, 5, 3)[1]),
    "tiny": lambda: (mixed(40, 5, 3)[0] * 1e-25, mixed(40, 5, 3)[1]),
    "far from 0": lambda: (mixed(40, 5, 3)[0] + 1e6, mixed(40, 5, 3)[1]),
    "one class absent": lambda: (mixed(40, 5, 2)[0], mixed(40, 5, 2)[1] * 2),
    "one class only": lambda: (mixed(40, 5, 2)[0], torch.zeros(40, dtype=torch.int64)),
    "half precision": lambda: (mixed(40, 5, 3)[0].half(), mixed(40, 5, 3)[1]),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("penalty", [0.0, 1e-3, 10.0])
def test_odd_features_give_finite_heads(name: str, penalty: float) -> None:
    x, y = ODD[name]()
    heads = [
        *ridge(x, y, classes=3, penalties=[penalty]),
        *logistic(x, y, classes=3, penalties=[penalty], max_iterations=300),
    ]
    pairs = [(head.weight, head.bias) for head in heads]
    pairs.append(ridge_each(x[None], y[None], classes=3, penalty=penalty))
    pairs.append(logistic_each(x[None], y[None], classes=3, penalty=penalty, max_iterations=300))
    for weight, bias in pairs:
        assert weight.dtype == bias.dtype == torch.float32
        assert torch.isfinite(weight).all()
        assert torch.isfinite(bias).all()
    assert heads[1].converged or penalty == 0


def test_features_without_information_give_each_class_its_share() -> None:
    y = torch.tensor([0, 0, 0, 1])
    found = logistic(torch.ones(4, 2), y, classes=2, penalties=[0.1], max_iterations=10)[0]
    assert torch.allclose(found.bias.softmax(0), torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    x, y = mixed(12, 4, 3)
    x[5, 2] = bad
    solvers: list[Callable[[], object]] = [
        lambda: ridge(x, y, classes=3, penalties=[0.1]),
        lambda: logistic(x, y, classes=3, penalties=[0.1], max_iterations=10),
        lambda: ridge_each(x[None], y[None], classes=3, penalty=0.1),
        lambda: logistic_each(x[None], y[None], classes=3, penalty=0.1, max_iterations=10),
    ]
    for solver in solvers:
        with pytest.raises(Diverged, match="NaN or infinity"):
            solver()
