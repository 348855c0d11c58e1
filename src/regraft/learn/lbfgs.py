"""Softmax regression for many problems at once by L-BFGS (Liu & Nocedal 1989): two matrix products an iteration.

Three things make it quick. The features come in their eigenbasis: along a direction in which they vary by s the
loss has a curvature of about k * s + penalty, k = (1 - mean |p|^2) / classes, p the probabilities so far; steps are
taken in that metric. Logits are linear in the weights, so that the length of a step is tried without a matrix product.
And a problem leaves the batch as soon as the gap to its optimum is known to be small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

MEMORY = 10  # pairs of steps and changes of the gradient; 5, 20 and 40 took as many iterations, within 6 %
LEAST_LOSS = 1e-3  # of a smaller loss, the tolerance is relative to this: float32 gradients resolve no more
FLAT = 1e-5  # largest entry of the gradient at which a problem without penalty is solved
LEAST_SHARE = 1e-8  # images of a class that has none, for a finite bias
SUFFICIENT = 1e-4  # share of the decrease promised by the slope that a step must bring (Armijo 1966)
ROUNDING = 1e-7  # of a loss, in float32
ATTEMPTS = 20  # at a step, the last with a length of 0
IDLE = 10  # steps in a row too small for the loss to show them: it will not get lower


class Images(Protocol):
    """Coordinates of the images of m problems, the last of r being 1, for the bias."""

    def logits(self, weights: Tensor) -> Tensor:
        """(m, classes, r) -> (n, m, classes)"""
        ...

    def gradient(self, errors: Tensor) -> Tensor:
        """(n, m, classes) -> (m, classes, r), the mean over the images"""
        ...

    def of(self, problems: Tensor) -> Images:
        """For some of the problems, given as a mask (m,)."""
        ...


@dataclass(frozen=True)
class SharedImages:
    """The same images for all problems: one matrix product over problems and classes."""

    u: Tensor  # (n, r)

    def logits(self, weights: Tensor) -> Tensor:
        return (self.u @ weights.flatten(0, 1).T).view(-1, *weights.shape[:2])

    def gradient(self, errors: Tensor) -> Tensor:
        return (errors.flatten(1).T @ self.u).view(*errors.shape[1:], -1) / len(self.u)

    def of(self, problems: Tensor) -> SharedImages:
        return self


@dataclass(frozen=True)
class OwnImages:
    """Each problem has its own images."""

    u: Tensor  # (m, n, r)

    def logits(self, weights: Tensor) -> Tensor:
        return (self.u @ weights.mT).transpose(0, 1).contiguous()

    def gradient(self, errors: Tensor) -> Tensor:
        return errors.permute(1, 2, 0) @ self.u / self.u.shape[1]

    def of(self, problems: Tensor) -> OwnImages:
        return OwnImages(self.u[problems])


def with_ones(u: Tensor) -> Tensor:  # (..., n, r) -> (..., n, r + 1)
    """The coordinate that belongs to the bias, appended."""
    return pad(u, (0, 1), value=1.0)


@dataclass(frozen=True)
class _Pair:
    step: Tensor  # (m, classes, r)
    change: Tensor  # (m, classes, r) of the gradient
    weight: Tensor  # (m, 1, 1) 1 / (step . change); 0 where rounding has left no curvature to learn from


@dataclass(frozen=True)
class _Batch:
    """Problems not yet solved, and how far they are. float32, losses float64."""

    which: Tensor  # (m,) positions in the whole batch
    images: Images
    labels: Tensor  # (n, m)
    s: Tensor  # (m, 1, r) mean squares of the coordinates
    penalty: Tensor  # (m, 1, r) 0 for the bias
    weights: Tensor  # (m, classes, r)
    logits: Tensor  # (n, m, classes)
    loss: Tensor  # (m,)
    log_p: Tensor  # (n, m, classes)
    idle: Tensor  # (m,) latest steps that the loss does not show
    pairs: tuple[_Pair, ...] = ()

    def of(self, problems: Tensor) -> _Batch:
        """Some of the problems, given as a mask (m,)."""
        first = {k: getattr(self, k)[problems] for k in ("which", "s", "penalty", "weights", "loss", "idle")}
        second = {k: getattr(self, k)[:, problems] for k in ("labels", "logits", "log_p")}
        pairs = tuple(_Pair(p.step[problems], p.change[problems], p.weight[problems]) for p in self.pairs)
        return _Batch(**first, **second, images=self.images.of(problems), pairs=pairs)


def minimise(
    images: Images,
    labels: Tensor,
    s: Tensor,
    penalties: Tensor,
    *,
    classes: int,
    max_iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimises mean cross-entropy + penalty / 2 * |weights|^2 of each problem, the last weight of a class being free.

    labels: (n, m).  s: (m, r - 1) mean squares of the coordinates, the one of the bias aside.  penalties: (m,).
    Returns weights (m, classes, r), and for each problem (m,) whether its loss is known to lie at most
    tolerance * loss above the optimum, and the iterations it took."""
    weights = _start(labels, classes, s.shape[1] + 1)
    solved = torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
    iterations = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
    penalty = pad(penalties[:, None].expand_as(s), (0, 1))[:, None]  # (m, 1, r)
    logits = images.logits(weights)
    loss, log_p = _loss(logits, labels, weights, penalty)
    which = torch.arange(len(weights), device=weights.device)
    idle = torch.zeros_like(which)
    batch = _Batch(which, images, labels, with_ones(s)[:, None], penalty, weights, logits, loss, log_p, idle)
    gradient, curvature = _gradient(batch)
    for iteration in range(max_iterations + 1):
        done = _gap(batch, gradient, curvature) <= tolerance * batch.loss.clamp(min=LEAST_LOSS)
        leaving = done | (batch.idle == IDLE) | (iteration == max_iterations)
        if leaving.any():
            left = batch.which[leaving]
            weights[left], solved[left], iterations[left] = batch.weights[leaving], done[leaving], iteration
            batch, gradient, curvature = batch.of(~leaving), gradient[~leaving], curvature[~leaving]
            if len(batch.which) == 0:
                break
        step, batch = _step(batch, _direction(batch, gradient, curvature), gradient)
        before = gradient
        gradient, curvature = _gradient(batch)
        batch = replace(batch, pairs=(*batch.pairs[1 - MEMORY :], _pair(step, gradient - before)))
    return weights, solved, iterations


