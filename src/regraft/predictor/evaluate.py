"""How good answers are to pictures whose classes are known: accuracy, each class, confusion, calibration, losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.analysis.stats import wilson_interval

BINS = 15  # of equal width in confidence, as in Guo et al. 2017


@dataclass(frozen=True)
class ClassScore:
    """One class. Fractions; None where there is nothing to divide by."""

    name: str
    images: int  # of this class
    predicted: int  # images that were said to be of it
    precision: float | None  # share of the predicted ones that are of it
    recall: float | None  # share of its images that were recognised
    f1: float | None  # harmonic mean of both; 0 where neither is above 0


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence."""

    low: float  # confidences in (low, high]
    high: float
    images: int
    confidence: float | None  # mean
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Answers to n pictures of known class."""

    images: int  # n
    correct: int
    accuracy: float  # fraction
    low: float  # 95 % Wilson interval of the accuracy
    high: float
    cross_entropy: float  # mean of -ln(probability of the true class)
    calibration_error: float  # ECE over BINS bins: mean |confidence - accuracy|, weighted by images
    classes: tuple[ClassScore, ...]  # in the predictor's order
    bins: tuple[Bin, ...]
    confusion: NDArray[np.int64]  # (k, k) counts, [true][predicted]
    losses: NDArray[np.float64]  # (n,) -ln(probability of the true class)

    @property
    def worst(self) -> NDArray[np.int64]:
        """Positions (n,) by loss, the highest first."""
        return np.argsort(-self.losses, kind="stable")

    def confused(self, most: int = 20) -> list[tuple[str, str, int]]:
        """(true, predicted, images) of the classes most often mistaken, the most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [(int(i) // len(wrong), int(i) % len(wrong)) for i in order]
        return [(self.classes[a].name, self.classes[b].name, int(wrong[a, b])) for a, b in pairs if wrong[a, b]]

    def told(self) -> dict[str, Any]:
        """As plain data for JSON; losses left out."""
        return {
            **{name: getattr(self, name) for name in ("images", "correct", "accuracy", "cross_entropy")},
            "interval": {"low": self.low, "high": self.high, "level": 0.95, "method": "Wilson"},
            "calibration": {
                "error": self.calibration_error, "bins": len(self.bins), "width": "equal",
                "diagram": [asdict(one) for one in self.bins],
            },
            "classes": [asdict(one) for one in self.classes],
            "confusion": {"rows": "true", "columns": "predicted", "counts": self.confusion.tolist()},
        }  # fmt: skip


def evaluate(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], classes: Sequence[str]) -> Evaluation:
    """probabilities: (n, k), n >= 1.  labels: (n,) in [0, k).  classes: k names."""
    n, k = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    given = probabilities[np.arange(n), labels].astype(np.float64)
    losses = -np.log(np.maximum(given, np.finfo(np.float32).tiny))  # a probability of 0 is one below float32's least
    low, high = wilson_interval(int(right.sum()), n)
    bins = reliability(probabilities, labels)
    return Evaluation(
        images=n, correct=int(right.sum()), accuracy=float(right.mean()), low=low, high=high,
        cross_entropy=float(losses.mean()), calibration_error=_error(bins, n),
        classes=tuple(_class_score(name, i, confusion) for i, name in enumerate(classes)), bins=tuple(bins),
        confusion=confusion, losses=losses,
    )  # fmt: skip


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    values = logits.astype(np.float64)
    powers = np.exp(values - values.max(axis=-1, keepdims=True, initial=-np.inf))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def reliability(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> list[Bin]:
    """The reliability diagram: BINS bins of equal width over the confidence, the probability of the answer."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins = []
    for i in range(BINS):
        inside = place == i
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (None, None)
        bins.append(Bin(i / BINS, (i + 1) / BINS, count, *means))
    return bins


def expected_calibration_error(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """ECE (Naeini et al. 2015; Guo et al. 2017) over BINS bins of equal width; a fraction."""
    return _error(reliability(probabilities, labels), len(labels))


def _error(bins: Sequence[Bin], n: int) -> float:
    gaps = [(one.images, abs(one.confidence - one.accuracy)) for one in bins
            if one.confidence is not None and one.accuracy is not None]  # fmt: skip
    return sum(images * gap for images, gap in gaps) / n


def _class_score(name: str, i: int, confusion: NDArray[np.int64]) -> ClassScore:
    hits, images, predicted = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
    return ClassScore(
        name, images, predicted,
        precision=hits / predicted if predicted else None,
        recall=hits / images if images else None,
        f1=2 * hits / (images + predicted) if images + predicted else None,
    )  # fmt: skip
