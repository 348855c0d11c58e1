"""Pictures as what they are searched by: the strength of edges by place and direction, and a few pixels of colour."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Positions = NDArray[np.int64]

WINDOWS, DIRECTIONS = 4, 8  # of a sketch: windows a side, directions of edges
SKETCHED = 32  # pixels a side, of what a sketch is made of
COLOUR = 0.3  # weight of colours beside edges
LARGEST = 64  # pixels a side, where pictures are compared; larger ones are shrunk to it
BATCH_BYTES = 2**21  # of pictures as they are stored, at a time
NEARLY_CONSTANT = 2.0  # of 255 levels: standard deviation of all pixels about their channel's mean


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of a split that are looked at, and what they are searched by.

    images: (n, h, w, c) uint8 of the whole split, possibly memory-mapped.  positions: (m,) of those looked at, sorted.
    sketches: (m, 8 + c, 4, 4) float32, each of length 1, or 0 where the picture is nearly constant.
    side: in pixels, at which pictures are compared."""

    images: NDArray[np.uint8]
    positions: Positions
    sketches: Tensor
    side: int
    grey: bool

    def __len__(self) -> int:
        return len(self.positions)

    def part(self, positions: Positions) -> Pictures:
        """Only these of the images looked at."""
        rows = torch.from_numpy(np.searchsorted(self.positions, positions))
        return replace(self, positions=positions, sketches=self.sketches[rows])

    def pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """(b, c, side, side) float32 in 0..255 of the images looked at number `rows`."""
        return _pixels(self.images[self.positions[rows]], self.side, grey=self.grey)


def look_at(
    images: NDArray[np.uint8], positions: Positions | None = None, *, side: int | None = None, grey: bool = False
) -> Pictures:
    """Describe images for the search.  images: (n, h, w, c) uint8.  positions: default all.

    side: at which they are compared, default their own, at most 64.  grey: leave colour out, as to compare with
    grey pictures."""
    positions = np.arange(len(images)) if positions is None else positions
    side = side or min(images.shape[1], LARGEST)
    sketches = torch.empty(len(positions), DIRECTIONS + (1 if grey else images.shape[3]), WINDOWS, WINDOWS)
    done = 0
    for batch in batches(images, positions):
        pixels = _pixels(images[batch], side, grey=grey)
        sketch = _sketch(pixels)
        sketch[_spread(pixels) < NEARLY_CONSTANT] = 0
        sketches[done : done + len(batch)] = sketch
        done += len(batch)
    return Pictures(images, positions, sketches, side, grey)


def in_a_mirror(sketches: Tensor) -> Tensor:
    """The sketches of the mirrored pictures."""
    turned = [(DIRECTIONS // 2 - i) % DIRECTIONS for i in range(DIRECTIONS)]
    return sketches[:, [*turned, *range(DIRECTIONS, sketches.shape[1])]].flip(3)


def nearly_constant(images: NDArray[np.uint8], positions: Positions) -> Positions:
    """Those of `positions` whose pixels hardly vary: a standard deviation under 2 of 255 levels."""
    found = [np.empty(0, np.int64)]
    for batch in batches(images, positions):
        pixels = _pixels(images[batch], images.shape[1], grey=False)
        found.append(batch[(_spread(pixels) < NEARLY_CONSTANT).numpy()])
    return np.concatenate(found)


def batches(images: NDArray[np.uint8], positions: Positions) -> Iterator[Positions]:
    """`positions` in parts, so that few of these images are in memory at once."""
    step = max(1, BATCH_BYTES // math.prod(images.shape[1:]))
    for start in range(0, len(positions), step):
        yield positions[start : start + step]


def _sketch(pixels: Tensor) -> Tensor:
    """(b, c, side, side) -> (b, 8 + c, 4, 4), of length 1."""
    size = (SKETCHED, SKETCHED)
    if pixels.shape[2] > SKETCHED:
        pixels = F.interpolate(pixels, size=size, mode="area")
    elif pixels.shape[2] < SKETCHED:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    padded = F.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across, down = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    angles = (2 * math.pi / DIRECTIONS * torch.arange(DIRECTIONS))[:, None, None]
    strength = (across * angles.cos() + down * angles.sin()).clamp_(min=0)  # (b, 8, 32, 32)
    # A root, so that one strong edge does not outweigh all others.
    edges = _unit((_WINDOW @ strength @ _WINDOW.T).sqrt_())  # (b, 8, 4, 4)
    colours = _unit(F.adaptive_avg_pool2d(pixels - pixels.mean((1, 2, 3), keepdim=True), WINDOWS))
    return _unit(torch.cat([edges, COLOUR * colours], 1))


def _windows() -> Tensor:
    """(4, 32) weights of triangles that overlap by half, each with the sum 1."""
    width = SKETCHED / WINDOWS
    middles = (torch.arange(WINDOWS) + 0.5) * width
    weights = (1 - (torch.arange(SKETCHED) + 0.5 - middles[:, None]).abs() / width).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


_WINDOW = _windows()


def _unit(x: Tensor) -> Tensor:
    return x / x.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)


def _pixels(images: NDArray[np.uint8], side: int, *, grey: bool) -> Tensor:
    """(b, h, w, c) uint8 -> (b, c, side, side) float32 in 0..255."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    if grey:
        pixels = pixels.mean(1, keepdim=True)
    return pixels.contiguous() if pixels.shape[2] == side else F.interpolate(pixels, size=(side, side), mode="area")


def _spread(pixels: Tensor) -> Tensor:
    """(b,) standard deviation about each channel's mean."""
    return pixels.var((2, 3), correction=0).mean(1).sqrt()
