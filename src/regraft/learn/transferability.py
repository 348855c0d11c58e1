"""Transferability scores: how well a source's features suit a target, guessed without training a head.

Each is a pure function of features (n, d), or of the source's answers, and labels (n,) of training images; the higher
the better. All is float64 inside. None depends on how classes are numbered, and classes without images play no part.
Whether such a score is worth anything is for `regraft.analysis.adviser` to say, which sets it beside the trivial ones:
depth, size, width, and `ridge_probe`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.learn.score_names import H_SCORE, LEEP, LOGME, NCE, PROBE, TRANSRATE
from regraft.learn.solve import Scaling, centring_of, chunks, products_of_images, scaling_of, with_float64

# Relative to the largest eigenvalue. Along directions of less the images differ by rounding errors only.
RANK_TOLERANCE = 1e-10
POWERS = 12  # of ten, by which LogME's precisions may differ, relative to the mean eigenvalue, if it has no maximum
LOGME_STEPS = 100  # at most; a handful suffices but where the maximum lies at 0 or infinity
LOGME_TOLERANCE = 1e-4  # relative, of the ratio: the evidence is flat where it is largest
DISTORTION = 1e-4  # TransRate's epsilon, as in Huang et al.'s listing
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # of the ridge probe


@dataclass(frozen=True)
class Spectrum:
    """Features by their principal directions: X = sqrt(n) * u @ diag(sqrt(values)) @ directions.T."""

    u: Tensor  # (n, k) orthonormal columns
    values: Tensor  # (k,) > 0, ascending: eigenvalues of X.T @ X / n
    width: int  # d

    @property
    def n(self) -> int:
        return len(self.u)


def feature_scores(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Every score that takes features, by name. Faster than one by one.

    features: (n, d).  labels: (n,) integers.  Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    targets, centred = _one_hot(y), _centred(x)
    return {
        LOGME: _logme(_as_they_come(x), targets),
        H_SCORE: _h_score(centred, targets),
        TRANSRATE: _transrate(centred, y),
        PROBE: _ridge_probe(_standardised(x), targets, PENALTIES),
    }


def answer_scores(posteriors: Tensor, labels: Tensor) -> dict[str, float]:
    """Every score that takes the source's answers, by name.

    posteriors: (n, source classes), rows sum to 1.  labels: (n,) of the target."""
    return {LEEP: leep(posteriors, labels), NCE: nce(posteriors.argmax(1), labels)}


# --- of features ------------------------------------------------------------------------------------------------


def logme(features: Tensor, labels: Tensor) -> float:
    """Largest log evidence of Bayesian linear regression from the features on each class's 0/1 labels, mean over
    classes, per image. You et al. 2021 (arXiv:2102.11005).

    Weights ~ N(0, 1/alpha), noise ~ N(0, 1/beta), no intercept, as published. alpha/beta goes by You et al.'s fixed
    point; the evidence is taken at the best beta for each alpha/beta, which at the fixed point is theirs, and which
    needs no small number added to its denominators. Labels that the features give without error have no largest
    evidence: the ratio then stops at `POWERS`. Not changed by rotating or scaling all features.

    features: (n, d).  labels: (n,).  Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    return _logme(_as_they_come(x), _one_hot(y))


def _logme(spectrum: Spectrum, targets: Tensor) -> float:
    n, s = spectrum.n, spectrum.n * spectrum.values[:, None]  # (k, 1), eigenvalues of X @ X.T
    along = (spectrum.u.T @ targets).square()  # (k, classes)
    rest = (targets.square().sum(0) - along.sum(0)).clamp(min=0)  # (classes,), what no direction explains

    def evidence(ratio: Tensor) -> Tensor:  # alpha / beta -> at the best beta, (classes,)
        error = (along * ratio / (s + ratio)).sum(0) + rest
        return -0.5 * (n * (2 * math.pi * math.e * error / n).log() + torch.log1p(s / ratio).sum(0))

    typical = float(s.mean()) if len(s) else 1.0
    # It may have two maxima, one of them where all is noise: begin at the best power of ten.
    starts = [torch.full_like(rest, typical * 10.0**power) for power in range(-POWERS, POWERS + 1)]
    of_starts = torch.stack([evidence(start) for start in starts])
    ratio, best = torch.stack(starts)[of_starts.argmax(0), 0], of_starts.amax(0)
    for _ in range(LOGME_STEPS):
        left = ratio / (s + ratio)  # (k, classes), share of a direction that shrinkage leaves unexplained
        free = n - len(s) + left.sum(0)  # (classes,), n less the number of directions that the data determine
        weights = (s * along / (s + ratio).square()).sum(0)  # squared length of the mean weights
        residuals = (along * left.square()).sum(0) + rest
        new = torch.nan_to_num((n - free) * residuals / (free * weights), nan=math.inf, posinf=math.inf)
        new = new.clamp(typical * 10.0**-POWERS, typical * 10.0**POWERS)
        best = torch.maximum(best, evidence(new))
        if bool(((new - ratio).abs() <= LOGME_TOLERANCE * ratio).all()):
            break
        ratio = new
    return float(best.mean()) / n


