"""Two pictures laid over each other: how one has to be shifted, cropped and stretched to be most like the other.

Photographs that are there twice were often cropped or scaled differently the second time. For each pair four numbers
are sought, scale and shift across and down, by least squares on the pixels (Lucas & Kanade 1981), with brightness
and contrast left free; first in pictures of 16 pixels, then at full size. All pairs of a batch go
together: a picture is resampled along one axis after the other, which is two small matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE = 16  # pixels a side
COARSE_STEPS, FINE_STEPS = 4, 2  # of Gauss and Newton; more change nothing in the pairs known in CIFAR-10
LOWEST, HIGHEST, FARTHEST = 0.6, 1.67, 0.35  # scale; shift as a share of the side
STRIDE = 0.1, 0.06, 0.1, 0.06  # the longest step
DAMPING = 0.01  # of the diagonal
SOFTENED = 0.3  # of the spread of a picture's detail
OVERLAP_POWER = 0.25  # the less of both pictures lies over each other, the more alike chance makes them


def rough(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """At a coarse size: the best warp of each of `theirs` onto its picture in `ours`, and the correlation of both.

    ours, theirs: (b, c, s, s) float32.  Returns (b, 4): scale and shift across, scale and shift down; and (b,)."""
    side = min(COARSE, ours.shape[2])
    ours, theirs = (F.adaptive_avg_pool2d(pixels, side) for pixels in (ours, theirs))
    warp = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(len(ours), 1)
    warp = _fitted(ours, theirs, warp, COARSE_STEPS)
    moved, inside = _moved(theirs, warp)
    return warp, _correlation(ours, moved, inside)


def likeness(ours: Tensor, theirs: Tensor, warp: Tensor) -> Tensor:
    """(b,) how alike the pictures are, from the rough warp on: the correlation of their softened detail where both lie
    over each other, lowered a little the less that is. 1: the same.

    Of detail (each pixel less the mean about it), because the pixels of any two skies correlate. Softened, d / (|d| + a
    part of its spread), because frames, plates and fruit on white have one strong edge in common, and two photographs
    that are the same have everything in common."""
    warp = _fitted(ours, theirs, warp, FINE_STEPS)
    moved, inside = _moved(theirs, warp)
    overlap = inside.mean((1, 2, 3))
    alike = _correlation(_softened(_detail(ours), inside), _softened(_detail(moved), inside), inside)
    return (alike * overlap**OVERLAP_POWER).clamp_(max=1.0)


def _detail(pixels: Tensor) -> Tensor:
    """What each pixel has beyond the mean about it, (b, c, s, s): of 5 x 5 in pictures of 32 pixels."""
    at = torch.arange(pixels.shape[2])
    near = ((at[:, None] - at).abs() <= max(1, len(at) // 12)).float()
    about = near / near.sum(1, keepdim=True)
    return pixels - about @ pixels @ about.T


def _softened(detail: Tensor, inside: Tensor) -> Tensor:
    spread = ((detail * inside).square().mean((1, 2, 3), keepdim=True) / inside.mean((1, 2, 3), keepdim=True)).sqrt()
    return detail / (detail.abs() + SOFTENED * spread + 1e-3)


def _fitted(ours: Tensor, theirs: Tensor, warp: Tensor, steps: int) -> Tensor:
    """The warp after some steps. Grey says as much of where things are as colour, in a third of the time."""
    ours, theirs = (pixels.mean(1, keepdim=True) for pixels in (ours, theirs))
    side = ours.shape[2]
    at = torch.arange(side) - (side - 1) / 2
    padded = F.pad(theirs, (1, 1, 1, 1), mode="replicate")
    slopes = (
        (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2,
        (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2,
    )
    lowest, highest = (
        torch.tensor([scale, -shift, scale, -shift]) for scale, shift in ((LOWEST, FARTHEST), (HIGHEST, -FARTHEST))
    )
    stride = torch.tensor(STRIDE)
    for _ in range(steps):
        moved, inside = _moved(theirs, warp)
        across, down = (_moved(slope, warp)[0] for slope in slopes)
        moves = (across * at, across * side, down * at[:, None], down * side, moved)  # the last: contrast
        by = torch.stack([_centred(each, inside).flatten(1) for each in moves], 1)  # (b, 5, s s)
        squares = by @ by.transpose(1, 2)
        damped = squares + torch.diag_embed(DAMPING * squares.diagonal(dim1=1, dim2=2) + 1e-3)
        found = torch.linalg.solve(damped, by @ _centred(ours, inside).flatten(1)[:, :, None])[:, :, 0]  # (b, 5)
        step = found[:, :4] / found[:, 4:].clamp(min=0.2)
        warp = (warp + step.clamp(-stride, stride)).clamp(lowest, highest)
    return warp


def _moved(pixels: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
    """The pictures as the warp shows them, and where they are inside their frame, (b, 1, s, s) 0 or 1."""
    side = pixels.shape[2]
    across, inside_across = _taps(warp[:, 0], warp[:, 1], side)
    down, inside_down = _taps(warp[:, 2], warp[:, 3], side)
    moved = down[:, None] @ pixels @ across[:, None].transpose(2, 3)
    return moved, (inside_down[:, :, None] * inside_across[:, None, :])[:, None]


def _taps(scale: Tensor, shift: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation along one axis: (b, s, s) the share of each pixel, and (b, s) whether it is in the frame."""
    at = torch.arange(side, dtype=torch.float32)
    middle = (side - 1) / 2
    source = scale[:, None] * (at - middle) + side * shift[:, None] + middle
    inside = ((source >= -0.5) & (source <= side - 0.5)).float()
    return (1 - (source.clamp(0, side - 1)[:, :, None] - at).abs()).clamp_(min=0), inside


def _centred(pixels: Tensor, inside: Tensor) -> Tensor:
    """Each channel less its mean inside, and 0 outside."""
    mean = (pixels * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True)
    return (pixels - mean) * inside


def _correlation(ours: Tensor, theirs: Tensor, inside: Tensor) -> Tensor:
    a, b = _centred(ours, inside), _centred(theirs, inside)
    lengths = a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))
    return (a * b).sum((1, 2, 3)) / lengths.sqrt().clamp(min=1e-3)
