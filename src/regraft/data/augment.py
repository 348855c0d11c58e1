"""Batched augmentation and the one path from uint8 pictures to a network's input, on the batch's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from regraft.errors import StudyError, UnknownName, nearest
from regraft.seeding import torch_stream
from regraft.spec import Augment, Preprocessing
from regraft.spec.recipe import Augmentation

AUGMENTATIONS = ("none", "flip", "crop-flip")
BATCH_AXES = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2)}
CHUNK_BYTES = 64 * 2**20
VIEW_BLOCK = 1024  # positions whose moves are drawn together; raising it changes every view


def as_batch(images: NDArray[np.uint8]) -> torch.Tensor:
    """(n, h, w, c) uint8, possibly memory-mapped -> a copy as (n, c, h, w) uint8, contiguous."""
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


@dataclass(frozen=True)
class Moves:
    """How each of n images is moved: shifted, then flipped."""

    down: torch.Tensor  # (n, 1) int64, pixels; 0 where `kind` does not shift
    right: torch.Tensor  # (n, 1) int64, pixels
    flipped: torch.Tensor  # (n, 1) bool


def augment(images: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """Each image flipped with probability 1/2 and, for "crop-flip", shifted by up to 1/8 of its side.

    images: (n, c, h, w), any dtype, on any device; returns the same shape, dtype and device.
    The shift is a random crop of the image reflected at its borders by max(1, side // 8) pixels.
    generator: on the CPU, so that the same seed moves the same image the same way on every device.
    Raises UnknownName.
    """
    kind = how.geometry
    _check(kind)
    if kind == "none":
        return images
    n, _, height, width = images.shape
    return _moved(images, _drawn(kind, n, height, width, generator))


def augment_view(images: torch.Tensor, how: Augment, view: int, positions: NDArray[np.int64]) -> torch.Tensor:
    """The augmented view number `view` of images of one split, moved as `augment` moves them.

    images: (n, c, h, w), any dtype, on any device; positions: (n,), of each image in the whole split; view: 1, 2, ...
    What (how, view, position) say alone determines an image's move, so a view can be cached in parts, and any batch,
    seed and study meets the same one. Raises UnknownName, and StudyError for "none", which has no views.
    """
    kind = how.geometry
    _check(kind)
    if kind == "none":
        raise StudyError("views are augmented images, and `augment: none` moves none; use flip or crop-flip")
    assert view >= 1
    assert len(positions) == len(images)
    n, _, height, width = images.shape
    down, right = torch.zeros(2, n, 1, dtype=torch.int64)
    flipped = torch.zeros(n, 1, dtype=torch.bool)
    blocks, places = np.divmod(positions, VIEW_BLOCK)
    for block in np.unique(blocks).tolist():
        drawn = _drawn(kind, VIEW_BLOCK, height, width, torch_stream(0, "view", view, block))
        here = np.flatnonzero(blocks == block)
        at, place = torch.from_numpy(here), torch.from_numpy(places[here])
        down[at], right[at], flipped[at] = drawn.down[place], drawn.right[place], drawn.flipped[place]
    return _moved(images, Moves(down, right, flipped))


def _check(kind: str) -> None:
    if kind not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise UnknownName(f"no augmentation {kind!r}{nearest(kind, AUGMENTATIONS)} Known: {known}.")


def _drawn(kind: Augmentation, n: int, height: int, width: int, generator: torch.Generator) -> Moves:
    """Moves of n images. The order of the draws is part of every result; keep it."""
    down = right = torch.zeros(n, 1, dtype=torch.int64)
    if kind == "crop-flip":
        down, right = (
            torch.randint(-_pad(side), _pad(side) + 1, (n, 1), generator=generator) for side in (height, width)
        )
    return Moves(down, right, torch.rand(n, 1, generator=generator) < 0.5)


def _pad(side: int) -> int:
    return min(max(1, side // 8), side - 1)  # a reflection needs a pixel beside the border


def _moved(images: torch.Tensor, moves: Moves) -> torch.Tensor:
    n, channels, height, width = images.shape
    rows = _reflected(torch.arange(height) + moves.down, height)  # (n, h): source row of each row
    columns = _reflected(torch.arange(width) + moves.right, width)  # (n, w)
    columns = torch.where(moves.flipped, columns.flip(1), columns)
    # One gather over flat pixel positions: 7 times as fast as a loop over images, 5 times as fast as
    # indexing with four index tensors (measured for 128 x 3 x 32 x 32 uint8 on one CPU core: 0.5 ms).
    pixels = (rows[:, :, None] * width + columns[:, None, :]).reshape(n, 1, height * width)
    pixels = pixels.to(images.device, non_blocking=True).expand(n, channels, height * width)
    return images.reshape(n, channels, height * width).gather(2, pixels).view(n, channels, height, width)


def _reflected(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Rows (or columns) up to `side` - 1 beyond either border, reflected into the image."""
    positions = positions.abs()  # left of 0 reflects to the right
    return torch.where(positions >= side, 2 * (side - 1) - positions, positions)


def prepare(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """uint8 pictures -> float32 (n, 3, s, s), as the weights of `preprocessing` expect them.

    images: (n, c, h, w) or (n, h, w, c) uint8 RGB or grey, square (where both readings fit, the first).
    In this order: [0, 1] units, resize with antialias when the side differs, three channels, channel order,
    subtract the mean, divide by the std (mean and std are in the network's channel order).
    Raises StudyError for anything but uint8: a picture that is normalised twice is the error this prevents.
    """
    if images.dtype != torch.uint8:
        raise StudyError(
            f"prepare takes uint8 pictures in 0..255, got {images.dtype}; augment before preparing, and prepare once"
        )
    images = _channels_first(images)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
    std = torch.tensor(preprocessing.std, dtype=torch.float64)
    side = preprocessing.image_size
    if images.shape[2:] == (side, side):
        pixels, unit = images.float(), 255.0  # scaling and normalising become one multiply-add
    else:
        pixels, unit = _resized(images.float().div_(255), side, preprocessing.interpolation), 1.0
    pixels = pixels.expand(-1, 3, -1, -1)  # grey -> 3 equal channels
    if preprocessing.channels == "bgr":
        pixels = pixels.flip(1)
    scale = (1 / (unit * std)).float().view(1, 3, 1, 1).to(images.device)
    shift = (-mean / std).float().view(1, 3, 1, 1).to(images.device)
    return (pixels * scale).add_(shift)  # (n, c, h, w) -> (n, 3, s, s)


def _channels_first(images: torch.Tensor) -> torch.Tensor:
    for layout, (channels, height, width) in BATCH_AXES.items():
        if images.ndim == 4 and images.shape[channels] in (1, 3) and images.shape[height] == images.shape[width]:
            return images if layout == "nchw" else images.permute(0, 3, 1, 2)
    raise StudyError(
        f"prepare takes square pictures (n, c, s, s) or (n, s, s, c) with c 1 or 3, got {tuple(images.shape)}"
    )


def _resized(pixels: torch.Tensor, side: int, interpolation: Literal["bilinear", "bicubic"]) -> torch.Tensor:
    pixels = F.interpolate(
        pixels, size=(side, side), mode=interpolation, antialias=True, align_corners=False
    )  # (n, c, h, w) -> (n, c, side, side)
    # Bicubic overshoots at edges; pictures that weights were trained on were clipped to 0..255 there.
    return pixels.clamp_(0, 1)


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1] units (grey: thrice the same).

    images: (n, h, w, c) uint8, possibly memory-mapped; read in parts. Exact: whole numbers are counted.
    A channel that hardly varies gets the std 1/255, so that one can divide by it.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    step = max(1, CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        part = images[start : start + step]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total
    std = np.maximum(np.sqrt(variance), 1 / 255)
    mean, std = np.broadcast_to(mean, 3), np.broadcast_to(std, 3)
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))
