"""One pass over the training images, as every training makes it: its order, its batches, their loss, the rate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regraft.learn.batches import Batches
from regraft.learn.mixing import Mixed, mix
from regraft.seeding import derive, stream
from regraft.spec import Recipe


def steps_of(images: int, recipe: Recipe) -> int:
    """Steps of an epoch. Its batches are of nearly equal size: a rest of one image would break BatchNorm, a small one
    distorts it."""
    return math.ceil(images / recipe.batch_size)


def order_of(images: int, seed: int, name: str, epoch: int) -> Tensor:
    """Positions (images,) in the order of the epoch, from the stream `name`."""
    return torch.from_numpy(stream(seed, name, epoch).permutation(images))


def blended(
    train: Batches, steps: Iterable[Tensor], recipe: Recipe, augmentation: torch.Generator, mixing: torch.Generator
) -> Iterator[tuple[Tensor, Mixed]]:
    """The positions of each of `steps`, and their images: augmented, then blended as the recipe says."""
    for positions in steps:
        inputs = train.take(positions, augmentation)
        yield positions, mix(inputs, train.labels[positions], recipe.mixup, recipe.cutmix, mixing)


def blended_loss(logits: Tensor, labels: Tensor, others: Tensor, share: float, recipe: Recipe) -> Tensor:
    """Mean cross-entropy, smoothed as the recipe says.

    logits: (n, classes).  labels, others: (n,) of the images and of what was blended in.  share: of `labels`."""
    loss = share * cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if share < 1:
        loss = loss + (1 - share) * cross_entropy(logits, others, label_smoothing=recipe.label_smoothing)
    return loss


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["share"] * rate


@contextlib.contextmanager
def own_randomness(seed: int, name: str, *path: int) -> Iterator[None]:
    """Dropout and stochastic depth can only draw from torch's global generator: lend them a seeded one."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, name, *path))
        yield
