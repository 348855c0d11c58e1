"""Features of all cuts for one linear head: how relevant each is, and which are kept.

Evci, Dumoulin, Larochelle & Mozer 2022, "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning"
(arXiv:2201.03529): the pooled features of every layer, each layer's vector at unit norm, are put side by side; a linear
classifier with a group-lasso penalty, one group for each feature, ranks them; a new classifier learns from the best.

Two choices differ from the authors' code. The penalised classifier is solved to its optimum on standardised features,
in place of a fixed number of SGD steps on raw ones: no learning rate, and a feature's unit of measurement plays no
part. And a layer's vector is normalised as a whole before features are selected, not what is left of it afterwards, so
that a feature means the same whichever others are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from regraft.errors import Diverged

COLUMNS = 2048  # features that are standardised at a time: no second copy of all of them
FIRST_FEATURES = 256  # in the first restricted problem
CHECK_EVERY = 10  # steps between looks at the stopping rule


@dataclass(frozen=True)
class GroupLasso:
    """A solution, in standardised features."""

    weight: Tensor  # (d, classes)
    bias: Tensor  # (classes,) float64, on the CPU
    violation: float  # of the optimality conditions, as a share of the penalty from which on all weights are 0
    converged: bool
    iterations: int


def relevance(
    features: Tensor, labels: Tensor, *, classes: int, lasso: float, max_iterations: int = 5000, tolerance: float = 1e-4
) -> Tensor:
    """Relevance (d,) of each feature, >= 0: the length of its weights in the solution of `group_lasso`."""
    found = group_lasso(
        features, labels, classes=classes, lasso=lasso, max_iterations=max_iterations, tolerance=tolerance
    )
    scores: Tensor = found.weight.norm(dim=1)
    return scores


def group_lasso(
    features: Tensor, labels: Tensor, *, classes: int, lasso: float, max_iterations: int = 5000, tolerance: float = 1e-4
) -> GroupLasso:
    """Minimise mean cross-entropy + lasso * sum over features of |weights of the feature|; the bias is free.

    features: (n, d), standardised here; constant ones keep weight 0.  labels: (n,) in [0, classes).
    At the minimum the gradient is -lasso * (direction of the weights) for a feature with weights, and at most lasso
    long for one without. Stops when this holds within `tolerance` times the longest gradient at zero weights, or after
    max_iterations steps. Without a penalty and with fewer images than features there is no minimum; the search then
    ends where the gradient is that small.  Raises Diverged on features that are not finite.

    Most weights are 0, so problems restricted to a growing set of features are solved (working sets, as in Massias,
    Gramfort & Salmon 2018, arXiv:1802.07481), each by accelerated proximal gradient steps."""
    problem = _Problem(features, labels, classes, lasso)
    weight = torch.zeros(features.shape[1], classes, device=features.device, dtype=features.dtype)
    bias = problem.targets.mean(0).clamp_min(1e-6).log()  # the best one for zero weights
    used = torch.zeros(len(weight), dtype=torch.bool, device=features.device)
    logits = bias.expand(len(labels), classes)
    unit = float(problem.gradient(problem.residuals(logits)).norm(dim=1).max())
    if not math.isfinite(unit):
        raise Diverged("features hold NaN or infinity: the source's weights are broken")
    iterations = 0
    while True:
        residuals = problem.residuals(logits)
        wrong = violations(weight, problem.gradient(residuals), lasso)
        violation = max(float(wrong.max()), float(residuals.sum(0).abs().max())) / unit if unit > 0 else 0.0
        if violation <= tolerance or iterations >= max_iterations:
            return GroupLasso(weight, bias, violation, violation <= tolerance, iterations)
        outside = torch.where(used, 0.0, wrong)
        _take_in(used, outside, weight, everything=lasso == 0)
        # A restricted solution much finer than what is still wrong elsewhere would be wasted.
        goal = max(tolerance / 2, 0.1 * float(outside.max()) / unit)
        x = problem.standardised(used.nonzero()[:, 0])
        start = _Point(weight[used], bias, logits)
        found, steps = problem.descend(x, start, goal=goal * unit, most=max_iterations - iterations)
        weight[used], bias, logits = found.weight, found.bias, found.logits
        iterations += steps


def violations(weight: Tensor, gradient: Tensor, lasso: float) -> Tensor:
    """How far each feature is from its optimality condition, (d,) >= 0.  weight, gradient: (d, classes)."""
    length = weight.norm(dim=1, keepdim=True)
    direction = weight / length.clamp_min(1e-30)
    with_weights = (gradient + lasso * direction).norm(dim=1)
    without = (gradient.norm(dim=1) - lasso).clamp_min(0)
    return torch.where(length[:, 0] > 0, with_weights, without)


def _take_in(used: Tensor, outside: Tensor, weight: Tensor, *, everything: bool) -> None:
    """The features with weights, and as many again of those whose conditions are violated most."""
    if everything:
        used.fill_(True)
        return
    torch.gt(weight.norm(dim=1), 0, out=used)
    worst = outside.topk(min(max(FIRST_FEATURES, int(used.sum())), len(outside)))
    used[worst.indices[worst.values > 0]] = True


class _Problem:
    """Mean cross-entropy of a linear classifier on standardised features, and the penalty.

    Logits and residuals are (n, classes) float64 on the CPU, next to nothing beside the features, which stay float32
    and where they are."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, lasso: float) -> None:
        self.features, self.lasso = features, lasso
        self.targets = one_hot(labels.cpu(), classes).double()  # (n, classes)
        self.mean = features.mean(0)
        deviation = features.std(0, correction=0)
        varies = deviation > 1e-6 * self.mean.abs()  # less is rounding
        self.scale = torch.where(varies, deviation, math.inf)  # x / inf: constant features become 0

    def standardised(self, columns: Tensor | slice) -> Tensor:
        """(n, columns), a copy."""
        return (self.features[:, columns] - self.mean[columns]).div_(self.scale[columns])

    def residuals(self, logits: Tensor) -> Tensor:
        """Gradient of the loss in the logits."""
        return (logits.softmax(1) - self.targets) / len(self.targets)

    def gradient(self, residuals: Tensor) -> Tensor:
        """Gradient of the loss in all weights, (d, classes)."""
        starts = range(0, len(self.mean), COLUMNS)
        return torch.cat([_product(self.standardised(slice(i, i + COLUMNS)), residuals) for i in starts])

    def descend(self, x: Tensor, start: _Point, *, goal: float, most: int) -> tuple[_Point, int]:
        """From `start` on, for features x: (n, s) alone, until no condition is violated by more than `goal`.

        Returns the solution and the number of steps. FISTA (Beck & Teboulle 2009) with momentum dropped where it points
        uphill (O'Donoghue & Candes 2015, arXiv:1204.3982)."""
        here = ahead = start  # momentum carries the search ahead
        inertia, curvature = 1.0, 1.0
        for step in range(1, most + 1):
            new, curvature = self._step(x, ahead, 0.9 * curvature)
            if ahead.minus(new).dot(new.minus(here)) > 0:
                inertia = 1.0
            following = (1 + math.sqrt(1 + 4 * inertia * inertia)) / 2
            ahead = new.plus((inertia - 1) / following, new.minus(here))
            here, inertia = new, following
            if step % CHECK_EVERY == 0 and self._violation(x, here) <= goal:
                break
        return here, step

    def _step(self, x: Tensor, origin: _Point, curvature: float) -> tuple[_Point, float]:
        """A proximal gradient step, no longer than the loss's curvature allows, and that curvature.

        It is searched upwards from the one given: along the few directions in which a sparse solution moves, the loss
        is curved hundreds of times less than its bound says."""
        bound = 0.5 * (x.shape[1] + 1)  # x has unit variances, softmax a Hessian of at most 1/2
        residuals = self.residuals(origin.logits)
        gradient, of_bias = _product(x, residuals), residuals.sum(0)
        while True:
            weight = _shrunk(origin.weight - gradient / curvature, self.lasso / curvature)
            bias = origin.bias - of_bias / curvature
            new = _Point(weight, bias, _logits(x, weight, bias))
            moved = new.minus(origin)
            if curvature >= bound or self._bregman(new, origin, residuals) <= 0.5 * curvature * moved.dot(moved):
                return new, curvature
            curvature *= 2

    def _bregman(self, new: _Point, origin: _Point, residuals: Tensor) -> float:
        """loss(new) - loss(origin) - <gradient at origin, new - origin>; in logits, so that little cancels."""
        change = new.logits - origin.logits
        return float(
            (new.logits.logsumexp(1) - origin.logits.logsumexp(1)).mean()
            - (self.targets * change).sum() / len(change)
            - (residuals * change).sum()
        )

    def _violation(self, x: Tensor, point: _Point) -> float:
        residuals = self.residuals(point.logits)
        wrong = violations(point.weight, _product(x, residuals), self.lasso)
        return max(float(wrong.max()), float(residuals.sum(0).abs().max()))


