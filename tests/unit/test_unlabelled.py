"""Laws of guesses about unlabelled images: FixMatch's and FlexMatch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regraft.learn.unlabelled import NEVER_SURE, Guesses, learning_status, mapped
from regraft.seeding import torch_stream
from regraft.spec import Recipe

CPU = torch.device("cpu")
FIX = Recipe(semi="fixmatch", threshold=0.8)
FLEX = Recipe(semi="flexmatch", threshold=0.8)


def logits(*confidences: tuple[int, float], classes: int = 3) -> Tensor:
    """Logits whose softmax gives the named class this confidence, the others the rest in equal parts."""
    rows = torch.empty(len(confidences), classes)
    for row, (label, confidence) in zip(rows, confidences, strict=True):
        row.fill_((1 - confidence) / (classes - 1))
        row[label] = confidence
    return rows.log()


def drawn(m: int, classes: int = 3, seed: int = 0) -> Tensor:
    return 3 * torch.randn(m, classes, generator=torch_stream(seed, "logits"))


def test_the_loss_is_the_mean_over_all_images_of_the_cross_entropy_where_the_guess_is_sure() -> None:
    weak, strong = logits((0, 0.9), (2, 0.7), (1, 0.81)), drawn(3)
    found = Guesses(9, FIX, CPU).loss(weak, strong, torch.arange(3))
    by_hand = (cross_entropy(strong[:1], torch.tensor([0])) + cross_entropy(strong[2:], torch.tensor([1]))) / 3
    torch.testing.assert_close(found, by_hand)


def test_a_guess_no_image_is_sure_of_teaches_nothing() -> None:
    strong = drawn(4).requires_grad_()
    loss = Guesses(9, FIX, CPU).loss(logits(*[(1, 0.7)] * 4), strong, torch.arange(4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert strong.grad is not None
    assert not strong.grad.any()


def test_a_loss_that_is_not_finite_is_not_hidden_by_unsure_guesses() -> None:
    broken = torch.full((2, 3), float("nan"))
    assert not torch.isfinite(Guesses(9, FIX, CPU).loss(broken, broken, torch.arange(2)))


@pytest.mark.parametrize("recipe", [FIX, FLEX])
def test_the_share_counts_what_was_learned_from_since_it_was_last_asked_for(recipe: Recipe) -> None:
    guesses = Guesses(4, recipe, CPU)
    assert guesses.share() == 0.0
    sure, unsure = logits((0, 0.95), (1, 0.95), (2, 0.95), (0, 0.95)), logits(*[(0, 0.4)] * 4)
    for weak in (sure, unsure):
        guesses.loss(weak, weak, torch.arange(4))
    assert guesses.share() == 0.5
    assert guesses.share() == 0.0


def test_the_status_of_a_class_is_its_sure_guesses_over_the_most_of_any() -> None:
    last = torch.tensor([0, 0, 0, 0, 1, 1, NEVER_SURE])
    assert torch.equal(learning_status(last, 3), torch.tensor([1.0, 0.5, 0.0]))


def test_while_most_images_are_unused_no_class_is_far() -> None:
    last = torch.tensor([0, 0, 1, *[NEVER_SURE] * 8])
    assert torch.equal(learning_status(last, 2), torch.tensor([2 / 8, 1 / 8]))
    assert not learning_status(torch.full((5,), NEVER_SURE), 2).any()


def test_the_mapping_of_a_status_is_convex_from_0_to_1() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    y = mapped(x)
    assert float(y[0]) == 0.0
    assert float(y[-1]) == 1.0
    assert (y.diff() > 0).all()
    assert (y.diff().diff() > 0).all()


def test_thresholds_of_flexmatch_rise_from_0_to_that_of_fixmatch() -> None:
    guesses = Guesses(4, FLEX, CPU)
    assert not guesses._thresholds(2).any()
    guesses.loss(logits((0, 0.9), (0, 0.9), classes=2), drawn(2, 2), torch.tensor([0, 1]))
    assert torch.allclose(guesses._thresholds(2), torch.tensor([0.8, 0.0]))  # 2 of class 0, 2 unused
    guesses.loss(logits((1, 0.9), classes=2), drawn(1, 2), torch.tensor([2]))
    assert torch.allclose(guesses._thresholds(2), 0.8 * torch.tensor([1.0, 0.5 / 1.5]))
    guesses.loss(logits((1, 0.9), classes=2), drawn(1, 2), torch.tensor([3]))
    assert torch.allclose(guesses._thresholds(2), torch.full((2,), 0.8))


def test_flexmatch_judges_a_batch_by_what_was_known_before_it() -> None:
    weak = logits(*[(0, 0.9)] * 4, (1, 0.6), classes=2)
    guesses = Guesses(5, FLEX, CPU)
    for expected in (1.0, 1.0, 1.0):  # class 1 was never sure: its threshold stays 0
        guesses.loss(weak, weak, torch.arange(5))
        assert guesses.share() == expected
    before = guesses._thresholds(2)
    half = logits((0, 0.6), (1, 0.6), classes=2)
    guesses.loss(half, half, torch.arange(2))
    assert guesses.share() == 0.5
    assert torch.equal(guesses._thresholds(2), before)  # unsure guesses are not remembered


def test_an_image_counts_by_its_last_sure_guess() -> None:
    guesses = Guesses(3, FLEX, CPU)
    steps = [((0, 0.9), 0), ((1, 0.9), 0), ((2, 0.7), 0), ((2, 0.9), 1)]  # (guess, image)
    for guess, place in steps:
        guesses.loss(logits(guess), drawn(1), torch.tensor([place]))
    assert guesses.state()["last"].tolist() == [1, 2, NEVER_SURE]


def test_an_image_that_is_twice_in_a_batch_is_remembered_alike_in_any_order() -> None:
    weak, places = logits((2, 0.9), (1, 0.9), (0, 0.5), (0, 0.9)), torch.tensor([1, 1, 1, 0])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 0, 3]):
        guesses = Guesses(3, FLEX, CPU)
        guesses.loss(weak[order], weak[order], places[order])
        assert guesses.state()["last"].tolist() == [0, 2, NEVER_SURE]


@pytest.mark.parametrize("recipe", [FIX, FLEX])
def test_guesses_that_go_on_from_their_state_are_those_never_stopped(recipe: Recipe) -> None:
    def step(guesses: Guesses, number: int) -> Tensor:
        places = torch.from_numpy(np.random.default_rng(number).permutation(20)[:12])
        return guesses.loss(drawn(12, seed=number), drawn(12, seed=100 + number), places)

    whole, first, second = (Guesses(20, recipe, CPU) for _ in range(3))
    for number in range(4):
        step(whole, number)
        step(first, number)
    assert whole.share() == first.share()
    second.load({name: value.clone() for name, value in first.state().items()})
    for number in range(4, 8):
        assert torch.equal(step(whole, number), step(second, number))
    assert whole.share() == second.share()


def test_flexmatch_learns_from_a_class_that_fixmatch_is_never_sure_of() -> None:
    weak = logits(*[(0, 0.99)] * 6, *[(1, 0.5)] * 2)
    places = torch.arange(8)
    shares = {}
    for recipe in (FIX, FLEX):
        guesses = Guesses(8, recipe, CPU)
        for _ in range(3):
            guesses.loss(weak, weak, places)
            shares[recipe.semi] = guesses.share()
    assert shares == {"fixmatch": 6 / 8, "flexmatch": 1.0}
