"""Multinomial logistic regression: linear heads for many penalties, or many few-shot episodes, solved together.

Features are turned to their eigenbasis, once for all problems; `lbfgs` does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from regraft.learn.lbfgs import Images, OwnImages, SharedImages, minimise, with_ones
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

TOLERANCE = 1e-4  # a bound; losses end up several times closer to the optimum
EACH_TOLERANCE = 1e-6  # small problems are cheap
CHUNK_LOGITS = 2**26  # held at a time for each of four arrays: 256 MiB
RANK_TOLERANCE = 1e-12  # of the largest eigenvalue


def logistic(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalties: Sequence[float],
    max_iterations: int,
    tolerance: float = TOLERANCE,
) -> list[Solved]:
    """Minimises mean cross-entropy + penalty / 2 * |W|^2 for each penalty, on standardised features, bias unpenalised.

    scikit-learn's LogisticRegression(C=1 / (n * penalty)) on standardised features has the same optimum. Products are
    in float32, losses summed in float64. Converged is a problem whose loss is known to lie at most `tolerance` * loss
    above its optimum (at most `tolerance` / 1000, for losses below 0.001): the penalty makes the loss strongly convex,
    so that |gradient|^2 / (2 * penalty) bounds the gap. Without a penalty: no entry of the gradient above 1e-5.
    Together or alone, solutions differ within that tolerance only.

    features: (n, d).  labels: (n,) in [0, classes); a class without images gets a low, finite bias.
    penalties: each >= 0.  Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    n = len(x)
    scaling = scaling_of(x)
    u, s, directions = _dual_basis(x, scaling) if n < x.shape[1] else _primal_basis(x, scaling)
    solved = in_groups(
        SharedImages(u), y, s, penalties, classes=classes, max_iterations=max_iterations, tolerance=tolerance
    )
    found = []
    for w, c, i in solved:
        weight, bias = scaling.fold(w[:, :-1].double() @ directions.T, w[:, -1])
        found.append(Solved(weight.to(features.device), bias.to(features.device), c, i))
    return found


def in_groups(
    images: Images, y: Tensor, s: Tensor, penalties: Sequence[float],
    *, classes: int, max_iterations: int, tolerance: float,
) -> Iterator[tuple[Tensor, bool, int]]:  # fmt: skip
    """For each penalty weights (classes, r), whether they converged, and in how many iterations.

    y: labels (n,).  s: (r - 1,) as `minimise` takes it. As many penalties at a time as their logits allow."""
    at_once = max(1, CHUNK_LOGITS // (len(y) * classes))
    for group in torch.split(torch.tensor(penalties, dtype=torch.float32, device=y.device), at_once):
        m = len(group)
        weights, converged, iterations = minimise(
            images, y[:, None].expand(len(y), m), s.expand(m, -1), group,
            classes=classes, max_iterations=max_iterations, tolerance=tolerance,
        )  # fmt: skip
        yield from zip(weights, converged.tolist(), iterations.tolist(), strict=True)


def logistic_each(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalty: float,
    max_iterations: int,
    tolerance: float = EACH_TOLERANCE,
) -> tuple[Tensor, Tensor]:
    """`logistic` for many small problems apart, few-shot episodes, on features as they come.

    They are not divided by their deviations, which in a few images are noise.

    features: (p, n, d).  labels: (p, n).  Returns weights (p, classes, d) and biases (p, classes), float32.
    Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    size = problems_at_once(x)
    weights, biases = [], []
    for some_x, some_y in zip(torch.split(x, size), torch.split(y, size), strict=True):
        scaling = centring_of(some_x)
        z = scaling(some_x)  # (p, n, d)
        n, d = z.shape[1:]
        s, directions = torch.linalg.eigh((z @ z.mT if n < d else z.mT @ z) / n)
        s, directions = s.flip(-1), directions.flip(-1)
        if n < d:  # (p, n, n) -> (p, d, n); where an episode has no rank, directions are 0 and so are the weights
            lengths = torch.where(s > RANK_TOLERANCE * s[:, :1], (n * s).sqrt(), torch.inf)
            directions = z.mT @ directions / lengths[:, None, :]
        u = with_ones((z @ directions).float())
        penalties = torch.full((len(z),), penalty, dtype=torch.float32, device=z.device)
        w, _, _ = minimise(
            OwnImages(u), some_y.T, s.float(), penalties,
            classes=classes, max_iterations=max_iterations, tolerance=tolerance,
        )  # fmt: skip
        weight, bias = scaling.fold(w[..., :-1].double() @ directions.mT, w[..., -1])
        weights.append(weight.to(features.device))
        biases.append(bias.to(features.device))
    return torch.cat(weights), torch.cat(biases)


# --- features in their eigenbasis -------------------------------------------------------------------------------


def _primal_basis(x: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised features in their eigenbasis, (n, d + 1) float32 with ones; eigenvalues (d,); basis (d, d).

    float32 does: any orthonormal basis gives the same optimum, this one gives it soon."""
    z = torch.cat([scaling(rows).float() for rows in chunks(x)])
    s, directions = torch.linalg.eigh(z.T @ z / len(z))
    return with_ones(z @ directions), s.clamp(min=0), directions.double()


def _dual_basis(x: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """The same for fewer images than features: (n, r + 1), (r,) and (d, r), r < n.

    The penalty keeps the weights at 0 along all other directions."""
    s, of_images = torch.linalg.eigh(products_of_images(x, scaling))
    kept = s > RANK_TOLERANCE * s[-1]
    lengths = (len(x) * s[kept]).sqrt()
    u = of_images[:, kept] * lengths
    shares = of_images[:, kept] / lengths
    directions = torch.cat([z.T @ shares for z in standardised_columns(x, scaling)])
    return with_ones(u.float()), s[kept].float(), directions
