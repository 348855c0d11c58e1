"""What every training does alike in a pass over its images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from regraft.learn.epoch import blended_loss, order_of, set_rate, steps_of
from regraft.learn.optimizers import make_optimizer
from regraft.seeding import torch_stream
from regraft.spec import Recipe


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.0])
def test_the_loss_of_blended_images_is_that_of_their_blended_labels(share: float, smoothing: float) -> None:
    rng = torch_stream(0, "logits")
    logits = torch.randn(6, 4, generator=rng)
    labels, others = torch.randint(4, (2, 6), generator=rng)
    soft = share * one_hot(labels, 4) + (1 - share) * one_hot(others, 4)  # (6, 4)
    expected = cross_entropy(logits, soft, label_smoothing=smoothing)
    found = blended_loss(logits, labels, others, share, Recipe(label_smoothing=smoothing))
    torch.testing.assert_close(found, expected)


def test_an_order_is_every_image_once_and_its_own_for_seed_purpose_and_epoch() -> None:
    orders = [order_of(50, *given) for given in ((0, "order", 0), (1, "order", 0), (0, "other", 0), (0, "order", 1))]
    assert all(order.sort().values.tolist() == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(order_of(50, 0, "order", 1), orders[3])


@pytest.mark.parametrize(("images", "batch_size", "sizes"), [(33, 16, {11}), (32, 16, {16}), (17, 16, {8, 9})])
def test_no_batch_is_a_small_rest(images: int, batch_size: int, sizes: set[int]) -> None:
    steps = order_of(images, 0, "order", 0).tensor_split(steps_of(images, Recipe(batch_size=batch_size)))
    assert {len(step) for step in steps} == sizes


def test_every_group_gets_its_share_of_the_rate() -> None:
    model = nn.Linear(3, 2)
    recipe = Recipe(lr=0.1)
    optimizer = make_optimizer(model, recipe, torch.device("cpu"), rates={model.bias: 0.25})
    set_rate(optimizer, 0.04)
    assert [group["lr"] for group in optimizer.param_groups] == [0.04, 0.01]
    set_rate(optimizer, 0.04)  # of the rate, not of what it was before
    assert [group["lr"] for group in optimizer.param_groups] == [0.04, 0.01]
