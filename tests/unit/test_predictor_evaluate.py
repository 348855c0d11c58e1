"""Accuracy, classes, calibration and temperature against definitions and scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from regraft.analysis.stats import wilson_interval
from regraft.predictor.calibrate import calibrate, fit_temperature
from regraft.predictor.evaluate import BINS, evaluate, expected_calibration_error, softmax
from regraft.seeding import stream

NAMES = ("ant", "bee", "cow", "dog")


def drawn(n: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true probability of each class, times `sharpness`; labels drawn from it."""
    random = stream(3, "drawn", n)
    logits = 2 * random.standard_normal((n, len(NAMES)))
    labels = np.array([random.choice(len(NAMES), p=row) for row in softmax(logits)])
    return sharpness * logits, labels


def test_scores_of_classes_are_those_of_scikit_learn() -> None:
    logits, labels = drawn(300)
    found = evaluate(softmax(logits), labels, NAMES)
    predicted = logits.argmax(axis=1)
    precision, recall, f1, images = precision_recall_fscore_support(labels, predicted)
    for i, one in enumerate(found.classes):
        assert (one.precision, one.recall, one.f1, one.images) == pytest.approx(
            (precision[i], recall[i], f1[i], images[i])
        )
        assert one.name == NAMES[i]
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted))
    assert (found.low, found.high) == wilson_interval(found.correct, 300)
    assert found.accuracy == found.correct / 300 == np.trace(found.confusion) / 300


def test_a_class_that_is_never_met_or_never_answered_has_no_share() -> None:
    found = evaluate(np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), np.array([0, 0]), ("a", "b", "c"))
    a, b, c = found.classes
    assert (a.precision, a.recall, round(a.f1 or 0, 9)) == (1.0, 0.5, round(2 / 3, 9))
    assert (b.precision, b.recall, b.f1) == (0.0, None, 0.0)
    assert (c.precision, c.recall, c.f1) == (None, None, None)
    assert found.confused() == [("a", "b", 1)]


def test_the_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    # 10 answers of 0.95, of which 8 are right; 30 of 0.61, of which 12 are: gaps of 0.15 and 0.21
    probabilities = np.array([[0.95, 0.05]] * 10 + [[0.61, 0.39]] * 30)
    labels = np.array([0] * 8 + [1] * 2 + [0] * 12 + [1] * 18)
    assert expected_calibration_error(probabilities, labels) == pytest.approx((10 * 0.15 + 30 * 0.21) / 40)
    bins = evaluate(probabilities, labels, ("a", "b")).bins
    assert len(bins) == BINS
    assert sum(one.images for one in bins) == 40
    assert all(one.low < one.confidence <= one.high for one in bins if one.confidence is not None)


def test_certain_answers_lie_in_the_last_bin() -> None:
    bins = evaluate(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]), ("a", "b")).bins
    assert bins[-1].images == 1
    assert sum(one.images for one in bins) == 2


def test_the_worst_come_first_and_a_wrong_certainty_stays_finite() -> None:
    probabilities = np.array([[0.9, 0.1], [0.0, 1.0], [0.6, 0.4]], np.float32)
    found = evaluate(probabilities, np.array([0, 0, 1]), ("a", "b"))
    assert found.worst.tolist() == [1, 2, 0]
    assert math.isfinite(found.cross_entropy)
    json.dumps(found.told(), allow_nan=False)


# --- temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_a_wrong_sharpness(sharpness: float) -> None:
    logits, labels = drawn(4000, sharpness)
    temperature, told = calibrate(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.06)  # four standard errors of 4,000 labels
    assert told["after"]["calibration_error"] < 0.03
    assert told["after"]["cross_entropy"] <= told["before"]["cross_entropy"]


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_calibration_never_makes_the_cross_entropy_worse(n: int) -> None:
    logits, labels = drawn(n, 3.0)
    _, told = calibrate(logits, labels)
    assert told["after"]["cross_entropy"] <= told["before"]["cross_entropy"] + 1e-6


def test_a_few_right_answers_do_not_make_every_answer_certain() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    temperature = fit_temperature(logits, np.array([0, 1, 0]))
    assert 0.3 < temperature < 1.0


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_a_shift_of_all_logits_changes_no_temperature(shift: float) -> None:
    logits, labels = drawn(50)
    assert fit_temperature(logits + shift, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-5)