def h_score(features: Tensor, labels: Tensor) -> float:
    """Trace of (covariance of the features)^-1 @ (covariance of their class means).

    Bao et al. 2019, with Ledoit and Wolf's shrinkage of the covariance as in Ibrahim et al. 2021 (arXiv:2110.06893):
    without it the score of more features than images is the number of classes less one, whatever the labels. At most
    that; 0 for features without class means of their own. Not changed by rotating or scaling all features.

    features: (n, d).  labels: (n,).  Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    return _h_score(_centred(x), _one_hot(y))


def shrinkage(spectrum: Spectrum) -> float:
    """Share of the mean variance in Ledoit and Wolf's covariance (2004), of centred features."""
    e, n, d = spectrum.values, spectrum.n, spectrum.width
    spread = float(e.square().sum() - e.sum() ** 2 / d)  # how far the covariance is from a multiple of the identity
    lengths = n * (spectrum.u.square() @ e)  # (n,), squared
    error = float(lengths.square().mean() - e.square().sum()) / n  # of the covariance's entries, summed
    return 0.0 if spread <= 0 or error <= 0 else min(1.0, error / spread)


def _h_score(spectrum: Spectrum, targets: Tensor) -> float:
    if len(spectrum.values) == 0:
        return 0.0
    share, e, n = shrinkage(spectrum), spectrum.values, spectrum.n
    counts = targets.sum(0)  # (classes,)
    means = (targets.T @ spectrum.u) / counts[:, None]  # (classes, k), in units of sqrt(n * e)
    between = (counts / n) @ means.square() * n * e  # (k,), variance of the class means along each direction
    return float((1 - share) * (between / ((1 - share) * e + share * e.sum() / spectrum.width)).sum())


