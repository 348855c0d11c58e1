"""Laws of linear heads trained together: each is what `fit` makes of it alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regraft.errors import Diverged
from regraft.learn.batches import FeatureBatches
from regraft.learn.fit import Fit, fit
from regraft.learn.together import fit_together
from regraft.seeding import stream, torch_stream
from regraft.spec import Recipe

CPU = torch.device("cpu")
N, D, CLASSES = 130, 7, 3

SHARED: dict[str, Any] = {"epochs": 4, "batch_size": 32}
RECIPES = {
    "sgd": Recipe(**SHARED, lr=0.3),
    "sgd without momentum": Recipe(**SHARED, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant"),
    "adamw": Recipe(**SHARED, optimizer="adamw", lr=0.05, weight_decay=0.1, schedule="one-cycle"),
    "smoothed": Recipe(**SHARED, lr=0.2, label_smoothing=0.2, warmup=0.3),
    "best epoch": Recipe(**SHARED, lr=3.0, momentum=0.5, weight_decay=0.05, keep="best"),
    "another adamw": Recipe(**SHARED, optimizer="adamw", lr=0.5, label_smoothing=0.1, keep="best"),
}


def clouds(n: int, name: str, *, views: int = 0) -> tuple[Tensor, Tensor]:
    """Features of overlapping classes, standard normal around a corner for each; labels in turn."""
    generator = torch_stream(0, name)
    labels = torch.arange(n) % CLASSES
    x = torch.randn(*([views] if views else []), n, D, generator=generator)
    return x + 0.8 * torch.eye(CLASSES, D)[labels], labels


def starts(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch_stream(0, "start")
    return [
        (0.3 * torch.randn(CLASSES, D, generator=generator), 0.3 * torch.randn(CLASSES, generator=generator))
        for _ in range(count)
    ]


def alone(
    features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None, recipe: Recipe, start: Any
) -> Fit:
    model = nn.Linear(D, CLASSES)
    model.load_state_dict({"weight": start[0], "bias": start[1]})
    held_out = None if validation is None else FeatureBatches(validation[0], validation[1].numpy(), device=CPU)
    train = FeatureBatches(features, labels.numpy(), device=CPU)
    return fit(model, train, held_out, recipe, seed=5, device=CPU)


def assert_same(found: Fit | Diverged, expected: Fit) -> None:
    assert isinstance(found, Fit)
    assert (found.epoch, found.notes) == (expected.epoch, expected.notes)
    assert [list(entry) for entry in found.curve] == [list(entry) for entry in expected.curve]
    for entry, wanted in zip(found.curve, expected.curve, strict=True):
        assert entry == pytest.approx(wanted, abs=1e-5)
    assert found.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        assert torch.allclose(found.state[name], value, atol=1e-5), name


@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("watched", [True, False])
def test_each_head_is_the_one_that_fit_trains_alone(views: int, watched: bool) -> None:
    features, labels = clouds(N, "train", views=views)
    validation = clouds(40, "validation") if watched else None
    recipes, start = list(RECIPES.values()), starts(len(RECIPES))
    found = fit_together(features, labels, validation, recipes, start=start, seed=5, device=CPU)
    for result, recipe, first in zip(found, recipes, start, strict=True):
        assert_same(result, alone(features, labels, validation, recipe, first))


def test_together_equals_one_by_one_in_any_order() -> None:
    features, labels = clouds(N, "train")
    validation = clouds(40, "validation")
    recipes, start = list(RECIPES.values()), starts(len(RECIPES))
    common: dict[str, Any] = {"seed": 1, "device": CPU}
    found = fit_together(features, labels, validation, recipes, start=start, **common)
    backwards = fit_together(features, labels, validation, recipes[::-1], start=start[::-1], **common)[::-1]
    for i, result in enumerate(found):
        (single,) = fit_together(features, labels, validation, [recipes[i]], start=[start[i]], **common)
        assert isinstance(single, Fit)
        assert_same(result, single)
        assert_same(backwards[i], single)


def test_a_head_that_diverges_is_named_and_leaves_the_others_alone() -> None:
    features, labels = clouds(N, "train")
    wild = Recipe(**SHARED, lr=1000, momentum=0.99, weight_decay=1000, schedule="constant")
    recipes, start = [RECIPES["sgd"], wild, RECIPES["adamw"]], starts(3)
    recipes = [r.model_copy(update={"epochs": 30}) for r in recipes]
    calm, diverged, other = fit_together(features, labels, None, recipes, start=start, seed=5, device=CPU)
    assert isinstance(diverged, Diverged)
    with pytest.raises(Diverged) as raised:
        alone(features, labels, None, recipes[1], start[1])
    assert str(diverged) == str(raised.value)
    assert_same(calm, alone(features, labels, None, recipes[0], start[0]))
    assert_same(other, alone(features, labels, None, recipes[2], start[2]))


def test_nan_stays_within_its_head() -> None:
    features, labels = clouds(N, "train")
    start = starts(2)
    start[0] = (torch.full((CLASSES, D), math.nan), torch.zeros(CLASSES))
    recipes = [RECIPES["sgd"], RECIPES["smoothed"]]
    broken, whole = fit_together(features, labels, None, recipes, start=start, seed=5, device=CPU)
    assert isinstance(broken, Diverged)
    assert "training loss became nan in epoch 1" in str(broken)
    assert_same(whole, alone(features, labels, None, recipes[1], start[1]))


def test_a_validation_loss_that_is_not_finite_is_named() -> None:
    features, labels = clouds(N, "train")
    validation = (torch.full((4, D), math.inf), torch.zeros(4, dtype=torch.long))
    (found,) = fit_together(
        features, labels, validation, [RECIPES["sgd"]], start=starts(1), seed=5, device=CPU
    )  # fmt: skip
    assert isinstance(found, Diverged)
    assert "validation loss" in str(found)


def test_every_image_shows_the_view_drawn_for_it() -> None:
    _, labels = clouds(N, "train")
    features = torch.arange(4.0)[:, None, None].expand(4, N, D)  # a view's feature is its number
    recipe = Recipe(epochs=1, batch_size=N, lr=1.0, momentum=0.0, weight_decay=0.0)
    zero = torch.zeros(CLASSES, D), torch.zeros(CLASSES)
    (found,) = fit_together(features, labels, None, [recipe], start=[zero], seed=5, device=CPU)
    shown = torch.randint(4, (N,), generator=torch_stream(5, "augment", 0)).float()
    order = stream(5, "order", 0).permutation(N)
    step = -(1 / CLASSES - torch.eye(CLASSES)[labels[order]]).T @ shown / N  # (classes,)
    assert isinstance(found, Fit)
    assert torch.allclose(found.state["weight"], step[:, None].expand(CLASSES, D), atol=1e-6)


def test_nothing_given_is_changed_and_no_global_generator_used() -> None:
    features, labels = clouds(N, "train", views=2)
    start = starts(2)
    given = [features, labels, *(tensor for pair in start for tensor in pair)]
    before = [tensor.clone() for tensor in given]
    state = torch.random.get_rng_state()
    fit_together(
        features, labels, None, [RECIPES["sgd"], RECIPES["adamw"]], start=start, seed=0, device=CPU
    )  # fmt: skip
    assert all(torch.equal(tensor, old) for tensor, old in zip(given, before, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_call_gives_the_same_bits_and_a_state_that_a_layer_can_train_on_from() -> None:
    features, labels = clouds(N, "train")
    recipes, start = [RECIPES["sgd"], RECIPES["best epoch"]], starts(2)
    validation = clouds(40, "validation")
    runs = [fit_together(features, labels, validation, recipes, start=start, seed=0, device=CPU) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert isinstance(a, Fit)
        assert isinstance(b, Fit)
        assert a.curve == b.curve
        assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)
        model = nn.Linear(D, CLASSES)
        model.load_state_dict(a.state)
        model(a.state["weight"] * 1.0).sum().backward()


def test_progress_goes_from_none_to_all() -> None:
    features, labels = clouds(N, "train")
    seen: list[tuple[float, str]] = []
    fit_together(
        features, labels, clouds(40, "validation"), [RECIPES["sgd"]] * 2, start=starts(2), seed=0, device=CPU,
        advance=lambda done, message: seen.append((done, message)),
    )  # fmt: skip
    shares = [done for done, _ in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert "epoch 4/4, 2 heads" in seen[-1][1]
