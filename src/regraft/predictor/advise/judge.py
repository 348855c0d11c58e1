"""What heads say of training pictures that they have not seen: doubtful labels, confused classes, next labels.

Test pictures play no part here, and neither do their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.analysis.mislabelled import Floats, Labels, Mislabelled, SelfTest, mislabelled, out_of_fold, self_test
from regraft.learn.batches import ImageBatches
from regraft.learn.features import extract
from regraft.learn.logistic import logistic
from regraft.learn.solve import Solved
from regraft.predictor.advise.clock import Clock
from regraft.predictor.advise.explore import ITERATIONS, LOGISTIC, Choice, Place, study_of
from regraft.spec import Run
from regraft.study.bench import Bench
from regraft.study.features import Column, FeatureTask, prepared_trunk, read_features

MOST_TESTS, TESTED = 3, 0.93  # self-tests, and the share of the time by which they have ended
REPEATS = (0, 1)  # each deals the pictures to other folds
POOL = 10  # most uncertain pictures that the proposed ones are spread over, times their number


@dataclass(frozen=True, eq=False)
class Judged:
    """Out-of-fold answers to the training pictures."""

    probabilities: Floats  # (n, classes)
    labels: Labels  # (n,)
    doubts: Mislabelled
    test: SelfTest | None  # None: there was no time for it
    unreadable: tuple[str, ...]

    @property
    def predicted(self) -> list[int]:
        """(n,)"""
        found: list[int] = self.probabilities.argmax(1).tolist()
        return found

    @property
    def accuracy(self) -> float:
        """Share answered rightly."""
        return float((self.probabilities.argmax(1) == self.labels).mean())


def judge(frozen: Choice, place: Place, clock: Clock) -> Judged:
    """Logistic heads on the features of the best frozen configuration, five folds, twice if there is time."""
    run, bench = _run(frozen, place)
    data = bench.dataset(run)
    x, _, _ = read_features(run, ("train", 0), np.arange(len(data.train)), bench)
    labels, classes = data.train.labels, len(data.classes)

    def asked_by_folds(given: Labels, seeds: Sequence[int]) -> Floats:
        def answer(learnt: Labels, asked: Labels) -> list[Floats]:
            heads = _heads(x[torch.from_numpy(learnt)], given[learnt], classes)
            return [_probabilities(head, x[torch.from_numpy(asked)]) for head in heads]

        return out_of_fold(given, classes, answer, seeds=seeds)

    began = clock.spent
    probabilities = asked_by_folds(labels, REPEATS[:1])
    once = clock.spent - began
    if clock.left(TESTED) > once:
        probabilities = (probabilities + asked_by_folds(labels, REPEATS[1:])) / 2
    tests = min(MOST_TESTS, int(clock.left(TESTED) / max(once, 1e-3)))
    test = None
    if tests > 0:
        test = self_test(labels, classes, lambda given, repeat: asked_by_folds(given, (repeat,)), repeats=tests)
    return Judged(probabilities, labels, mislabelled(probabilities, labels), test, data.unreadable)


def propose(
    frozen: Choice, place: Place, images: NDArray[np.uint8], *, penalty: float, count: int
) -> list[tuple[int, float]]:
    """Which of `images` (m, s, s, 3) to label: the head is unsure of them, and they differ from each other.

    Of the 10 * count with the least margin between their two most probable classes, a set is taken that covers them:
    each is the farthest from those taken before (k-center, Sener & Savarese 2018, arXiv:1708.00489), beginning with the
    one of least margin.  Returns (position, margin)."""
    run, bench = _run(frozen, place)
    data = bench.dataset(run)
    x, _, _ = read_features(run, ("train", 0), np.arange(len(data.train)), bench)
    head = _heads(x, data.train.labels, len(data.classes), (penalty,))[0]
    new = _features(run, bench, images)
    best = np.sort(_probabilities(head, new), axis=1)[:, ::-1]  # (m, classes)
    margins = best[:, 0] - best[:, 1]
    pool = np.argsort(margins, kind="stable")[: POOL * count]
    scaled = (new - x.mean(0)) / x.std(0).clamp_min(1e-6)
    chosen = k_center(scaled[torch.from_numpy(pool)], min(count, len(pool)))
    return [(int(pool[i]), float(margins[pool[i]])) for i in chosen]


def k_center(x: Tensor, count: int) -> list[int]:
    """Rows of x (n, d), the first one first, then always the one farthest from those taken (Gonzalez 1985)."""
    if count < 1 or len(x) == 0:
        return []
    taken = [0]
    far = (x - x[0]).norm(dim=1)  # (n,) to the nearest that is taken
    while len(taken) < count:
        taken.append(int(far.argmax()))
        far = torch.minimum(far, (x - x[taken[-1]]).norm(dim=1))
    return taken


def _run(frozen: Choice, place: Place) -> tuple[Run, Bench]:
    runs, bench = place.bench(study_of(frozen.trunk, place))
    return next(run for run in runs if run.row == frozen.row.name), bench


def _heads(x: Tensor, labels: Labels, classes: int, penalties: Sequence[float] = LOGISTIC) -> list[Solved]:
    return logistic(x, torch.from_numpy(labels), classes=classes, penalties=penalties, max_iterations=ITERATIONS)


def _probabilities(head: Solved, x: Tensor) -> Floats:
    logits = x @ head.weight.T + head.bias
    return logits.double().softmax(1).numpy()


def _features(run: Run, bench: Bench, images: NDArray[np.uint8]) -> Tensor:
    """(m, d) of pictures that are in no data set, by the trunk and the back end that the others were made with."""
    cut = bench.keys.cut(run)
    column = Column(run, cut)
    positions = np.arange(min(len(images), len(bench.dataset(run).train)))
    trunk, backend = prepared_trunk(FeatureTask((column,), ("train", 0), positions), positions, "fused", bench)
    batches = ImageBatches(images, np.zeros(len(images), np.int64), bench.keys.preprocessing(run), device=bench.device)
    return extract(trunk, batches, backend=backend)[column.name]
