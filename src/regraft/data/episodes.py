"""Few-shot episodes: drawing distinct images of each class, and what the heads of many episodes get right.

An episode of `ways` classes has a head learned from a few images of each (the support), asked about others of the
same classes (the queries). How heads are learned is `regraft.learn.episodes`; test labels are met in
`TestSplit.score_episodes` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import Diverged, TooFewImages
from regraft.seeding import stream

# Weight (b, ways, d) and bias (b, ways) of the linear heads of b consecutive episodes.
Heads = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class EpisodeScore:
    """What the heads of all episodes got right.

    accuracies: (n,) float64, of each episode, fractions of its ways * queries images.

    An interval over episodes says how exactly the mean over all episodes of *these* images is known. It does not say
    how another test set of the same kind would come out: episodes share images, so with thousands of them it is far
    narrower than that (Lafargue et al. 2024, arXiv:2409.02850). Heads or trunks on the same episodes are compared
    by paired differences.
    """

    accuracies: NDArray[np.float64]

    @property
    def n(self) -> int:
        """Episodes."""
        return len(self.accuracies)

    @property
    def accuracy(self) -> float:
        """Mean over the episodes."""
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Standard deviation between episodes (n - 1); NaN for one episode."""
        return float(self.accuracies.std(ddof=1)) if self.n > 1 else float("nan")


def score_heads(
    labels: NDArray[np.int64],
    features: NDArray[np.floating[Any]],
    ways: NDArray[np.int64],
    heads: Iterable[Heads],
    *,
    queries: int,
    classes: Sequence[str],
    seed: int,
) -> EpisodeScore:
    """Ask the head of each episode about `queries` images of each of its classes.

    labels: (m,) into `classes`.  features: (m, d) of the same images.  ways: (n, ways) labels, those of an episode
    distinct.  heads: of all n episodes, in order, in parts of any size; the largest of weight @ feature + bias is
    the answer.
    Episode i asks about the same images whatever n and the heads, so heads and trunks are compared on equal terms;
    images of one class are drawn without replacement.
    Raises TooFewImages when any class has fewer than `queries`, Diverged for NaN or infinity in features or heads.
    """
    n, per_episode = ways.shape
    assert len(features) == len(labels)
    assert per_episode >= 2 and (np.diff(np.sort(ways, axis=1), axis=1) > 0).all(), "classes of an episode differ"
    if not np.isfinite(features).all():
        raise Diverged("features of the query images hold NaN or infinity: the source's weights are broken")
    positions = draw_images(labels, ways, queries, classes=classes, seed=seed, name="queries")  # (n, ways, queries)
    truth = np.repeat(np.arange(per_episode), queries)  # (ways * queries,)
    accuracies = np.empty(n)
    done = 0
    for weight, bias in heads:
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise Diverged(f"NaN or infinity in a head of the episodes from {done}; raise weight_decay")
        # One episode at a time: its features fit the cache, and no answer depends on how the heads were parted.
        for w, b in zip(weight, bias, strict=True):
            answers = (features[positions[done].ravel()] @ w.T + b).argmax(axis=1)  # (ways * queries,)
            accuracies[done] = (answers == truth).mean()
            done += 1
    assert done == n, f"heads of {done} episodes for {n}"
    return EpisodeScore(accuracies)


def draw_images(
    labels: NDArray[np.int64],
    ways: NDArray[np.int64],
    count: int,
    *,
    classes: Sequence[str],
    seed: int,
    name: str,
) -> NDArray[np.int64]:
    """Positions (n, ways, count) of `count` distinct images of each class of each episode.

    labels: (m,).  ways: (n, ways) labels.  classes: their names.  name: of the random stream.
    For one seed, an episode's images are the same whatever n, and the first k of them whatever `count` >= k.
    Raises TooFewImages when any class, drawn or not, has fewer than `count`: the answer does not hang on the seed.
    """
    sizes = check_enough(labels, count, classes=classes, name=name)
    by_class = np.argsort(labels, kind="stable")  # images of class 0, of class 1, ...
    first = np.cumsum(sizes) - sizes  # where each class begins there
    place = draw_distinct(sizes[ways], count, seed=seed, name=name)
    positions: NDArray[np.int64] = by_class[first[ways][..., None] + place]
    return positions


def check_enough(labels: NDArray[np.int64], count: int, *, classes: Sequence[str], name: str) -> NDArray[np.int64]:
    """Images of each class (classes,).  Raises TooFewImages when any has fewer than `count`."""
    sizes = np.bincount(labels, minlength=len(classes))
    if (short := np.flatnonzero(sizes < count)).size:
        named = ", ".join(f"{classes[label]} has {sizes[label]}" for label in short[:10])
        more = f" and {len(short) - 10} more classes" if len(short) > 10 else ""
        raise TooFewImages(
            f"{count} images of each class of an episode asked for ({name}), but {named}{more}. "
            f"At most {sizes.min()} are possible; or leave small classes out with `classes`."
        )
    return sizes


def draw_distinct(sizes: NDArray[np.int64], count: int, *, seed: int, name: str) -> NDArray[np.int64]:
    """`count` distinct numbers below each of `sizes`, every ordered choice equally likely.

    sizes: (n, ...), all >= count.  Returns (n, ..., count).
    The i-th numbers of all rows come from a stream of their own, row after row: so a row's numbers change neither
    with further rows nor with a larger count.
    """
    assert sizes.size == 0 or sizes.min() >= count
    chosen = np.empty((*sizes.shape, count), np.int64)
    for i in range(count):
        # The k-th of those not yet taken, k uniform: step over each taken number that is not above.
        number = (stream(seed, name, i).random(sizes.shape) * (sizes - i)).astype(np.int64)
        for taken in np.moveaxis(np.sort(chosen[..., :i], axis=-1), -1, 0):
            number += number >= taken
        chosen[..., i] = number
    return chosen
