"""Linear heads with a closed or convex solution: no epochs, no learning rate. Here is what the solvers share.

All see standardised features, (x - mean) / scale, and give weights for the features as they came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.errors import Diverged

CHUNK_VALUES = 2**23  # features turned to float64 at a time: 64 MiB


@dataclass(frozen=True)
class Solved:
    """A linear head: logits = features @ weight.T + bias."""

    weight: Tensor  # (classes, d) float32, the standardisation folded in
    bias: Tensor  # (classes,) float32
    converged: bool
    iterations: int  # 0 for closed forms


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of each feature, float64; leading dimensions are problems apart."""

    mean: Tensor  # (..., 1, d)
    scale: Tensor  # (..., 1, d); infinite for constant features, which so become 0 and get weights of 0

    def __call__(self, x: Tensor) -> Tensor:  # (..., n, d) -> (..., n, d) float64
        return (x.double() - self.mean) / self.scale

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (..., classes, d) and bias (..., classes) for features as they came, float32."""
        weight = weight.double() / self.scale
        return weight.float(), (bias - (weight @ self.mean.mT).squeeze(-1)).float()


def scaling_of(features: Tensor) -> Scaling:
    """Of features (..., n, d), over the n images.  Raises Diverged on NaN or infinity."""
    mean = centring_of(features).mean
    variance = torch.zeros_like(mean)
    for rows in chunks(features):
        variance += (rows.double() - mean).square().sum(-2, keepdim=True) / features.shape[-2]
    scale = variance.sqrt()
    # What varies by less than its numbers resolve is constant; and a weight, divided by scale, must be a float32.
    resolution = torch.finfo(features.dtype).eps * mean.abs()
    return Scaling(mean, torch.where(scale > resolution.clamp(min=1e-30), scale, torch.inf))


def centring_of(features: Tensor) -> Scaling:
    """The same with a scale of 1: in few images deviations are noise.  Raises Diverged on NaN or infinity."""
    low, high = torch.aminmax(features)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise Diverged("the features hold NaN or infinity: the source's weights are broken; no head is solved on them")
    mean = torch.zeros_like(features[..., :1, :], dtype=torch.float64)
    for rows in chunks(features):
        mean += rows.double().sum(-2, keepdim=True) / features.shape[-2]
    return Scaling(mean, torch.ones_like(mean))


def chunks(features: Tensor, dim: int = -2) -> Iterator[Tensor]:
    """Parts of features (..., n, d) along `dim`, rows unless said, small enough for copies in float64."""
    size = max(1, CHUNK_VALUES * features.shape[dim] // max(1, features.numel()))
    return iter(torch.split(features, size, dim))


def standardised_columns(features: Tensor, scaling: Scaling) -> Iterator[Tensor]:
    """All rows of standardised features (n, d), some columns at a time: (n, b) float64."""
    start = 0
    for x in chunks(features, dim=-1):
        columns = slice(start, start + x.shape[1])
        yield Scaling(scaling.mean[:, columns], scaling.scale[:, columns])(x)
        start += x.shape[1]


def products_of_images(features: Tensor, scaling: Scaling) -> Tensor:
    """z @ z.T / n, (n, n), of standardised features z (n, d): for fewer images than features."""
    n = len(features)
    products = features.new_zeros(n, n, dtype=torch.float64)
    for z in standardised_columns(features, scaling):
        products.addmm_(z, z.T, alpha=1 / n)
    return products


def problems_at_once(features: Tensor) -> int:
    """Of problems apart, features (p, n, d), how many to solve at a time, so that copies in float64 stay small."""
    return max(1, CHUNK_VALUES // max(1, features[0].numel()))


def with_float64(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same where float64 exists: Apple's MPS has none, its tensors go to the CPU."""
    return (features.cpu(), labels.cpu()) if features.device.type == "mps" else (features, labels)