def _start(labels: Tensor, classes: int, r: int) -> Tensor:
    """Weights of 0, biases that give each class its share of the images: the optimum for a penalty without end."""
    n, m = labels.shape
    counts = torch.zeros(classes, m, device=labels.device).scatter_add_(0, labels, torch.ones_like(labels).float())
    weights = torch.zeros(m, classes, r, device=labels.device)
    biases = (counts.T.clamp(min=LEAST_SHARE / classes) / n).log()  # (m, classes)
    weights[:, :, -1] = biases - biases.mean(1, keepdim=True)  # only differences matter; no step changes the sum
    return weights


def _loss(logits: Tensor, labels: Tensor, weights: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (m,) float64 and log-probabilities (n, m, classes)."""
    log_p = logits.log_softmax(2)
    likelihood = log_p.gather(2, labels[..., None])[..., 0]  # (n, m)
    return 0.5 * _dot(weights, penalty * weights) - likelihood.double().mean(0), log_p


def _gradient(batch: _Batch) -> tuple[Tensor, Tensor]:
    """Gradients (m, classes, r), and for each problem the mean curvature k (m, 1, 1) of its cross-entropy."""
    errors = batch.log_p.exp()  # first the probabilities
    k = (1 - errors.square().sum(2).mean(0)) / errors.shape[2]
    errors.scatter_add_(2, batch.labels[..., None], torch.full_like(batch.labels[..., None], -1, dtype=errors.dtype))
    return batch.images.gradient(errors) + batch.penalty * batch.weights, k.clamp(min=1e-12)[:, None, None]


def _gap(batch: _Batch, gradient: Tensor, k: Tensor) -> Tensor:
    """How far at most each loss (m,) lies above its optimum.

    A function of curvature c or more lies at most |gradient|^2 / (2 c) above its minimum; the penalty gives c for the
    weights. The bias has none: its mean curvature is taken instead. No loss lies further from it than from 0. Without
    penalty, a problem with a flat gradient counts as solved."""
    penalty = batch.penalty[:, :, :1]
    bias = torch.zeros_like(batch.penalty)
    bias[..., -1:] = torch.minimum(k, penalty)
    bound = _dot(gradient, gradient / (2 * (batch.penalty + bias).clamp(min=1e-30)))
    flat = (penalty.flatten() == 0) & (gradient.flatten(1).abs().amax(1) < FLAT)
    return torch.where(flat, 0.0, torch.minimum(bound, batch.loss))


def _direction(batch: _Batch, gradient: Tensor, k: Tensor) -> Tensor:
    """Minus the inverse of the curvature, as far as the pairs tell it, times the gradient (m, classes, r)."""
    # Of rounding errors only are coordinates with an s that far below the largest.
    metric = k * torch.maximum(batch.s, 1e-7 * batch.s.amax(2, keepdim=True)) + batch.penalty
    q = gradient.clone()
    shares = []
    for pair in reversed(batch.pairs):
        share = pair.weight * _dot32(pair.step, q)
        q.sub_(share * pair.change)
        shares.append(share)
    q /= metric
    if batch.pairs:
        last = batch.pairs[-1]
        scale = 1 / (last.weight * _dot32(last.change, last.change / metric))
        q *= torch.where(last.weight > 0, scale, 1.0)
    for pair, share in zip(batch.pairs, reversed(shares), strict=True):
        q.add_((share - pair.weight * _dot32(pair.change, q)) * pair.step)
    return -q


def _step(batch: _Batch, direction: Tensor, gradient: Tensor) -> tuple[Tensor, _Batch]:
    """Steps (m, classes, r) along `direction`, each of length 1 if that lowers the loss enough, else shorter."""
    slope = _dot(gradient, direction)  # (m,)
    change = batch.images.logits(direction)
    length, fit = torch.ones_like(slope), torch.zeros_like(slope, dtype=torch.bool)
    for attempt in range(ATTEMPTS):
        if attempt == ATTEMPTS - 1:
            length = torch.where(fit, length, 0.0)
        step = length.float()[:, None, None] * direction
        weights = batch.weights + step
        logits = torch.addcmul(batch.logits, length.float()[:, None], change)
        loss, log_p = _loss(logits, batch.labels, weights, batch.penalty)
        rise = loss - batch.loss
        fit = rise <= SUFFICIENT * length * slope + ROUNDING * batch.loss
        if fit.all():
            break
        # To the minimum of the parabola through what is known, within limits
        factor = (-slope * length / (2 * (rise - slope * length))).clamp(0.1, 0.5)
        length = torch.where(fit, length, length * factor)
    idle = torch.where(rise < -ROUNDING * batch.loss, 0, batch.idle + 1)
    return step, replace(batch, weights=weights, logits=logits, loss=loss, log_p=log_p, idle=idle)


def _pair(step: Tensor, change: Tensor) -> _Pair:
    product = _dot32(step, change)
    enough = product > 1e-10 * (_dot32(step, step) * _dot32(change, change)).sqrt()
    return _Pair(step, change, torch.where(enough, 1 / product, 0.0))


def _dot(a: Tensor, b: Tensor) -> Tensor:  # (m, classes, r) twice -> (m,) float64
    return _dot32(a, b).flatten().double()


def _dot32(a: Tensor, b: Tensor) -> Tensor:  # (m, classes, r) twice -> (m, 1, 1)
    return (a * b).sum((1, 2), keepdim=True)
