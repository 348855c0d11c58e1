"""Seeds stepped together are, up to rounding, each its training alone."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.errors import Diverged
from regraft.learn import seeds as seeds_module
from regraft.learn.batches import ImageBatches
from regraft.learn.fit import Fit, fit
from regraft.learn.seeds import fit_seeds, measured, pays, together
from regraft.seeding import stream
from regraft.spec import Augment, Preprocessing, Recipe

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SEEDS = (3, 4, 5)


def squares(n: int, seed: int) -> ImageBatches:
    """Two classes of 8 x 8 images: red and blue, with noise."""
    rng = stream(seed, "squares")
    labels = np.arange(n) % 2
    images = rng.integers(0, 120, (n, 8, 8, 3))
    images[labels == 0, :, :, 0] += 20
    images[labels == 1, :, :, 2] += 20
    return ImageBatches(images.astype(np.uint8), labels, PREPROCESSING, augmentation=Augment("crop-flip"), device=CPU)


def network(seed: int, *, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
        return nn.Sequential(*layers, nn.Dropout(dropout), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def jointly(recipe: Recipe, count: int = 3, **options: Any) -> list[Fit | Diverged]:
    seeds = SEEDS[:count]
    return fit_seeds(
        [network(seed, **options) for seed in seeds],
        [squares(50, seed) for seed in seeds],
        [squares(30, seed + 100) for seed in seeds],
        recipe, seeds, device=CPU,
    )  # fmt: skip


def alone(recipe: Recipe, seed: int, **options: Any) -> Fit:
    train, validation = squares(50, seed), squares(30, seed + 100)
    return fit(network(seed, **options), train, validation, recipe, seed=seed, device=CPU)


def assert_same(found: Fit | Diverged, expected: Fit) -> None:
    assert isinstance(found, Fit)
    assert found.epoch == expected.epoch
    assert [e["validation_accuracy"] for e in found.curve] == [e["validation_accuracy"] for e in expected.curve]
    for own, other in zip(found.curve, expected.curve, strict=True):
        assert own == pytest.approx(other, rel=1e-4)
    assert found.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        torch.testing.assert_close(found.state[name], value, rtol=1e-4, atol=1e-5, msg=name)


RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.01},
    "sgdw": {"optimizer": "sgdw", "lr": 0.05, "weight_decay": 0.1, "label_smoothing": 0.1, "schedule": "one-cycle"},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "test_flip": True, "warmup": 0.2},
    "best": {"lr": 0.1, "keep": "best", "patience": 2, "epochs": 8},
    "average": {"lr": 0.1, "ema": 0.9, "keep": "best"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_seed_is_what_it_is_alone(name: str) -> None:
    recipe = Recipe(**{"epochs": 4, "batch_size": 16, "augment": "crop-flip", **RECIPES[name]})
    found = jointly(recipe)
    for seed, own in zip(SEEDS, found, strict=True):
        expected = alone(recipe, seed)
        assert_same(own, expected)
        assert isinstance(own, Fit)
        assert own.notes == expected.notes


def test_without_validation_images_the_last_epoch_is_kept_together_as_alone() -> None:
    recipe = Recipe(epochs=3, batch_size=16, lr=0.05, keep="best")
    models, trains = [network(seed) for seed in SEEDS], [squares(50, seed) for seed in SEEDS]
    for seed, own in zip(SEEDS, fit_seeds(models, trains, [None] * 3, recipe, SEEDS, device=CPU), strict=True):
        expected = fit(network(seed), squares(50, seed), None, recipe, seed=seed, device=CPU)
        assert isinstance(own, Fit)
        assert own.epoch == expected.epoch == 3
        for name, value in expected.state.items():
            torch.testing.assert_close(own.state[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_seed_that_diverges_leaves_the_others_undisturbed() -> None:
    recipe = Recipe(epochs=3, batch_size=16, lr=0.05)
    models = [network(seed) for seed in SEEDS]
    with torch.no_grad():
        next(models[1].parameters()).fill_(float("nan"))
    trains = [squares(50, seed) for seed in SEEDS]
    validations = [squares(30, seed + 100) for seed in SEEDS]
    first, second, third = fit_seeds(models, trains, validations, recipe, SEEDS, device=CPU)
    assert_same(first, alone(recipe, SEEDS[0]))
    assert_same(third, alone(recipe, SEEDS[2]))
    assert isinstance(second, Diverged)
    assert "the training loss became nan in epoch 1" in str(second)


def test_a_frozen_part_stays_and_nothing_of_it_decays() -> None:
    models = [network(seed) for seed in SEEDS]
    for model in models:
        next(model.parameters()).requires_grad_(False)
    trains = [squares(50, seed) for seed in SEEDS]
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05, weight_decay=0.5)
    for seed, own in zip(SEEDS, fit_seeds(models, trains, [None] * 3, recipe, SEEDS, device=CPU), strict=True):
        assert isinstance(own, Fit)
        assert own.notes == ()
        assert torch.equal(own.state["0.weight"], network(seed).state_dict()["0.weight"])
        assert not torch.equal(own.state["3.weight"], network(seed).state_dict()["3.weight"])


def test_dropout_is_trained_one_seed_after_the_other() -> None:
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    for seed, own in zip(SEEDS, jointly(recipe, dropout=0.2), strict=True):
        expected = alone(recipe, seed, dropout=0.2)
        assert isinstance(own, Fit)
        assert own.curve == expected.curve
        assert "random operation" in own.notes[-1]
        assert all(torch.equal(own.state[name], value) for name, value in expected.state.items())


def test_unequal_numbers_of_images_are_trained_one_seed_after_the_other() -> None:
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    trains = [squares(50, 3), squares(49, 4)]
    found = fit_seeds([network(3), network(4)], trains, [None, None], recipe, (3, 4), device=CPU)
    assert all(isinstance(own, Fit) and "different numbers of images" in own.notes[-1] for own in found)


def test_what_cannot_be_stacked_is_trained_one_seed_after_the_other_and_says_why() -> None:
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    wide = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    larger = squares(50, 4)
    larger.preprocessing = PREPROCESSING.model_copy(update={"image_size": 12})
    cases: list[tuple[str, list[nn.Module], list[ImageBatches], Recipe]] = [
        ("there is only one", [network(3)], [squares(50, 3)], recipe),
        ("not stacked", [network(3), network(4)], [squares(50, 3), squares(50, 4)], Recipe(epochs=1, mixup=0.2)),
        ("their networks differ", [network(3), wide], [squares(50, 3), squares(50, 4)], recipe),
        ("their images differ in size", [network(3), network(4)], [squares(50, 3), larger], recipe),
    ]
    for reason, models, trains, each in cases:
        seeds = SEEDS[: len(models)]
        starts = [copy.deepcopy(model) for model in models]
        found = fit_seeds(models, trains, [None] * len(seeds), each, seeds, device=CPU)
        for start, train, seed, own in zip(starts, trains, seeds, found, strict=True):
            assert isinstance(own, Fit)
            assert own.notes[-1].startswith("seeds one after the other: ")
            assert reason in own.notes[-1]
            assert own.curve == fit(start, train, None, each, seed=seed, device=CPU).curve


def test_a_seed_that_diverges_leaves_those_trained_after_it_undisturbed() -> None:
    """One after the other, for their dropout."""
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    models = [network(seed, dropout=0.2) for seed in SEEDS]
    with torch.no_grad():
        next(models[1].parameters()).fill_(float("nan"))
    trains = [squares(50, seed) for seed in SEEDS]
    first, second, third = fit_seeds(models, trains, [None] * 3, recipe, SEEDS, device=CPU)
    assert isinstance(first, Fit)
    assert isinstance(third, Fit)
    assert isinstance(second, Diverged)
    assert "the training loss became nan in epoch 1" in str(second)
    assert third.curve == fit(network(5, dropout=0.2), trains[2], None, recipe, seed=5, device=CPU).curve


def test_when_all_seeds_have_diverged_the_training_ends_and_says_so() -> None:
    models = [network(seed) for seed in SEEDS]
    with torch.no_grad():
        for model in models:
            next(model.parameters()).fill_(float("nan"))
    trains, said = [squares(50, seed) for seed in SEEDS], list[str]()
    recipe = Recipe(epochs=5, batch_size=16, lr=0.05)
    found = fit_seeds(
        models, trains, [None] * 3, recipe, SEEDS, device=CPU, advance=lambda done, text: said.append(text)
    )
    assert all(isinstance(own, Diverged) for own in found)
    assert [text for text in said if text] == ["all 3 seeds diverged"]  # in the first epoch, which is the last


def test_too_little_memory_for_all_starts_each_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = seeds_module._Joint.step, itertools.count()

    def full(self: Any, places: Any, moves: Any) -> tuple[Tensor, Tensor]:
        if next(calls) == 6:  # in the second epoch, when the models hold trained weights
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, places, moves)

    monkeypatch.setattr(seeds_module._Joint, "step", full)
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05)
    for seed, own in zip(SEEDS, jointly(recipe), strict=True):
        assert isinstance(own, Fit)
        assert own.curve == alone(recipe, seed).curve
        assert own.notes == ("seeds one after the other: too little memory for all of them",)


def test_progress_only_rises_to_the_end() -> None:
    seen: list[float] = []
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05)
    trains = [squares(50, 3), squares(50, 4)]
    models = [network(3), network(4)]
    fit_seeds(models, trains, [None, None], recipe, (3, 4), device=CPU, advance=lambda done, _: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"optimizer": "sgd", "ema": 0.99, "cutout": 0.25}, True),
        ({"optimizer": "adamw", "label_smoothing": 0.1}, True),
        ({"optimizer": "lbfgs"}, False),
        ({"sam": 0.05}, False),
        ({"mixup": 0.2}, False),
        ({"cutmix": 1.0}, False),
        ({"semi": "fixmatch"}, False),
    ],
)
def test_only_steps_that_can_be_stacked_are_taken_together(fields: dict[str, Any], expected: bool) -> None:
    assert together(Recipe(**fields)) is expected


def test_a_joint_step_pays_when_it_is_clearly_faster_than_the_single_ones() -> None:
    assert pays(single_seconds=0.010, joint_seconds=0.028, seeds=3)
    assert not pays(single_seconds=0.010, joint_seconds=0.029, seeds=3)  # within what timing gets wrong
    assert not pays(single_seconds=0.010, joint_seconds=0.031, seeds=3)


def test_measuring_leaves_the_models_alone_and_refuses_what_cannot_step_together() -> None:
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    models, trains = [network(3), network(4)], [squares(50, 3), squares(50, 4)]
    seconds = measured(models, trains, recipe, device=CPU)
    assert seconds is not None
    assert min(seconds) > 0
    for seed, model in zip((3, 4), models, strict=True):
        fresh = network(seed).state_dict()
        assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    assert measured([network(3, dropout=0.1), network(4, dropout=0.1)], trains, recipe, device=CPU) is None
    assert measured(models, trains, Recipe(sam=0.1), device=CPU) is None
