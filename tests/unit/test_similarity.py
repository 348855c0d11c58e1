"""Laws of CKA and of how far a network moved."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from regraft.errors import Diverged, TooFewImages
from regraft.learn.similarity import (
    REST,
    Moved,
    Similarity,
    cka_matrix,
    drift,
    linear_cka,
    minibatch_cka,
    weight_change,
)
from regraft.networks import body_for_cuts, build
from regraft.seeding import torch_stream


def digits(n: int = 120) -> Tensor:
    """Pixels (n, 64)."""
    return torch.from_numpy(load_digits().data[:n]).float()


def noise(n: int, d: int, path: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch_stream(0, "noise", path))


def rotated(x: Tensor) -> Tensor:
    turn: Tensor = torch.linalg.qr(noise(x.shape[1], x.shape[1], 9).double())[0]
    return x.double() @ turn


def unbiased(a: Tensor, b: Tensor) -> float:
    """Song et al.'s estimate, written with sums over images that are all different from one another."""
    k, m = ((x.double() @ x.double().T).fill_diagonal_(0) for x in (a, b))
    n = len(k)
    pairs = (k * m).sum() / (n * (n - 1))
    ends = torch.einsum("ij,iq->", k, m) - (k * m).sum()  # i, j, q, all different
    shared = ends / (n * (n - 1) * (n - 2))
    apart = k.sum() * m.sum() - 4 * torch.einsum("ij,iq->", k, m) + 2 * (k * m).sum()
    return float(pairs - 2 * shared + apart / (n * (n - 1) * (n - 2) * (n - 3)))


