"""Ridge regression on one-hot labels: a linear head by one eigendecomposition, for every penalty at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from regraft.learn.solve import (
    Scaling,
    Solved,
    centring_of,
    chunks,
    problems_at_once,
    products_of_images,
    scaling_of,
    standardised_columns,
    with_float64,
)

# Relative to the largest eigenvalue. Along directions of less the images differ by rounding errors only, and the
# weights are 0 along them, which is the solution of least norm.
RANK_TOLERANCE = 1e-12


def ridge(features: Tensor, labels: Tensor, *, classes: int, penalties: Sequence[float]) -> list[Solved]:
    """Least squares with a penalty on the weights; float64 inside.

    Minimises 1 / (2n) * sum over images of |W z + b - one-hot label|^2 + penalty / 2 * |W|^2 for each penalty, z the
    standardised features, the bias unpenalised. scikit-learn's Ridge(alpha=n * penalty) on z has the same solution.
    With fewer images than features the decomposition is that of their (n, n) products. Hoerl & Kennard 1970.

    features: (n, d).  labels: (n,) in [0, classes).  penalties: each >= 0; with 0 the solution of least norm.
    Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    scaling = scaling_of(x)
    shares, targets = _centred(y, classes)
    dual = len(x) < x.shape[1]
    s, directions, along = _dual(x, targets, scaling) if dual else _primal(x, targets, scaling)
    weights = weights_for(s, directions, along, penalties)
    if dual:  # (n, classes) -> (d, classes)
        of_features = [[z.T @ w for w in weights] for z in standardised_columns(x, scaling)]
        weights = [torch.cat(parts) for parts in zip(*of_features, strict=True)]
    folded = (scaling.fold(weight.T, shares) for weight in weights)
    return [Solved(w.to(features.device), b.to(features.device), converged=True, iterations=0) for w, b in folded]


def weights_for(s: Tensor, directions: Tensor, along: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """The solution for each penalty, (r, classes), of images or of features, whichever are fewer.

    s, directions: eigenvalues (r,), rising, and eigenvectors (r, r).  along: targets along them (r, classes)."""
    # Of no rank, of no weight. An infinite eigenvalue makes no exception of it below.
    s = torch.where(s > RANK_TOLERANCE * s[-1], s, torch.inf)
    return [directions @ (along / (s + penalty)[:, None]) for penalty in penalties]


def ridge_each(features: Tensor, labels: Tensor, *, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """`ridge` for many small problems apart, few-shot episodes, on features as they come.

    They are not divided by their deviations, which in a few images are noise.

    features: (p, n, d).  labels: (p, n).  Returns weights (p, classes, d) and biases (p, classes), float32.
    Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    size = problems_at_once(x)
    parts = zip(torch.split(x, size), torch.split(y, size), strict=True)
    solved = [_ridge_each(some_x, some_y, classes, penalty) for some_x, some_y in parts]
    weights, biases = (torch.cat(tensors).to(features.device) for tensors in zip(*solved, strict=True))
    return weights, biases


def _ridge_each(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    scaling = centring_of(x)
    z = scaling(x)  # (p, n, d)
    n, d = z.shape[1:]
    shares, targets = _centred(y, classes)  # (p, classes), (p, n, classes)
    s, directions = torch.linalg.eigh((z @ z.mT if n < d else z.mT @ z) / n)
    along = directions.mT @ (targets if n < d else z.mT @ targets) / n
    s = torch.where(s > RANK_TOLERANCE * s[:, -1:], s, torch.inf)
    weight = directions @ (along / (s + penalty)[..., None])
    return scaling.fold((z.mT @ weight if n < d else weight).mT, shares)


def _centred(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Share of each class (..., classes), which is the bias, and one-hot labels less it (..., n, classes)."""
    targets = one_hot(labels.long(), classes).double()
    shares = targets.mean(-2)
    return shares, targets - shares.unsqueeze(-2)


def _primal(x: Tensor, targets: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (d,) and directions (d, d) of z.T @ z / n, and z.T @ targets / n along them (d, classes)."""
    n, d = x.shape
    gram, moments = targets.new_zeros(d, d), targets.new_zeros(d, targets.shape[1])
    start = 0
    for rows in chunks(x):
        z = scaling(rows)
        gram.addmm_(z.T, z, alpha=1 / n)
        moments.addmm_(z.T, targets[start : start + len(z)], alpha=1 / n)
        start += len(z)
    s, directions = torch.linalg.eigh(gram)
    return s, directions, directions.T @ moments


def _dual(x: Tensor, targets: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (n,) and directions (n, n) of z @ z.T / n, and targets / n along them (n, classes)."""
    s, directions = torch.linalg.eigh(products_of_images(x, scaling))
    return s, directions, directions.T @ targets / len(x)
