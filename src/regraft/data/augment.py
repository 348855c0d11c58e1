"""Batched augmentation and the one path from uint8 pictures to a network's input, on the batch's device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from regraft.data import policies
from regraft.errors import StudyError, UnknownName, nearest
from regraft.seeding import torch_stream
from regraft.spec import Augment, Preprocessing

AUGMENTATIONS = ("none", "flip", "crop-flip", "resized-crop-flip")
SMALLEST_PART = 0.35  # of the area, for "resized-crop-flip"
WIDEST = 4 / 3  # width to height of such a part, and its inverse
POSITION_BITS, WEIGHT_BITS = 24, 11  # after the point; two weights and a value of 8 bits fit into 31
BATCH_AXES = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2)}
CHUNK_BYTES = 64 * 2**20
VIEW_BLOCK = 1024  # positions whose changes are drawn together; raising it changes every view


def as_batch(images: NDArray[np.uint8]) -> torch.Tensor:
    """(n, h, w, c) uint8, possibly memory-mapped -> a copy as (n, c, h, w) uint8, contiguous."""
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


@dataclass(frozen=True)
class Draws:
    """The random numbers by which each of n images is changed, on the CPU; (n, 0) where `how` needs none."""

    down: torch.Tensor  # (n, 1) int64, pixels; 0 for "flip"
    right: torch.Tensor  # (n, 1) int64, pixels
    part: torch.Tensor  # (n, 4) in [0, 1): area, aspect, top, left of a part to enlarge
    flipped: torch.Tensor  # (n, 1) bool
    policy: torch.Tensor  # (n, ...), as `policies.drawn` makes them
    middle: torch.Tensor  # (n, 2) int64, row and column in the middle of the erased square

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Draws:
        return Draws(*(change(getattr(self, field.name)) for field in fields(self)))


def augment(images: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """Each image changed on its own: moved (`geometry`), then changed by `policy`, then `cutout`.

    images: (n, c, h, w) uint8 on any device (any dtype to flip and crop, float32 to enlarge). Returns the same shape,
    dtype and device.
    "flip": flipped with probability 1/2. "crop-flip": also a random crop of the image reflected at its borders by
    max(1, side // 8) pixels. "resized-crop-flip": a part of 35 to 100 % of the area, of aspect 3/4 to 4/3 as far as it
    fits into the image, enlarged to the image's size, flipped (Szegedy et al. 2015, arXiv:1409.4842); it only ever
    enlarges, so that bilinear interpolation needs no antialias. Policies: see `policies`.
    Cutout: a square of `cutout` times the side about any pixel, cut off at the border, becomes mid grey, which is
    about 0 once normalised (DeVries & Taylor 2017, arXiv:1708.04552).
    generator: on the CPU, so that the same seed changes the same image the same way on every device.
    Raises UnknownName, and StudyError where a policy or cutout meets anything but uint8.
    """
    _check(how, images)
    if how.still or len(images) == 0:
        return images
    n, _, height, width = images.shape
    return _changed(images, how, _drawn(how, n, height, width, generator))


def augment_view(images: torch.Tensor, how: Augment, view: int, positions: NDArray[np.int64]) -> torch.Tensor:
    """The augmented view number `view` of images of one split, changed as `augment` changes them.

    images: as for `augment`; positions: (n,), of each image in the whole split; view: 1, 2, ...
    What (how, view, position) say alone determines an image's change, so a view can be cached in parts, and any batch,
    seed and study meets the same one. Raises as `augment` does, and StudyError where nothing is changed.
    """
    _check(how, images)
    if how.still:
        raise StudyError(
            "views are augmented images, and `augment: none` moves none; use flip or crop-flip, a policy or cutout"
        )
    assert view >= 1
    assert len(positions) == len(images)
    if len(images) == 0:
        return images
    height, width = images.shape[2:]
    blocks, places = np.divmod(positions, VIEW_BLOCK)
    drawn, order = [], []
    for block in np.unique(blocks).tolist():
        here = np.flatnonzero(blocks == block)
        of_block = _drawn(how, VIEW_BLOCK, height, width, torch_stream(0, "view", view, block))
        drawn.append(_rows(of_block, torch.from_numpy(places[here])))
        order.append(torch.from_numpy(here))
    return _changed(images, how, _rows(_joined(drawn), torch.cat(order).argsort()))


def _rows(draws: Draws, places: torch.Tensor) -> Draws:
    return draws.each(lambda numbers: numbers[places])


def _joined(parts: Sequence[Draws]) -> Draws:
    return Draws(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Draws)))


def _check(how: Augment, images: torch.Tensor) -> None:
    for name, known, what in (
        (how.geometry, AUGMENTATIONS, "augmentation"),
        (how.policy, policies.POLICIES, "policy"),
    ):
        if name not in known:
            raise UnknownName(f"no {what} {name!r}{nearest(name, known)} Known: {', '.join(known)}.")
    if images.dtype != torch.uint8 and (how.policy != "none" or how.cutout):
        raise StudyError(
            f"policies and cutout take uint8 pictures in 0..255, got {images.dtype}; augment, then prepare"
        )


def _drawn(how: Augment, n: int, height: int, width: int, generator: torch.Generator) -> Draws:
    """Numbers for n images. The order of the draws is part of every result; keep it."""
    down = right = part = flipped = middle = torch.empty(n, 0)
    if how.geometry in ("flip", "crop-flip"):
        down = right = torch.zeros(n, 1, dtype=torch.int64)
    if how.geometry == "crop-flip":
        down, right = (
            torch.randint(-_pad(side), _pad(side) + 1, (n, 1), generator=generator) for side in (height, width)
        )
    if how.geometry == "resized-crop-flip":
        part = torch.rand(n, 4, generator=generator)
    if how.geometry != "none":
        flipped = torch.rand(n, 1, generator=generator) < 0.5
    policy = policies.drawn(how.policy, n, generator)
    if how.cutout:
        middle = torch.cat([torch.randint(side, (n, 1), generator=generator) for side in (height, width)], 1)
    return Draws(down, right, part, flipped, policy, middle)


def _pad(side: int) -> int:
    return min(max(1, side // 8), side - 1)  # a reflection needs a pixel beside the border


def _changed(images: torch.Tensor, how: Augment, draws: Draws) -> torch.Tensor:
    if how.geometry == "resized-crop-flip":
        images = _enlarged(images, draws)
    elif how.geometry != "none":
        images = _moved(images, draws)
    images = policies.apply(images, how.policy, draws.policy)
    return policies.erase(images, how.cutout, draws.middle) if how.cutout else images


def _moved(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    height, width = images.shape[2:]
    # A few small numbers of each image travel to the device; all that grows with its pixels is made there
    down, right, flipped = (small.to(images.device) for small in (draws.down, draws.right, draws.flipped))
    rows = _reflected(torch.arange(height, device=images.device) + down, height)  # (n, h): source row of each row
    columns = _reflected(torch.arange(width, device=images.device) + right, width)  # (n, w)
    return _at(images, rows, torch.where(flipped, columns.flip(1), columns))


def _at(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The pixels of each image at its own rows (n, h) and columns (n, w)."""
    n, channels, height, width = images.shape
    # One gather over flat pixel positions: 7 times as fast as a loop over images, 5 times as fast as
    # indexing with four index tensors (measured for 128 x 3 x 32 x 32 uint8 on one CPU core: 0.5 ms).
    pixels = (rows[:, :, None] * width + columns[:, None, :]).reshape(n, 1, height * width)
    pixels = pixels.expand(n, channels, height * width)
    return images.reshape(n, channels, height * width).gather(2, pixels).view(n, channels, height, width)


def _reflected(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Rows (or columns) up to `side` - 1 beyond either border, reflected into the image."""
    last = side - 1
    return last - (positions.abs() - last).abs()  # both borders reflect


def _enlarged(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """A part of each image at full size, bilinear, then flipped; uint8 in whole numbers, alike on every device."""
    height, width = images.shape[2:]
    rows, lower = _spanned(height, *part_of(draws.part, "rows"), torch.zeros_like(draws.flipped), images.device)
    columns, righter = _spanned(width, *part_of(draws.part, "columns"), draws.flipped, images.device)
    lower, righter = lower[:, None, :, None], righter[:, None, None, :]
    below, beside = (rows + 1).clamp_(max=height - 1), (columns + 1).clamp_(max=width - 1)
    counted = torch.int32 if images.dtype == torch.uint8 else images.dtype
    upper, under = (
        _between(_at(images, at, columns).to(counted), _at(images, at, beside).to(counted), righter)
        for at in (rows, below)
    )
    mixed = _between(upper, under, lower)
    if images.dtype != torch.uint8:
        return mixed.div_(1 << (2 * WEIGHT_BITS))
    return mixed.add_(1 << (2 * WEIGHT_BITS - 1)).bitwise_right_shift_(2 * WEIGHT_BITS).to(torch.uint8)  # rounded


def _between(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """2 to the WEIGHT_BITS times the mean of both, the other with `weight`; other is used up."""
    return other.sub_(one).mul_(weight).add_(one, alpha=(1 << WEIGHT_BITS))


def part_of(draws: torch.Tensor, axis: Literal["rows", "columns"]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a part lies along one axis: (start, length), (n, 1) float64 each, as shares of the image's side.

    draws: (n, 4) in [0, 1). The aspect is drawn evenly in its logarithm, among those with which a part of the drawn
    area fits into the image, so that none is drawn in vain."""
    area, aspect, top, left = draws.double()[:, :, None].unbind(1)
    area = SMALLEST_PART + (1 - SMALLEST_PART) * area
    widest = area.log().neg().clamp(max=math.log(WIDEST))  # wider than 1 / area would not fit
    lean = ((2 * aspect - 1) * widest).exp().sqrt()
    length = (area.sqrt() / lean if axis == "rows" else area.sqrt() * lean).clamp(max=1)
    return (top if axis == "rows" else left) * (1 - length), length


def _spanned(
    side: int, start: torch.Tensor, length: torch.Tensor, flipped: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Source of each of `side` pixels that span a part: (n, side) the pixel before it, and the weight of the next."""
    first = start * side + (length - 1) / 2  # pixels' middles lie at halves
    first, step = ((small * (1 << POSITION_BITS)).round().to(torch.int64).to(device) for small in (first, length))
    at = (first + step * torch.arange(side, device=device)).clamp_(0, (side - 1) << POSITION_BITS)
    at = torch.where(flipped.to(device), at.flip(1), at)
    weight = (at >> (POSITION_BITS - WEIGHT_BITS)) & ((1 << WEIGHT_BITS) - 1)
    return at >> POSITION_BITS, weight.to(torch.int32)


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
    side = preprocessing.image_size
    resized = images.shape[2:] != (side, side)
    # Scaling to [0, 1] and normalising become one multiply-add
    scale, shift = _normalisation(preprocessing, 1 if resized else 255, images.device)
    pixels = _resized(images.float().div_(255), side, preprocessing.interpolation) if resized else images
    pixels = pixels.expand(-1, 3, -1, -1)  # grey -> 3 equal channels
    if preprocessing.channels == "bgr":
        pixels = pixels.flip(1)
    return (pixels * scale).add_(shift)  # (n, c, h, w) -> (n, 3, s, s); bytes become floats in the product


@lru_cache(maxsize=64)
def _normalisation(preprocessing: Preprocessing, unit: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift), (1, 3, 1, 1) float32 each, for pixels in 0..unit; kept, since every batch needs them."""
    with torch.inference_mode(False):  # what is kept must serve a training too
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        scale, shift = (1 / (unit * std)).float(), (-mean / std).float()
        return scale.view(1, 3, 1, 1).to(device), shift.view(1, 3, 1, 1).to(device)


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
