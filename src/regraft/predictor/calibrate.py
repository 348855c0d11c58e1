"""Temperature scaling: probabilities that mean what they say, fitted on validation images.

Guo, Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599): probabilities are
softmax(logits / T), with the T that gives validation images the smallest cross-entropy. It changes no predicted class.

One thing is added: log T has a standard normal prior, as if T were known to within a factor of 2.7 before any image is
seen. Where a few validation images are all answered correctly, T would otherwise be 0 and every answer certain; among
hundreds of images it makes no difference that matters. The cross-entropy never gets worse than without a temperature.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from regraft.predictor.evaluate import expected_calibration_error, softmax

WIDEST = math.log(1e3)  # |log T| searched
GRID = 61  # values of log T that are tried before the best of them is refined: the prior may leave two valleys


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """T > 0.  logits: (n, k) of n >= 1 validation images.  labels: (n,) in [0, k)."""
    from scipy.optimize import minimize_scalar  # half a second, and most who load this module have a predictor already

    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    given = float(values[np.arange(len(values)), labels].sum())

    def loss(log_temperature: float) -> float:
        sharpness = math.exp(-log_temperature)
        cross_entropy = float(logsumexp(sharpness * values, axis=1).sum()) - sharpness * given
        return cross_entropy + log_temperature**2 / 2

    tried = np.linspace(-WIDEST, WIDEST, GRID)
    best = min(tried.tolist(), key=loss)
    around = (best - tried[1] + tried[0], best + tried[1] - tried[0])
    found = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-9})
    return math.exp(float(found.x))


def calibrate(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> tuple[float, dict[str, Any]]:
    """(T, what to state of it): cross-entropy and calibration error on these very images, before and after."""
    temperature = fit_temperature(logits, labels)
    told: dict[str, Any] = {"method": "temperature", "part": "validation", "images": len(labels)}
    for name, divisor in (("before", 1.0), ("after", temperature)):
        probabilities = softmax(logits.astype(np.float64) / divisor)
        given = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
        told[name] = {
            "cross_entropy": round(float(-np.log(given).mean()), 6),
            "calibration_error": round(expected_calibration_error(probabilities, labels), 6),
        }
    return temperature, told
