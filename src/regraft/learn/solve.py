"""Heads with a closed or convex solution: no epochs, no learning rate."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor


def logistic_regression(
    features: Tensor, labels: Tensor, *, classes: int, weight_decay: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on standardised features, by L-BFGS in float64.

    Minimises mean cross-entropy + weight_decay / 2 * |W|^2, the bias unpenalised; scikit-learn's
    LogisticRegression(C=1 / (n * weight_decay)) has the same optimum.

    features: (n, d).  labels: (n,) in [0, classes).
    Returns weight (classes, d) and bias (classes,), the standardisation folded in, float32."""
    x = features.double().cpu()
    y = labels.cpu()
    mean = x.mean(0)
    scale = x.std(0, correction=0)
    scale = torch.where(scale > 1e-8, scale, torch.ones_like(scale))  # constant features stay at zero
    x = (x - mean) / scale
    n, d = x.shape
    rows = torch.arange(n)

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).view(classes, d + 1)
        weight, bias = parameters[:, :d], parameters[:, d]
        log_p = torch.log_softmax(x @ weight.T + bias, dim=1)  # (n, classes)
        loss = -log_p[rows, y].mean() + 0.5 * weight_decay * weight.square().sum()
        delta = log_p.exp()
        delta[rows, y] -= 1.0
        delta /= n
        gradient = torch.cat([delta.T @ x + weight_decay * weight, delta.sum(0)[:, None]], dim=1)
        return float(loss), gradient.flatten().numpy()

    start = np.zeros(classes * (d + 1))
    options = {"maxiter": max_iterations, "ftol": 1e-10, "gtol": 1e-6}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)  # type: ignore[call-overload]
    parameters = torch.from_numpy(found.x).view(classes, d + 1)
    weight = parameters[:, :d] / scale
    bias = parameters[:, d] - weight @ mean
    return weight.float(), bias.float()
