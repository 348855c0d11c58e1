"""Images and labels blended in pairs: mixup and CutMix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixed:
    """A batch in which each image holds something of another; its loss is
    share * loss(labels) + (1 - share) * loss(others)."""

    inputs: Tensor  # (n, ...)
    labels: Tensor  # (n,)
    others: Tensor  # (n,) of the images blended in
    share: float  # of the image itself, in [0, 1]


def mix(inputs: Tensor, labels: Tensor, mixup: float, cutmix: float, generator: torch.Generator) -> Mixed:
    """Blend each image with another of the batch.

    inputs: (n, c, h, w) prepared images (any shape from (n, ...) for mixup); labels: (n,).
    mixup: alpha of the Beta(alpha, alpha) that the share is drawn from (Zhang et al. 2018, arXiv:1710.09412).
    cutmix: the same for the area that stays when a box of another image is pasted in (Yun et al. 2019,
    arXiv:1905.04899).  With both, each batch gets one of them, by a fair coin; with neither, nothing is drawn.
    generator: on the CPU; one draw a batch serves every device alike."""
    if not mixup and not cutmix:
        return Mixed(inputs, labels, labels, 1.0)
    boxed = cutmix > 0 and (not mixup or float(torch.rand((), generator=generator)) < 0.5)
    share = _beta(cutmix if boxed else mixup, generator)
    partner = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    others = labels[partner]
    if not boxed:
        return Mixed(torch.lerp(inputs[partner], inputs, share), labels, others, share)
    height, width = inputs.shape[2:]
    top, bottom = _span(height, share, generator)
    left, right = _span(width, share, generator)
    mixed = inputs.clone()
    mixed[:, :, top:bottom, left:right] = inputs[partner, :, top:bottom, left:right]
    kept = 1.0 - (bottom - top) * (right - left) / (height * width)  # a box at the border is smaller than drawn
    return Mixed(mixed, labels, others, kept)


def _span(side: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    """Where a box of sqrt(1 - share) of the side lies, its middle anywhere, cut off at the border."""
    half = math.sqrt(1.0 - share) * side / 2
    middle = float(torch.rand((), generator=generator)) * side
    return max(0, round(middle - half)), min(side, round(middle + half))


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Beta(alpha, alpha), from this generator: x / (x + y) of two Gamma(alpha) draws, in logarithms.

    Gamma(alpha) is Gamma(alpha + 1) * u ** (1 / alpha). For alpha below 0.01 both draws are often smaller than any
    float, and their ratio would be 1/2, where nearly all of the distribution lies at 0 and 1."""
    gammas = torch._standard_gamma(torch.full((2,), alpha + 1, dtype=torch.float64), generator=generator)
    powers = torch.rand(2, dtype=torch.float64, generator=generator).neg().log1p() / alpha
    x, y = gammas.log() + powers
    return float(torch.sigmoid(x - y))
