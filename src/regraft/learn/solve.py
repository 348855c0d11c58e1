"""Heads with a closed or convex solution: no epochs, no learning rate."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor


def logistic_regression(
    features: Tensor, labels: Tensor, *, classes: int, weight_decay: float, max_iterations: int
) -> tuple[Tensor, Tensor, bool]:
    """Multinomial logistic regression on standardised features, by L-BFGS in float64.

    Minimises mean cross-entropy + weight_decay / 2 * |W|^2, the bias unpenalised; scikit-learn's
    LogisticRegression(C=1 / (n * weight_decay)) has the same optimum.

    features: (n, d).  labels: (n,) in [0, classes).
    Returns weight (classes, d) and bias (classes,), the standardisation folded in, float32, and whether the
    tolerance was reached within the iterations."""
    x = features.cpu().double()  # in this order: Apple's MPS has no float64
    y = labels.cpu()
    mean = x.mean(0)
    scale = x.std(0, correction=0)
    scale = torch.where(scale > 1e-8, scale, torch.ones_like(scale))  # constant features stay at zero
    basis = _well_conditioned((x - mean) / scale, classes=classes, weight_decay=weight_decay)
    z = ((x - mean) / scale @ basis).float()  # (n, r); products in float32, sums and the search in float64
    lengths = basis.square().sum(0)  # (r,) the basis is orthogonal: |W|^2 = sum of lengths * v^2
    n, r = z.shape
    rows = torch.arange(n)

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).view(classes, r + 1)
        v, bias = parameters[:, :r], parameters[:, r]
        log_p = torch.log_softmax((z @ v.float().T).double() + bias, dim=1)  # (n, classes)
        loss = -log_p[rows, y].mean() + 0.5 * weight_decay * (v.square() * lengths).sum()
        delta = log_p.exp()
        delta[rows, y] -= 1.0
        delta /= n
        gradient = (delta.float().T @ z).double() + weight_decay * v * lengths
        return float(loss), torch.cat([gradient, delta.sum(0)[:, None]], dim=1).flatten().numpy()

    start = np.zeros(classes * (r + 1))
    options = {"maxiter": max_iterations, "ftol": 1e-6, "gtol": 1e-5}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)  # type: ignore[call-overload]
    parameters = torch.from_numpy(found.x).view(classes, r + 1)
    weight = parameters[:, :r] @ basis.T / scale
    bias = parameters[:, r] - weight @ mean
    converged = bool(found.success) or float(np.abs(found.jac).max()) < 1e-4
    return weight.float(), bias.float(), converged


def _well_conditioned(x: Tensor, *, classes: int, weight_decay: float) -> Tensor:
    """Orthogonal directions (d, r), each as long as makes the loss about equally curved along all of them.

    At zero weights the loss of softmax regression has curvature s / classes + weight_decay along a direction in which
    the features vary by s; features of deep networks differ in s by orders of magnitude, and L-BFGS then takes hundreds
    of steps. Directions that no feature vector touches (fewer images than features) are left out: the penalty keeps
    their weights at zero. The optimum is the same."""
    n, d = x.shape
    if n < d:
        _, singular, rows = torch.linalg.svd(x, full_matrices=False)
        s, directions = singular.square() / n, rows.T
    else:
        s, directions = torch.linalg.eigh(x.T @ x / n)
    kept = s > 1e-10 * s.max()
    basis: Tensor = directions[:, kept] / (s[kept] / classes + weight_decay).sqrt()
    return basis