@dataclass(frozen=True)
class _Point:
    """Where a search is, or a difference of two such places."""

    weight: Tensor  # (s, classes)
    bias: Tensor  # (classes,)
    logits: Tensor  # (n, classes), linear in the other two

    def minus(self, other: _Point) -> _Point:
        return self.plus(-1.0, other)

    def plus(self, share: float, other: _Point) -> _Point:
        return _Point(
            self.weight + share * other.weight, self.bias + share * other.bias, self.logits + share * other.logits
        )

    def dot(self, other: _Point) -> float:
        return float((self.weight * other.weight).sum()) + float((self.bias * other.bias).sum())


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # (n, classes)
    return (x @ weight).cpu().double() + bias


def _product(x: Tensor, residuals: Tensor) -> Tensor:
    """x.T @ residuals (s, classes); in this order 4 times as fast on a CPU, for many images and few classes."""
    return (residuals.to(x.device, x.dtype).T @ x).T


def _shrunk(weight: Tensor, by: float) -> Tensor:
    """Each feature's weights (d, classes) shortened by `by`, down to 0: the penalty's proximal step."""
    length = weight.norm(dim=1, keepdim=True)
    shorter: Tensor = weight * (1 - by / length.clamp_min(1e-30)).clamp_min(0)
    return shorter