def test_plain_cka_is_that_of_the_features_own_products() -> None:
    a, b = digits().double(), noise(120, 7).double()
    a, b = a - a.mean(0), b - b.mean(0)
    expected = (b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(a.float(), b.float()) == pytest.approx(float(expected), rel=1e-4)


def test_one_batch_gives_the_unbiased_estimate() -> None:
    a, b = digits(40), digits(40).relu().cos() + noise(40, 64)
    expected = unbiased(a, b) / math.sqrt(unbiased(a, a) * unbiased(b, b))
    assert minibatch_cka(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cka", [linear_cka, minibatch_cka])
def test_rotating_scaling_and_shifting_change_nothing(cka: object) -> None:
    assert callable(cka)
    a, b = digits(), digits()[:, :20].sin()
    assert cka(a, a) == pytest.approx(1.0)
    assert cka(a, 5 * rotated(a) + 3) == pytest.approx(1.0)
    assert cka(a, b) == pytest.approx(cka(rotated(a), 0.01 * rotated(b) - 1), rel=1e-6)
    assert cka(a, b) == pytest.approx(cka(b, a))
    assert cka(a, b) < 0.9


def test_unrelated_wide_features_are_alike_to_the_plain_estimate_only() -> None:
    a, b = noise(50, 2000, 1), noise(50, 2000, 2)
    assert linear_cka(a, b) > 0.9
    assert abs(minibatch_cka(a, b)) < 0.1


@pytest.mark.parametrize("by_class", [False, True])
def test_the_size_of_batches_hardly_matters(by_class: bool) -> None:
    a = digits(1024)
    if by_class:
        a = a[torch.from_numpy(load_digits().target[:1024]).argsort()]
    b = a[:, :40].square()
    whole = minibatch_cka(a, b, batch_size=1024)
    for size in (32, 100, 256):
        assert minibatch_cka(a, b, batch_size=size) == pytest.approx(whole, abs=0.02)


def test_a_matrix_holds_every_pair_and_may_be_gathered_batch_by_batch() -> None:
    a, b = [digits(), noise(120, 5), digits().cos()], [noise(120, 30), digits()]
    matrix = cka_matrix(a, b, batch_size=50)
    assert matrix.shape == (3, 2)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            assert float(matrix[i, j]) == pytest.approx(minibatch_cka(x, y, batch_size=50))
    order = torch.randperm(120, generator=torch_stream(0, "cka"))
    gathered = Similarity()
    for rows in torch.split(order, 50):
        gathered.add([x[rows] for x in a], [y[rows] for y in b])
    assert torch.equal(gathered.matrix(), matrix)


def test_features_that_do_not_vary_have_no_similarity() -> None:
    constant = torch.full((20, 3), 0.1)
    assert math.isnan(linear_cka(constant, digits(20)))
    assert math.isnan(minibatch_cka(constant, digits(20)))


def test_a_few_images_left_over_are_left_out_and_too_few_refused() -> None:
    x, y = digits(35), digits(35).cos()
    order = torch.randperm(35, generator=torch_stream(0, "cka"))[:32]  # batches of 16, 16, and the 3 left over
    gathered = Similarity()
    for rows in torch.split(order, 16):
        gathered.add([x[rows]], [y[rows]])
    assert minibatch_cka(x, y, batch_size=16) == float(gathered.matrix())
    with pytest.raises(TooFewImages, match="at least 4"):
        minibatch_cka(x[:3], y[:3])


def test_other_images_and_broken_features_are_refused() -> None:
    for cka in (linear_cka, minibatch_cka):
        with pytest.raises(ValueError, match="same images"):
            cka(digits(10), digits(11))
        with pytest.raises(Diverged):
            cka(digits(10), digits(10) / 0)


# --- how far a network moved ------------------------------------------------------------------------------------


def test_weights_move_relative_to_where_they_began() -> None:
    before = {
        "layer1.conv.weight": torch.tensor([3.0, 4.0]), "layer1.bn.running_mean": torch.tensor([1.0]),
        "layer1.bn.num_batches_tracked": torch.tensor(3), "layer10.weight": torch.tensor([2.0]),
        "fc.weight": torch.zeros(2), "other.weight": torch.zeros(3),
    }  # fmt: skip
    after = {
        "layer1.conv.weight": torch.tensor([3.0, 5.0]), "layer1.bn.running_mean": torch.tensor([1.5]),
        "layer1.bn.num_batches_tracked": torch.tensor(9), "layer10.weight": torch.tensor([2.0]),
        "fc.weight": torch.ones(2), "other.weight": torch.zeros(4),
    }  # fmt: skip
    assert weight_change(before, after, blocks=["layer1", "layer10", "absent"]) == [
        Moved("layer1", 0.2, 0.5),
        Moved("layer10", 0.0, None),
        Moved(REST, math.inf, None),
    ]


def test_tensors_belong_to_the_innermost_block() -> None:
    before = {"layer1.weight": torch.ones(1), "layer1.0.weight": torch.ones(1)}
    after = {"layer1.weight": torch.ones(1), "layer1.0.weight": 2 * torch.ones(1)}
    outer, inner = weight_change(before, after, blocks=["layer1", "layer1.0"])
    assert (outer.weights, inner.weights) == (0.0, 1.0)


def test_blocks_drift_from_the_first_that_was_changed_on() -> None:
    cuts = ["layer1", "layer2", "layer3", "layer4"]
    network = build("timm/test_resnet", seed=0).eval()
    images = torch.rand(48, 3, 32, 32, generator=torch_stream(0, "images"))
    body = body_for_cuts(network, cuts, pooled=True)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    with torch.inference_mode():
        first = body(images)
        for name, value in body.state_dict().items():
            if name.startswith("layer3") and value.ndim == 4:
                value += 0.1 * torch.randn(value.shape, generator=torch_stream(0, "tuned"))
        second = body(images)
    found = drift(first, second)
    assert list(found) == list(first)
    assert [found[cut] for cut in list(first)[:2]] == pytest.approx([1.0, 1.0])
    assert all(found[cut] < 0.999 for cut in list(first)[2:])
    moved = {one.block: one.weights for one in weight_change(before, body.state_dict(), blocks=cuts)}
    assert moved["layer1"] == moved["layer2"] == moved["layer4"] == 0.0
    assert moved["layer3"] is not None and moved["layer3"] > 0.01
