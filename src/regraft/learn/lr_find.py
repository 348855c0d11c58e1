"""The learning-rate range test: what a rate is worth, found in some hundred steps (Smith 2017, arXiv:1506.01186)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from regraft.errors import RunError
from regraft.learn.batches import Batches
from regraft.learn.epoch import blended, blended_loss, order_of, own_randomness, set_rate, steps_of
from regraft.learn.mixing import Mixed
from regraft.learn.optimizers import make_optimizer
from regraft.learn.precision import mixed_precision
from regraft.learn.progress import cpu_state
from regraft.seeding import torch_stream
from regraft.spec import Recipe

MEMORY = 0.9  # of the smoothed loss: it forgets about ten steps back
GIVE_UP = 4.0  # times the lowest smoothed loss
SETTLED = 5  # steps before the smoothed loss says anything
WINDOW = 7  # steps that a slope is the mean of
FEWEST = 20  # steps


@dataclass(frozen=True)
class LearningRates:
    """Losses while the rate rose, step by step, and the two rates that they suggest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # of each mini-batch, before its step
    smoothed: tuple[float, ...]
    steepest: float  # where the smoothed loss falls fastest
    lowest: float  # where it is lowest: too high to train with
    stopped: bool  # before the highest rate, since the loss had risen to 4 times its lowest or was no number

    @property
    def tenth(self) -> float:
        """A tenth of the rate at the lowest loss."""
        return self.lowest / 10


def lr_find(
    model: nn.Module,
    train: Batches,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    steps: int = 100,
    rates: tuple[float, float] = (1e-6, 10.0),
    advance: Callable[[float, str], None] = lambda done, message: None,
) -> LearningRates:
    """Train `model` by `recipe` on mini-batches of `train`, the rate rising from the first of `rates` to the second by
    the same factor each step, until the smoothed loss is 4 times its lowest.

    Optimizer, batch size, decay, augmentation and label smoothing are the recipe's; averaged weights, sharpness-aware
    steps and unlabelled images play no part. The model is, bit for bit, what it was before; only gradients are gone.

    steps: at most, 20 or more.  Raises RunError if no rate lowers the loss."""
    assert steps >= FEWEST, f"{steps} steps are too few"
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    tried = [rates[0] * (rates[1] / rates[0]) ** (step / (steps - 1)) for step in range(steps)]
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    with _untouched(model):
        optimizer = make_optimizer(model, recipe, device)
        model.train()
        with own_randomness(seed, "lr-find"):
            for rate, batch in zip(tried, _batches(train, recipe, seed), strict=False):
                set_rate(optimizer, rate)
                optimizer.zero_grad(set_to_none=True)
                with mixed_precision(device):
                    loss = blended_loss(model(batch.inputs), batch.labels, batch.others, batch.share, recipe)
                value = float(loss.detach())
                if not math.isfinite(value):
                    break
                average = MEMORY * average + (1 - MEMORY) * value
                losses.append(value)
                smoothed.append(average / (1 - MEMORY ** len(losses)))  # as if it had run for ever
                if len(losses) > SETTLED and _risen(smoothed):
                    break
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                advance(len(losses) / steps, "")
    return _judged(tried[: len(losses)], losses, smoothed, stopped=len(losses) < steps or _risen(smoothed))


def _risen(smoothed: list[float]) -> bool:
    """Whether to give up; of no steps there is nothing to say."""
    return len(smoothed) > 0 and smoothed[-1] > GIVE_UP * min(smoothed)


def _judged(rates: list[float], losses: list[float], smoothed: list[float], *, stopped: bool) -> LearningRates:
    """The suggestions. Raises RunError if the loss falls nowhere."""
    lowest = int(np.argmin(smoothed)) if smoothed else 0
    if lowest < SETTLED:
        raise RunError(
            f"no learning rate lowers the loss: {len(losses)} steps, lowest after {lowest}. Look at the data and the "
            "network's preprocessing, or try more steps"
        )
    slopes = np.gradient(np.array(smoothed[: lowest + 1]), np.log(rates[: lowest + 1]))
    around = np.convolve(slopes, np.full(WINDOW, 1 / WINDOW), "same")  # one easy mini-batch is no slope
    steepest = SETTLED - 1 + int(np.argmin(around[SETTLED - 1 :]))
    return LearningRates(
        tuple(rates), tuple(losses), tuple(smoothed), steepest=rates[steepest], lowest=rates[lowest], stopped=stopped
    )


def _batches(train: Batches, recipe: Recipe, seed: int) -> Iterator[Mixed]:
    """Epoch after epoch, without end."""
    n, epoch = len(train), 0
    while True:
        order = order_of(n, seed, "lr-find order", epoch).to(train.labels.device)
        augmentation, mixing = torch_stream(seed, "lr-find augment", epoch), torch_stream(seed, "lr-find mix", epoch)
        for _, batch in blended(train, order.tensor_split(steps_of(n, recipe)), recipe, augmentation, mixing):
            yield batch
        epoch += 1


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Parameters, buffers and modes are afterwards what they were, whatever happens."""
    state = cpu_state(model)
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
        for module, training in modes.items():
            module.training = training