def transrate(features: Tensor, labels: Tensor, *, distortion: float = DISTORTION) -> float:
    """Coding rate of all features less the mean coding rate of each class's, in nats.

    Huang et al. 2022 (arXiv:2106.09362). Features are centred and scaled to a mean squared length of 1: the rate
    depends on their scale, which differs between the cuts of a network by orders. Classes count by their images. Not
    changed by rotating or scaling all features.

    features: (n, d).  labels: (n,).  Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    return _transrate(_centred(x), y, distortion)


def _transrate(spectrum: Spectrum, labels: Tensor, distortion: float = DISTORTION) -> float:
    if len(spectrum.values) == 0:
        return 0.0
    e, n = spectrum.values / spectrum.values.sum(), spectrum.n
    whole = 0.5 * float(torch.log1p(e / distortion).sum())
    z = spectrum.u * (n * e).sqrt()  # (n, k), the features turned
    apart = 0.0
    for label in torch.unique(labels):
        own = z[labels == label]  # (m, k)
        gram = own @ own.T if len(own) < len(e) else own.T @ own
        gram = gram / (len(own) * distortion) + torch.eye(len(gram), dtype=z.dtype, device=z.device)
        apart += len(own) / n * 0.5 * float(torch.linalg.slogdet(gram).logabsdet)
    return whole - apart


def ridge_probe(features: Tensor, labels: Tensor, *, penalties: Sequence[float] = PENALTIES) -> float:
    """Accuracy of ridge regression on images left out one by one: what a score has to beat that calls itself more.

    Every image is predicted by the head solved on all others, in closed form (Allen 1974, PRESS), at the penalty of
    least squared error; standardised features, the bias unpenalised. NaN if a class has a single image, which is
    never known when it is asked for.

    features: (n, d).  labels: (n,).  Raises Diverged on features that are not finite."""
    x, y = with_float64(features, labels)
    return _ridge_probe(_standardised(x), _one_hot(y), penalties)


def _ridge_probe(spectrum: Spectrum, targets: Tensor, penalties: Sequence[float]) -> float:
    if int(targets.sum(0).min()) < 2:
        return math.nan
    centred = targets - targets.mean(0)  # (n, classes)
    along, squares = spectrum.u.T @ centred, spectrum.u.square()  # (k, classes), (n, k)
    found = []
    for penalty in penalties:
        share = spectrum.values / (spectrum.values + penalty)  # (k,)
        residuals = centred - spectrum.u @ (share[:, None] * along)
        leverage = 1 / spectrum.n + squares @ share  # (n,); the bias is a direction of its own
        residuals = residuals / (1 - leverage)[:, None]  # of the head that has not seen the image
        right = (targets - residuals).argmax(1) == targets.argmax(1)
        found.append((float(residuals.square().mean()), float(right.double().mean())))
    return min(found)[1]


# --- of the source's answers ------------------------------------------------------------------------------------


def leep(posteriors: Tensor, labels: Tensor) -> float:
    """Mean log probability of the labels, if a source class is drawn from the source's posterior and the label from
    those that go with that class. Nguyen et al. 2020 (arXiv:2002.12462). At most 0.

    posteriors: (n, source classes), rows sum to 1.  labels: (n,) of the target."""
    p, y = with_float64(posteriors, labels)
    p, targets = p.double(), _one_hot(y)
    joint = targets.T @ p  # (classes, source classes)
    given = joint / joint.sum(0).clamp(min=torch.finfo(torch.float64).tiny)  # of the label, given the source class
    return float(((p @ given.T) * targets).sum(1).log().mean())


def nce(predicted: Tensor, labels: Tensor) -> float:
    """Negative conditional entropy of the labels, given the classes that the source predicts, in nats.

    Tran et al. 2019 (arXiv:1908.08142). At most 0.

    predicted: (n,) source classes.  labels: (n,) of the target."""
    p, y = with_float64(predicted, labels)
    joint = _one_hot(y).T @ _one_hot(p) / len(y)  # (classes, source classes)
    given = joint / joint.sum(0)
    return float(torch.special.xlogy(joint, given).sum())


# --- shared -----------------------------------------------------------------------------------------------------


def _one_hot(labels: Tensor) -> Tensor:
    """(n, classes that have images), float64."""
    present, index = torch.unique(labels, return_inverse=True)
    return torch.eye(len(present), dtype=torch.float64, device=labels.device)[index]


def _as_they_come(x: Tensor) -> Spectrum:
    centring = centring_of(x)  # refuses what is not finite
    return _spectrum(x, Scaling(torch.zeros_like(centring.mean), centring.scale))


def _centred(x: Tensor) -> Spectrum:
    scaling = centring_of(x)
    # What varies by less than its numbers resolve is constant.
    return _spectrum(x, scaling, least=float(torch.finfo(x.dtype).eps * scaling.mean.abs().max()) ** 2)


def _standardised(x: Tensor) -> Spectrum:
    return _spectrum(x, scaling_of(x))


def _spectrum(x: Tensor, scaling: Scaling, *, least: float = 0.0) -> Spectrum:
    """Of scaled features. With fewer images than features by the (n, n) products of images."""
    n, d = x.shape
    if n < d:
        values, u = torch.linalg.eigh(products_of_images(x, scaling))
        kept = values > max(least, RANK_TOLERANCE * float(values[-1]))
        return Spectrum(u[:, kept], values[kept], d)
    gram = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    for rows in chunks(x):
        z = scaling(rows)
        gram.addmm_(z.T, z, alpha=1 / n)
    values, directions = torch.linalg.eigh(gram)
    kept = values > max(least, RANK_TOLERANCE * float(values[-1]))
    values, directions = values[kept], directions[:, kept] / (n * values[kept]).sqrt()
    return Spectrum(torch.cat([scaling(rows) @ directions for rows in chunks(x)]), values, d)
