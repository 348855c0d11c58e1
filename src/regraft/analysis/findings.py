"""What advice on a folder of pictures consists of: plain facts, for pages, terminals and JSON alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from regraft.analysis.extrapolate import Extrapolation
from regraft.analysis.mislabelled import SelfTest
from regraft.analysis.stats import wilson_interval


@dataclass(frozen=True)
class Problem:
    """Something in the folder that a person should know, in a sentence, and the files that it is about."""

    text: str
    files: tuple[str, ...] = ()
    serious: bool = False  # it changes what can be believed


@dataclass(frozen=True)
class Pictures:
    """What is in the folder."""

    folder: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]  # usable pictures of each class, all parts
    training: int  # pictures that configurations were chosen with
    test: int  # pictures held back; they played no part in the choice
    own_test: bool  # whether the folder brought its test part
    side: int  # median of the shorter sides, in pixels
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Candidate:
    """One configuration and how well it did on validation pictures, which are training pictures that it did not see."""

    source: str  # network and image size, in words
    cut: str
    method: str
    head: str
    recipe: str
    validation: float  # mean accuracy over seeds
    deviation: float  # standard deviation between seeds
    n: int  # seeds
    seconds: float  # one pass over the pictures, or one training

    @property
    def what(self) -> str:
        """In words: 'frozen mobilenet_v2 at 224 px, cut penultimate, linear, ridge 1'."""
        recipe = f", {self.recipe}" if self.recipe else ""
        return f"{self.method} {self.source}, cut {self.cut}, {self.head}{recipe}"


@dataclass(frozen=True)
class Confused:
    """Pictures of one class that are taken for another."""

    true: str
    predicted: str
    count: int
    of: int  # pictures of the true class
    low: float  # 95 % Wilson interval of count / of
    high: float


@dataclass(frozen=True)
class Doubted:
    """A picture whose label is probably wrong."""

    file: str
    label: str
    proposed: str
    confidence: float  # probability of the given label
    margin: float  # that minus the probability of the proposed one


@dataclass(frozen=True)
class ClassGain:
    """What more labels of one class are expected to bring."""

    name: str
    labels: int  # it has
    error: float  # share of its pictures that are answered wrongly
    low: float  # 95 % Wilson interval of that share
    high: float
    gain: float  # of all classes' accuracy, a fraction, for `more` more labels of this class
    more: int


@dataclass(frozen=True)
class NextLabels:
    """Which labels to add: classes, the most useful first, and pictures of `--unlabelled`."""

    classes: tuple[ClassGain, ...]
    clear: bool  # whether the first class stands out from what chance gives
    pictures: tuple[tuple[str, float], ...]  # file, margin between its two most probable classes

    def text(self) -> str:
        """In a sentence."""
        if not self.classes or self.classes[0].gain <= 0:
            return "No class would gain: every training picture was answered rightly by a head that had not seen it."
        if not self.clear:
            some = ", ".join(repr(one.name) for one in self.classes[:3])
            return f"No class stands out clearly: spread new labels, and begin with {some}."
        first = self.classes[0]
        return (
            f"Label more pictures of {first.name!r} first: {100 * first.error:.0f} % of its {first.labels} are "
            f"answered wrongly; {first.more} more are expected to bring {100 * first.gain:.1f} points of all "
            "pictures' accuracy."
        )


@dataclass(frozen=True)
class Expected:
    """Expected accuracy on new pictures of this kind, and how that was found."""

    accuracy: float  # mean over seeds on the held-back pictures
    low: float
    high: float
    test_images: int
    n: int  # seeds
    deviation: float  # between seeds

    def how(self) -> str:
        """What the interval rests on."""
        if self.n < 2:
            trained = "one training"
        elif self.deviation < 1e-9:
            trained = f"{self.n} seeds, which gave the same answers"
        else:
            trained = f"{self.n} seeds, deviation {100 * self.deviation:.1f} points"
        return f"95 %: Wilson of {self.test_images:,} held-back pictures, joined with what training varies ({trained})"

    def text(self) -> str:
        """'91.2 % [86.4, 94.4]'."""
        return f"{100 * self.accuracy:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, eq=False)
class Findings:
    """All that was found out about a folder of pictures."""

    pictures: Pictures
    tried: tuple[Candidate, ...]  # the best first
    chosen: Candidate
    expected: Expected
    extrapolation: Extrapolation
    answered: float  # share of the training pictures answered rightly by heads that had not seen them
    confused: tuple[Confused, ...]  # the most frequent first
    doubted: tuple[Doubted, ...]  # the surest first
    wrong_labels: float  # estimated number among the training pictures; too high where classes look alike
    self_test: SelfTest | None  # how many labels that were changed on purpose are found
    next: NextLabels
    notes: tuple[str, ...]  # what was left out and why, ways to get more networks
    seconds: float
    minutes: float  # the budget
    predictor_file: str | None
    trained_on: int  # pictures that the predictor learned from
    thumbnails: tuple[bytes, ...] = ()  # PNG, of the first doubted pictures


def expected_accuracy(accuracies: Sequence[float], test_images: int) -> Expected:
    """Interval of a single training's accuracy on new pictures.

    The test sample: Wilson's interval of the mean accuracy. Training: accuracy of one more training, a t-interval with
    deviation * sqrt(1 + 1 / n). The two sides are joined by squaring and adding (Newcombe 1998; Zou & Donner 2008).
    accuracies: one per seed, all on the same `test_images` pictures."""
    mean, n = float(np.mean(accuracies)), len(accuracies)
    deviation = float(np.std(accuracies, ddof=1)) if n > 1 else 0.0
    low, high = wilson_interval(round(mean * test_images), test_images)
    half = float(special.stdtrit(n - 1, 0.975)) * deviation * math.sqrt(1 + 1 / n) if n > 1 else 0.0
    return Expected(
        accuracy=mean, low=max(0.0, mean - math.hypot(mean - low, half)),
        high=min(1.0, mean + math.hypot(high - mean, half)), test_images=test_images, n=n, deviation=deviation,
    )  # fmt: skip


def confused_pairs(predicted: Sequence[int], labels: Sequence[int], classes: Sequence[str]) -> tuple[Confused, ...]:
    """Pairs of classes that were mistaken, the most frequent first.  predicted, labels: (n,)."""
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predicted)), 1)
    found = [
        Confused(classes[i], classes[j], int(matrix[i, j]), int(matrix[i].sum()), *wilson_interval(
            int(matrix[i, j]), int(matrix[i].sum())
        ))
        for i, j in zip(*np.nonzero(matrix), strict=True) if i != j
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda pair: (-pair.count, pair.true, pair.predicted)))


def class_gains(
    predicted: Sequence[int], labels: Sequence[int], classes: Sequence[str], *, exponent: float
) -> tuple[ClassGain, ...]:
    """What as many labels again as the median class has would bring, given to one class; the most useful first.

    A class's error is taken to fall with its own labels as the whole curve's does, as n^-exponent. That is a rule of
    thumb: labels of a class also help its neighbours, and a class may be hard for another reason than few labels."""
    right = np.asarray(predicted) == np.asarray(labels)
    counts = np.bincount(np.asarray(labels), minlength=len(classes))
    more = max(1, int(np.median(counts[counts > 0])))
    found = []
    for label, name in enumerate(classes):
        n = int(counts[label])
        if n == 0:
            continue
        wrong = int((~right[np.asarray(labels) == label]).sum())
        error = wrong / n
        gain = n / counts.sum() * error * (1 - ((n + more) / n) ** -exponent)
        found.append(ClassGain(name, n, error, *wilson_interval(wrong, n), float(gain), more))
    return tuple(sorted(found, key=lambda one: (-one.gain, one.name)))


def doubts_text(found: Findings) -> str:
    """What the doubted labels are worth, in sentences."""
    n = len(found.doubted)
    if n == 0:
        return "No label is in doubt."
    said = (
        f"{n} of {found.pictures.training:,} training pictures have a label in doubt (confident learning estimates "
        f"{found.wrong_labels:.0f} wrong ones; where classes look alike that is too many)."
    )
    test = found.self_test
    if test is not None:
        said += (
            f" A test on these pictures: of {test.planted} labels that were changed on purpose, "
            f"{100 * test.recall:.0f} % came to be in doubt; of the first {test.planted} in doubt, "
            f"{100 * test.precision:.0f} % were those."
        )
    return said
