"""Labels that are probably wrong: confident learning on out-of-fold probabilities.

Northcutt, Jiang & Chuang 2021 (arXiv:1911.00068): a picture counts as class j where its probability of j reaches the
mean probability of j over the pictures that are labelled j. Counted by given label i and this class j, off the
diagonal stand the labels in doubt; scaled to the number of labels of each class, their sum estimates how many labels
are wrong. The thresholds are the classes' own, so a class that the network is never sure of is not suspected as one.
One thing differs here: a threshold is 0.7 at most. Where classes are clear, their mean probability is near 1, half of
their pictures lie below it, and so would half of the wrong labels.

The probabilities must be of a head that did not learn from the picture: `out_of_fold`.

Where classes look alike, honest mistakes are doubted as well, and the estimate is too high: no statistic tells a hard
picture from a wrong label. So `self_test` changes some labels on purpose and counts how many of those are found, and
how many of the doubted are those: what the list is worth on these very pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.seeding import stream

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
FOLDS = 5
SURE = 0.7  # no threshold is higher
PLANTED = 0.05  # share of labels changed on purpose
REPEATS = 3


@dataclass(frozen=True)
class Suspect:
    """A picture whose label is in doubt."""

    index: int  # of the picture
    label: int  # given
    proposed: int  # by the network
    self_confidence: float  # probability of the given label
    margin: float  # that minus the probability of the proposed one: the lower, the surer


@dataclass(frozen=True, eq=False)
class Mislabelled:
    """Suspects, the surest first, and how many labels are estimated to be wrong."""

    suspects: tuple[Suspect, ...]
    estimate: float  # labels, of all; from the calibrated joint distribution
    images: int  # looked at
    joint: Floats  # (classes, classes): estimated pictures by [given][true] label

    @property
    def share(self) -> float:
        """Estimated share of wrong labels."""
        return self.estimate / max(1, self.images)


def mislabelled(probabilities: Floats, labels: Labels) -> Mislabelled:
    """Find labels in doubt.  probabilities: (n, classes), out of fold, rows sum to 1.  labels: (n,).

    A class without pictures proposes nothing."""
    n, classes = probabilities.shape
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(n), labels]  # (n,) self-confidence
    sums = np.bincount(labels, weights=own, minlength=classes)
    thresholds = np.where(counts > 0, np.minimum(sums / np.maximum(counts, 1), SURE), np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    confident = reached.max(axis=1) >= 0
    proposed = reached.argmax(axis=1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[confident], proposed[confident]), 1.0)
    rows = joint.sum(axis=1, keepdims=True)
    joint = np.where(rows > 0, joint / np.maximum(rows, 1.0), np.eye(classes)) * counts[:, None]
    # Where the most probable class is the given one, a threshold of another class alone is no ground for doubt.
    doubted = confident & (proposed != labels) & (probabilities[np.arange(n), proposed] > own)
    margins = own - probabilities[np.arange(n), proposed]
    order = sorted(np.flatnonzero(doubted).tolist(), key=lambda i: (margins[i], i))
    suspects = tuple(Suspect(i, int(labels[i]), int(proposed[i]), float(own[i]), float(margins[i])) for i in order)
    return Mislabelled(suspects, float(joint.sum() - np.trace(joint)), n, joint)


@dataclass(frozen=True)
class SelfTest:
    """Labels changed on purpose, over all repeats, and what became of them."""

    planted: int
    found: int  # of them, among the doubted
    doubted: int  # of all pictures
    first: int  # of them, among the first `planted` doubted of each repeat

    @property
    def recall(self) -> float:
        """Share of the changed labels that were doubted."""
        return self.found / max(1, self.planted)

    @property
    def precision(self) -> float:
        """Share of the first doubted, as many as were changed, that were. The others were hard, or wrong before."""
        return self.first / max(1, self.planted)


def self_test(
    labels: Labels, classes: int, probabilities: Callable[[Labels, int], Floats], *, repeats: int = REPEATS
) -> SelfTest:
    """Change 5 % of the labels to another class, drawn evenly, look for them, and do it again.

    probabilities(labels, repeat): out of fold, (n, classes)."""
    planted = found = doubted = first = 0
    for repeat in range(repeats):
        rng = stream(repeat, "planted")
        count = max(1, round(PLANTED * len(labels)))
        changed = rng.choice(len(labels), count, replace=False)
        wrong = labels.copy()
        wrong[changed] = (wrong[changed] + rng.integers(1, classes, count)) % classes
        suspects = [one.index for one in mislabelled(probabilities(wrong, repeat), wrong).suspects]
        hit = np.isin(suspects, changed)
        planted, doubted = planted + count, doubted + len(suspects)
        found, first = found + int(hit.sum()), first + int(hit[:count].sum())
    return SelfTest(planted, found, doubted, first)


def folds(labels: Labels, *, count: int = FOLDS, seed: int = 0) -> Iterator[tuple[Labels, Labels]]:
    """(learnt from, asked about) positions: each picture is asked about once, classes spread evenly.

    A class's only picture is learnt from in the folds that do not ask about it; there its class is unknown."""
    place = np.empty(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = stream(seed, "folds", int(label)).permutation(members)
        place[order] = (np.arange(len(members)) + start) % count
        start += len(members)  # the remainders of many small classes fall on different folds
    for fold in range(count):
        asked = np.flatnonzero(place == fold)
        if len(asked):
            yield np.flatnonzero(place != fold), asked


def out_of_fold(
    labels: Labels,
    classes: int,
    answer: Callable[[Labels, Labels], Sequence[Floats]],
    *,
    count: int = FOLDS,
    seeds: Sequence[int] = (0,),
) -> Floats:
    """(n, classes): probabilities of each picture by heads that did not learn from it, the mean over `seeds`.

    answer(learnt, asked): for several penalties, the probabilities (asked, classes) of a head that learnt from those
    positions. Of the penalties the one with the least mean log loss over all pictures is taken."""
    whole: list[Floats] = []
    for seed in seeds:
        for learnt, asked in folds(labels, count=count, seed=seed):
            for i, found in enumerate(answer(learnt, asked)):
                if i == len(whole):
                    whole.append(np.zeros((len(labels), classes)))
                whole[i][asked] += found / len(seeds)
    rows = np.arange(len(labels))
    losses = [-np.log(np.maximum(each[rows, labels], 1e-12)).mean() for each in whole]
    return whole[int(np.argmin(losses))]
