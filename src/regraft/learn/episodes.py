"""Few-shot episodes on the cached features of a frozen trunk: heads of thousands of small problems, solved together.

Every feature vector is brought to length 1 before any head sees it, and not standardised. An episode of five images has
no deviation per feature worth dividing by: on ResNet-50 features of CIFAR-10 that cost a ridge head 23 points of
accuracy at one image per class and 8 at five. Statistics of the whole training split would bring in images that the
episode does not have. Length 1 is what logistic regression on few-shot features is given by Tian et al. 2020
(arXiv:2003.11539), and a cosine prototype compares nothing else anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from regraft.data.episodes import EpisodeScore, Heads, draw_distinct, draw_images
from regraft.data.splits import TestSplit
from regraft.errors import StudyError
from regraft.learn.logistic import logistic_each
from regraft.learn.ridge import ridge_each

EpisodeHead = Literal["prototype", "ridge", "logistic"]

# Numbers in the support features of the episodes solved at once: 16 MB in float32, the solvers keep a few copies.
MOST_NUMBERS = 2**22


@dataclass(frozen=True, eq=False)
class Episodes:
    """Which classes and which labelled images each episode has.

    ways: (n, ways) classes.  support: (n, ways * shots) positions in the training labels: `shots` images of the first
    class, then of the second, ...  An image of ways[i, j] has label j in episode i.
    """

    ways: NDArray[np.int64]
    support: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ways)

    @property
    def shots(self) -> int:
        """Labelled images of each class."""
        return int(self.support.shape[1] // self.ways.shape[1])

    @property
    def support_labels(self) -> NDArray[np.int64]:
        """(ways * shots,) 0 to ways - 1, the same in every episode."""
        return np.repeat(np.arange(self.ways.shape[1]), self.shots)


def draw_episodes(
    labels: NDArray[np.int64],
    *,
    classes: int,
    ways: int,
    shots: int,
    count: int,
    seed: int,
    names: Sequence[str] = (),
) -> Episodes:
    """Draw `count` episodes of `ways` classes with `shots` labelled images each, all without replacement.

    labels: (n,) in [0, classes).  names: of the classes, for the error message.
    For one seed, episode i is the same whatever `count`, and its images with fewer shots are among those with more.
    Raises StudyError for more ways than classes, TooFewImages when any class has fewer than `shots` images.
    """
    if not 2 <= ways <= classes:
        raise StudyError(f"ways: from 2 to the number of classes, {classes}, got {ways}")
    chosen = draw_distinct(np.full(count, classes), ways, seed=seed, name="episode-ways")  # (count, ways)
    support = draw_images(
        labels, chosen, shots,
        classes=names or [f"class {label}" for label in range(classes)], seed=seed, name="episode-support",
    )  # (count, ways, shots)  # fmt: skip
    return Episodes(chosen, support.reshape(count, ways * shots))


def solve_episodes(
    support: Tensor,
    support_labels: Tensor,
    *,
    ways: int,
    head: EpisodeHead,
    weight_decay: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    """Linear heads of b episodes, each learned from its own images alone.

    support: (b, k, d), any lengths.  support_labels: (b, k) in [0, ways).
    Returns weight (b, ways, d) and bias (b, ways), for features of length 1 (`unit`); the largest of
    weight @ feature + bias is the answer.

    prototype: the mean of a class's unit features; the answer is the nearest by cosine. Snell et al. 2017
    (arXiv:1703.05175) with the cosine of Chen et al. 2020 (arXiv:2003.04390). Nothing is tuned: `weight_decay` and
    `max_iterations` are for the others.
    ridge, logistic: penalty `weight_decay` on |W|^2 as in `ridge_each` and `logistic_each`.
    """
    x = unit(support)
    if head == "prototype":
        member = F.one_hot(support_labels, ways).to(x.dtype)  # (b, k, ways)
        prototypes = unit(member.transpose(1, 2) @ x)  # (b, ways, d); the mean's length does not matter
        return prototypes, prototypes.new_zeros(prototypes.shape[:2])
    if head == "ridge":
        return ridge_each(x, support_labels, classes=ways, penalty=weight_decay)
    return logistic_each(x, support_labels, classes=ways, penalty=weight_decay, max_iterations=max_iterations)


def run_episodes(
    train_features: Tensor,
    episodes: Episodes,
    test: TestSplit,
    test_features: Tensor,
    *,
    queries: int,
    head: EpisodeHead,
    weight_decay: float,
    max_iterations: int,
    run: str,
    seed: int,
    advance: Callable[[float], None] = lambda done: None,
) -> EpisodeScore:
    """Learn the head of every episode and score it on `queries` test images of each of its classes.

    train_features: (n, d), row per training image (may be memory-mapped: only the rows of some episodes are read at
    once).  test_features: (m, d), row per test image, in order.  run, seed: as in `TestSplit.score_episodes`.
    advance: called with the share of episodes done."""
    heads = heads_in_parts(
        train_features, episodes,
        head=head, weight_decay=weight_decay, max_iterations=max_iterations, advance=advance,
    )  # fmt: skip
    x = unit(test_features.float()).cpu().numpy()
    return test.score_episodes(x, episodes.ways, heads, queries=queries, run=run, seed=seed)


def heads_in_parts(
    train_features: Tensor,
    episodes: Episodes,
    *,
    head: EpisodeHead,
    weight_decay: float,
    max_iterations: int,
    advance: Callable[[float], None] = lambda done: None,
    most_numbers: int = MOST_NUMBERS,
) -> Iterator[Heads]:
    """Heads of all episodes in order, as many at once as have `most_numbers` numbers in their support features."""
    per_episode = episodes.support.shape[1] * train_features.shape[1]
    size = max(1, most_numbers // per_episode)
    labels = torch.from_numpy(episodes.support_labels)
    for start in range(0, len(episodes), size):
        positions = torch.from_numpy(episodes.support[start : start + size])  # (b, k)
        support = train_features[positions.to(train_features.device)].float()  # (b, k, d)
        weight, bias = solve_episodes(
            support, labels.to(support.device).expand(len(support), -1),
            ways=episodes.ways.shape[1], head=head, weight_decay=weight_decay, max_iterations=max_iterations,
        )  # fmt: skip
        yield weight.cpu().numpy(), bias.cpu().numpy()
        advance(min(start + size, len(episodes)) / len(episodes))


def unit(features: Tensor) -> Tensor:
    """Each vector (..., d) at length 1; a zero vector stays zero."""
    return F.normalize(features, dim=-1)
