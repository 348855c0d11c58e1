"""Laws of single steps: decay outside the gradient, sharpness-aware steps, averaged weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.learn.optimizers import Average, climbed, make_optimizer
from regraft.networks import Trunk
from regraft.seeding import torch_stream
from regraft.spec import Recipe

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_stream(seed, "normal"))


def network(norm: Any = None) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        for seed, p in enumerate(model.parameters()):
            p.copy_(normal(*p.shape, seed=seed) / 4)
    return model


def backward(model: nn.Module) -> None:
    model.zero_grad()
    cross_entropy(model(normal(6, 3, 8, 8)), torch.arange(6) % 2).backward()  # type: ignore[no-untyped-call]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and torch.equal(torch.signbit(a[k]), torch.signbit(b[k])) for k in a
    )


# --- decay outside the gradient ---------------------------------------------------------------------------------


def test_sgdw_is_the_recursion_by_hand_and_decay_spares_vectors() -> None:
    recipe = Recipe(optimizer="sgdw", momentum=0.9, weight_decay=0.1)
    model = nn.Linear(5, 3)
    optimizer = make_optimizer(model, recipe, CPU)
    by_hand = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    speed = {name: torch.zeros_like(p) for name, p in by_hand.items()}
    for step in range(5):
        lr = 0.1 / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, p in model.named_parameters():
            p.grad = normal(*p.shape, seed=10 * step + p.ndim)
            gradient = p.grad.double()
            speed[name] = 0.9 * speed[name] + gradient
            decayed = by_hand[name] * (1 - lr * (0.1 if p.ndim > 1 else 0.0))
            by_hand[name] = decayed - lr * (gradient + 0.9 * speed[name])
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), by_hand[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "sgdw", "adamw"])
def test_without_a_gradient_decay_shrinks_matrices_and_leaves_vectors_bit_equal(optimizer: Any) -> None:
    model = network()
    before = state(model)
    backward(model)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.zero_()
    make_optimizer(model, Recipe(optimizer=optimizer, weight_decay=0.1, lr=0.1), CPU).step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (p.ndim <= 1)
        assert float(p.detach().norm()) <= float(before[name].norm())


def test_without_decay_sgdw_is_sgd_to_the_bit() -> None:
    models = network(), network()
    recipes = Recipe(optimizer="sgd", weight_decay=0.0), Recipe(optimizer="sgdw", weight_decay=0.0)
    for model, recipe in zip(models, recipes, strict=True):
        optimizer = make_optimizer(model, recipe, CPU)
        for _ in range(3):
            backward(model)
            optimizer.step()
    assert same_bits(state(models[0]), state(models[1]))


# --- sharpness-aware steps --------------------------------------------------------------------------------------


def test_a_climb_goes_the_radius_along_the_gradient_and_comes_back_to_the_bit() -> None:
    model = network()
    backward(model)
    before = state(model)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    old = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    with climbed(model, 0.3):
        step = nn.utils.parameters_to_vector(model.parameters()).detach() - old
    torch.testing.assert_close(step, 0.3 * gradient / gradient.norm(), rtol=1e-4, atol=1e-6)
    assert same_bits(state(model), before)


def test_a_climb_that_fails_comes_back_too() -> None:
    model = network()
    backward(model)
    before = state(model)
    with pytest.raises(torch.OutOfMemoryError), climbed(model, 0.3):
        raise torch.OutOfMemoryError
    assert same_bits(state(model), before)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_second_pass_leaves_the_statistics_of_batchnorm_alone(kind: Any, momentum: float | None) -> None:
    norm = kind(4)
    norm.momentum = momentum
    model = network(norm)
    backward(model)
    before = state(model)
    with climbed(model, 0.3):
        backward(model)
    assert same_bits(state(model), before)  # the number of batches too, by which momentum None averages
    backward(model)
    assert int(norm.num_batches_tracked) == 2  # the next first pass counts again


def test_a_climb_moves_nothing_that_has_no_gradient() -> None:
    model = nn.Sequential(Trunk(network()[:2], frozen=True), network()[2:])
    backward(model)
    before = state(model)
    with climbed(model, 0.3):
        during = state(model)
        backward(model)
    moved = {name for name in before if not torch.equal(before[name], during[name])}
    assert moved == {"1.3.weight", "1.3.bias"}
    assert same_bits(state(model), before)


# --- averaged weights -------------------------------------------------------------------------------------------


def test_an_average_is_the_recursion_by_hand_statistics_included() -> None:
    model = network()
    average = Average(model, 0.9)
    by_hand = {k: v.double() for k, v in state(model).items() if v.is_floating_point()}
    optimizer = make_optimizer(model, Recipe(lr=0.1), CPU)
    for step in range(100):
        backward(model)
        optimizer.step()
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        by_hand = {k: decay * v + (1 - decay) * model.state_dict()[k].double() for k, v in by_hand.items()}
    assert "1.running_var" in by_hand
    for name, value in by_hand.items():
        torch.testing.assert_close(average.state[name].double(), value, rtol=1e-4, atol=1e-5)


def test_a_lent_average_is_taken_back_to_the_bit() -> None:
    model = network()
    average = Average(model, 0.9)
    optimizer = make_optimizer(model, Recipe(lr=0.1), CPU)
    backward(model)
    optimizer.step()
    average.update(0)
    before = state(model)
    with average.lent():
        assert all(torch.equal(model.state_dict()[name], value) for name, value in average.state.items())
        assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert same_bits(state(model), before)


def test_nothing_of_a_frozen_trunk_is_averaged() -> None:
    """-0.0 would become 0.0, and the trunk's hash another one."""
    model = nn.Sequential(Trunk(network()[:2], frozen=True), network()[2:])
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[0].buffers()):
            if tensor.is_floating_point():
                tensor.view(-1)[0] = -0.0
    before = state(model)
    average = Average(model, 0.9)
    assert set(average.state) == {"1.3.weight", "1.3.bias"}
    average.update(100)
    with average.lent():
        assert same_bits(state(model), before)
