"""Laws of the group lasso over features, and of the selection made from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from regraft.errors import Diverged
from regraft.learn.head2toe import SelectedFeatures, group_lasso, normalise_blocks, relevance, select, violations
from regraft.seeding import torch_stream

CLASSES = 3
PLANTED = [4, 11, 17]


def planted(n: int = 150, d: int = 30) -> tuple[Tensor, Tensor]:
    """Features (n, d) of very different scale and offset, of which three tell the classes apart."""
    generator = torch_stream(0, "planted")
    labels = torch.arange(n) % CLASSES
    x = torch.randn(n, d, generator=generator)
    x[:, PLANTED] += 1.5 * torch.eye(CLASSES)[labels]
    scale = 10 ** torch.linspace(-3, 3, d)[torch.randperm(d, generator=generator)]
    return (x + 2) * scale, labels


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)


def objective(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, lasso: float) -> float:
    """In float64, features standardised."""
    logits = standardised(x.double()) @ weight.double() + bias.double()
    return float(cross_entropy(logits, labels) + lasso * weight.double().norm(dim=1).sum())


@pytest.mark.parametrize("lasso", [0.2, 0.03, 0.001])
@pytest.mark.parametrize(("n", "d"), [(150, 30), (60, 900)])
def test_the_optimality_conditions_hold(lasso: float, n: int, d: int) -> None:
    x, labels = planted(n, d)
    found = group_lasso(x, labels, classes=CLASSES, lasso=lasso)
    assert found.converged
    z = standardised(x.double())
    targets = one_hot(labels, CLASSES).double()
    residuals = ((z @ found.weight.double() + found.bias).softmax(1) - targets) / n
    longest = (z.T @ (targets.mean(0) - targets) / n).norm(dim=1).max()
    wrong = violations(found.weight.double(), z.T @ residuals, lasso) / longest
    assert wrong.max() < 2e-4
    assert residuals.sum(0).abs().max() < 2e-4


def test_no_other_solver_finds_less() -> None:
    """scipy on the same objective, the square root of each group's length smoothed by next to nothing."""
    x, labels = planted(n=90, d=30)
    x = x[:, 4:12]
    z, targets = standardised(x.double()), labels
    lasso = 0.02
    found = group_lasso(x, labels, classes=CLASSES, lasso=lasso, tolerance=1e-6)

    def value_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).view(9, CLASSES).requires_grad_()
        lengths = (parameters[:8].square().sum(1) + 1e-12).sqrt()
        value = cross_entropy(z @ parameters[:8] + parameters[8], targets) + lasso * lengths.sum()
        (slope,) = torch.autograd.grad(value, parameters)
        return float(value.detach()), slope.flatten().numpy()

    options = {"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-9}
    peer = minimize(value_and_slope, np.zeros(27), jac=True, method="L-BFGS-B", options=options)  # type: ignore[call-overload]
    ours = objective(x, labels, found.weight, found.bias, lasso)
    assert ours == pytest.approx(float(peer.fun), abs=1e-5)
    weight = torch.from_numpy(peer.x).view(9, CLASSES)[:8]
    assert torch.allclose(found.weight.double().norm(dim=1), weight.norm(dim=1), atol=2e-3)


def test_planted_features_are_found_among_noise_whatever_their_scale() -> None:
    x, labels = planted(n=150, d=600)
    scores = relevance(x, labels, classes=CLASSES, lasso=0.05)
    assert scores.shape == (600,)
    assert sorted(scores.topk(3).indices.tolist()) == PLANTED
    assert (scores > 0).sum() < 60


def test_a_larger_penalty_leaves_fewer_features_and_a_large_one_none() -> None:
    x, labels = planted()
    counts = [
        int((relevance(x, labels, classes=CLASSES, lasso=lasso) > 0).sum()) for lasso in (0.0, 0.003, 0.03, 0.1, 10.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (30, 0)


def test_permuted_features_have_permuted_scores() -> None:
    x, labels = planted(n=60, d=400)
    order = torch.randperm(400, generator=torch_stream(0, "permutation"))
    scores = relevance(x, labels, classes=CLASSES, lasso=0.03)
    permuted = relevance(x[:, order], labels, classes=CLASSES, lasso=0.03)
    assert torch.allclose(permuted, scores[order], atol=2e-3)


def test_scale_and_offset_of_a_feature_play_no_part() -> None:
    x, labels = planted()
    scores = relevance(x, labels, classes=CLASSES, lasso=0.02)
    assert torch.allclose(relevance(x * 7 - 100, labels, classes=CLASSES, lasso=0.02), scores, atol=2e-3)


def test_constant_features_and_absent_classes_do_no_harm() -> None:
    x, labels = planted()
    x[:, 0], x[:, 1] = 0.1, 0.0
    scores = relevance(x, labels, classes=CLASSES + 2, lasso=0.001)
    assert torch.isfinite(scores).all()
    assert scores[0] == scores[1] == 0
    constant = relevance(torch.full((6, 4), 0.3), labels[:6], classes=CLASSES, lasso=0.001)
    assert torch.equal(constant, torch.zeros(4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named(value: float) -> None:
    x, labels = planted()
    x[3, 5] = value
    with pytest.raises(Diverged, match="NaN or infinity"):
        relevance(x, labels, classes=CLASSES, lasso=0.01)


def test_a_search_cut_short_says_so() -> None:
    x, labels = planted()
    found = group_lasso(x, labels, classes=CLASSES, lasso=0.001, max_iterations=3)
    assert not found.converged
    assert found.iterations == 3
    assert torch.isfinite(found.weight).all()


def test_separable_images_without_penalty_come_to_an_end() -> None:
    x, labels = planted(n=30, d=50)
    found = group_lasso(x, labels, classes=CLASSES, lasso=0.0, tolerance=1e-2)
    assert found.converged
    assert (found.weight.norm(dim=1) > 0).all()


def test_the_best_share_is_kept_in_order() -> None:
    scores = torch.tensor([0.1, 0.9, 0.0, 0.5, 0.5, 0.0, 0.5, 0.2, 0.0, 0.0])
    assert select(scores, 0.3).tolist() == [1, 3, 4]  # of equals the first
    assert select(scores, 0.01).tolist() == [1]
    assert select(scores, 1.0).tolist() == [0, 1, 3, 4, 6, 7]  # not those without relevance
    assert select(torch.zeros(10), 0.2).tolist() == [0, 1]  # unless there is nothing else
    assert select(torch.ones(10), 1.0).tolist() == list(range(10))


def test_every_block_has_unit_vectors_image_by_image() -> None:
    generator = torch_stream(0, "blocks")
    blocks = [1e4 * torch.rand(5, 3, generator=generator), 1e-4 * torch.rand(5, 8, generator=generator)]
    blocks[0][2] = 0
    whole = normalise_blocks(blocks)
    for given, block in zip(blocks, whole, strict=True):
        assert torch.allclose(block.norm(dim=1), (given.norm(dim=1) > 0).float(), atol=1e-6)
    single = normalise_blocks([block[3:4] for block in blocks])
    assert all(torch.equal(one[0], block[3]) for one, block in zip(single, whole, strict=True))


def test_selected_features_are_the_selected_columns_and_travel_with_the_head() -> None:
    generator = torch_stream(0, "blocks")
    blocks = [torch.rand(5, width, generator=generator) for width in (3, 8, 2)]
    indices = torch.tensor([0, 5, 12])
    head = nn.Sequential(SelectedFeatures([3, 8, 2], indices), nn.Linear(3, CLASSES))
    raw = torch.cat(blocks, dim=1)
    assert torch.equal(head[0](raw), torch.cat(normalise_blocks(blocks), dim=1)[:, indices])
    copy = nn.Sequential(SelectedFeatures([3, 8, 2], torch.arange(3)), nn.Linear(3, CLASSES))
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy(raw), head(raw))
    assert not copy[0](raw).requires_grad