def normalise_blocks(blocks: Sequence[Tensor]) -> list[Tensor]:
    """Each cut's features (n, d_i), every image's vector at unit length; a vector of zeros stays.

    Layers differ in scale by orders of magnitude, and so do images within one. An image's own features are all that is
    needed, so a new image is treated as the training images were."""
    return [normalize(block, dim=1, eps=1e-12) for block in blocks]


def select(scores: Tensor, share: float) -> Tensor:
    """Indices (kept,), sorted, of the best `share` of all features, at least one.

    scores: (d,) >= 0. Of equal scores the lower index is taken first. Features of score 0 are left out, so that fewer
    than `share` may be kept, unless all are 0."""
    wanted = max(1, round(share * len(scores)))
    relevant = int((scores > 0).sum())
    ranked = torch.sort(scores, descending=True, stable=True).indices
    return ranked[: min(wanted, relevant) if relevant else wanted].sort().values


class SelectedFeatures(nn.Module):
    """The kept columns of all cuts' pooled features, each cut's vector at unit length."""

    indices: Tensor

    def __init__(self, widths: Sequence[int], indices: Tensor) -> None:
        """widths: of each cut's features, d in all.  indices: (kept,) in [0, d)."""
        super().__init__()
        self.widths = list(widths)
        self.register_buffer("indices", indices)

    def forward(self, features: Tensor) -> Tensor:  # raw, side by side (n, d) -> (n, kept)
        blocks = normalise_blocks(torch.split(features, self.widths, dim=1))
        return torch.cat(blocks, dim=1)[:, self.indices]

    def extra_repr(self) -> str:
        return f"{len(self.indices)} of {sum(self.widths)} features"
