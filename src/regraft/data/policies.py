"""Changes of colour and shape by a policy: factors of colour, TrivialAugment Wide, RandAugment.

Pixels are counted in whole numbers throughout, so every device gives the same image bit for bit; only small draws and
matrices are made on the CPU. Each operation is torchvision's of the same name, to within one level of rounding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

POLICIES = ("none", "color", "trivial", "rand")
LEVELS = 31  # magnitudes 0..30 of an operation
RAND_LEVEL = 9
RAND_ROUNDS = 2
FACTORS = (0.6, 1.4)  # of brightness, contrast and saturation, for "color"
BITS = 16  # of a factor after the point
ONE = 1 << BITS
MATRIX_BITS = 24
GREY_BITS = 22
GREY = tuple(round(share * (1 << GREY_BITS)) for share in (0.2989, 0.587, 0.114))  # of red, green, blue (ITU-R 601-2)
MID_GREY = 128  # what cutout leaves: about 0 once the mean is subtracted

SHAPES = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")
SIGNED = (*SHAPES, "brightness", "color", "contrast", "sharpness")  # each sign with probability 1/2
# Strongest change: slope, degrees, distance of a factor from 1, bits dropped.
# (Müller & Hutter 2021, arXiv:2103.10158, "wide"; Cubuk et al. 2020, arXiv:1909.13719; both as in torchvision.)
STRONGEST = {
    "trivial": {"shear": 0.99, "rotate": 135.0, "factor": 0.99, "posterize": 6.0},
    "rand": {"shear": 0.3, "rotate": 30.0, "factor": 0.9, "posterize": 4.0},
}
SHARE = 150 / 331  # of the side, the farthest translation of "rand"
# The farthest translation of "trivial" as published; on images below 71 pixels it is SHARE of the side instead, as 32
# pixels would push a CIFAR image out of its frame.
PIXELS = 32


def drawn(policy: str, n: int, generator: torch.Generator) -> Tensor:
    """The random numbers of n images, on the CPU; their order is part of every result.

    "color": factors (n, 3) float32; "trivial" and "rand": (n, rounds, 3) int64 of operation, level, sign."""
    if policy == "none":
        return torch.zeros(n, 0)
    if policy == "color":
        low, high = FACTORS
        return low + (high - low) * torch.rand(n, 3, generator=generator)
    rounds = RAND_ROUNDS if policy == "rand" else 1
    operation = torch.randint(len(OPERATIONS), (n, rounds), generator=generator)
    level = torch.full((n, rounds), RAND_LEVEL)
    if policy == "trivial":
        level = torch.randint(LEVELS, (n, rounds), generator=generator)
    sign = 2 * torch.randint(2, (n, rounds), generator=generator) - 1
    return torch.stack([operation, level, sign], 2)


def apply(images: Tensor, policy: str, draws: Tensor) -> Tensor:
    """Each image changed by its own draws, as `drawn` made them.

    images: (n, c, h, w) uint8, c 1 or 3, on any device; returns the same shape, dtype and device.
    "color": brightness, then contrast, then saturation. "trivial": one of OPERATIONS; "rand": two, one after the
    other. What a shape operation brings in from outside the image is black; pixels are moved, not blended."""
    if policy == "none":
        return images
    if policy == "color":
        factors = draws.to(images.device)
        return saturation(contrast(brightness(images, factors[:, 0]), factors[:, 1]), factors[:, 2])
    strengths = _strengths(policy, *images.shape[2:])
    images = images.clone()
    for operation, level, sign in draws.permute(1, 2, 0):
        strength = strengths[operation, level] * torch.where(_signed()[operation], sign, 1)
        _round(images, operation, strength)
    return images


def _round(images: Tensor, operation: Tensor, strength: Tensor) -> None:
    """One operation on each image, in place. operation, strength: (n,), on the CPU, so that nothing waits for a GPU."""
    height, width = images.shape[2:]
    order = torch.argsort(operation, stable=True)
    ends = [0, *torch.bincount(operation, minlength=len(OPERATIONS)).cumsum(0).tolist()]
    shapes = slice(ends[OPERATIONS.index(SHAPES[0])], ends[OPERATIONS.index(SHAPES[-1]) + 1])
    operation, strength = operation[order], strength[order]
    matrices = shape_matrices(operation[shapes], strength[shapes], height, width)
    places, strength = order.to(images.device), strength.float().to(images.device)
    if len(matrices):
        images[places[shapes]] = warp(images[places[shapes]], matrices)
    for name, change in COLOURS.items():
        number = OPERATIONS.index(name)
        some = slice(ends[number], ends[number + 1])
        if some.start < some.stop:
            around_1 = 1 if name in SIGNED else 0  # factors are given as their distance from 1
            images[places[some]] = change(images[places[some]], around_1 + strength[some])


@lru_cache(maxsize=64)
def _strengths(policy: str, height: int, width: int) -> Tensor:
    """(operations, levels) float64: pixels moved (whole ones), degrees, bits left, ... of each operation and level."""
    level, strongest = torch.arange(LEVELS, dtype=torch.float64), STRONGEST[policy]

    def up_to(most: float) -> Tensor:
        return most * level / (LEVELS - 1)

    def pixels(side: int) -> Tensor:
        return up_to(min(PIXELS, SHARE * side) if policy == "trivial" else SHARE * side).trunc()

    known = {
        "shear-x": up_to(strongest["shear"]),
        "shear-y": up_to(strongest["shear"]),
        "translate-x": pixels(width),
        "translate-y": pixels(height),
        "rotate": up_to(strongest["rotate"]),
        "posterize": 8 - up_to(strongest["posterize"]).round(),
        "solarize": 255 - up_to(255),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), up_to(strongest["factor"])),
    }
    return torch.stack([known.get(name, torch.zeros(LEVELS, dtype=torch.float64)) for name in OPERATIONS])


@lru_cache(maxsize=1)
def _signed() -> Tensor:
    return torch.tensor([name in SIGNED for name in OPERATIONS])


def erase(images: Tensor, share: float, middle: Tensor) -> Tensor:
    """A square of `share` of the side in each image, about `middle`, cut off at the border, made mid grey.

    images: (n, c, h, w) uint8; middle: (n, 2) int64 on the CPU, row and column."""
    n, _, height, width = images.shape
    size = round(share * min(height, width))
    row, column = (middle - size // 2).to(images.device)[:, :, None].unbind(1)  # (n, 1) each: where a square begins
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    high, wide = (rows >= row) & (rows < row + size), (columns >= column) & (columns < column + size)
    erased = (high[:, :, None] & wide[:, None, :]).view(n, 1, height, width).to(torch.uint8)
    # Bits, since a masked fill takes three times as long on a CPU
    return (images & (erased - 1)) | (erased * MID_GREY)


# --- shape --------------------------------


def shape_matrices(operation: Tensor, strength: Tensor, height: int, width: int) -> Tensor:
    """From where each pixel comes: (k, 2, 3) float64, (x, y, 1) from the image's middle -> (x, y) of its source.

    operation: (k,) of SHAPES by their number in OPERATIONS; strength: (k,) float64, slope, pixels or degrees.
    Shears leave the top row, or the left column, about where it is; positive angles turn counter-clockwise."""
    first = OPERATIONS.index(SHAPES[0])
    shear_x, shear_y, move_x, move_y, turn = (
        torch.where(operation == first + number, strength, 0.0) for number in range(len(SHAPES))
    )
    cosine, sine = turn.deg2rad().cos(), turn.deg2rad().sin()
    across = [cosine, shear_x - sine, shear_x * (height / 2) - move_x]
    down = [sine + shear_y, cosine, shear_y * (width / 2) - move_y]
    return torch.stack([*across, *down], 1).view(-1, 2, 3)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Each pixel the one nearest to its source (halves go right and down), 0 where the source is outside.

    images: (k, c, h, w) uint8; matrices: (k, 2, 3) float64 on the CPU, as of `shape_matrices`."""
    k, channels, height, width = images.shape
    fixed = (matrices * (1 << MATRIX_BITS)).round().to(torch.int64).to(images.device)[..., None]  # (k, 2, 3, 1)
    # Twice the distance from the middle is whole for every pixel, also where the side is even
    x = 2 * torch.arange(width, device=images.device) - (width - 1)
    y = 2 * torch.arange(height, device=images.device) - (height - 1)

    def source(axis: int, side: int) -> Tensor:
        of_x, of_y, constant = fixed[:, axis].unbind(1)  # (k, 1) each
        across, down = of_x * x, of_y * y + 2 * constant + (side << MATRIX_BITS)
        return (across[:, None, :] + down[:, :, None]) >> (MATRIX_BITS + 1)  # (k, h, w)

    columns, rows = source(0, width), source(1, height)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixels = (rows * width + columns).mul_(inside).view(k, 1, height * width)
    moved = images.flatten(2).gather(2, pixels.expand(k, channels, height * width))
    return moved.mul_(inside.view(k, 1, height * width)).view(k, channels, height, width)


# --- colour: each (k, c, h, w) uint8 -> the same; strengths: (k,) float32 on the images' device ---


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Towards black by factors below 1."""
    return _blend(images, factors, 0)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Towards the mean grey of the image."""
    grey = _grey(images).flatten(1)
    rest = grey.sum(1, dtype=torch.int64) * (ONE - _fixed(factors)) // grey.shape[1]
    return _blend(images, factors, rest.to(torch.int32).view(-1, 1, 1, 1))


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Towards each pixel's own grey; grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    return _blend(images, factors, _grey(images) * (ONE - _fixed(factors)).view(-1, 1, 1, 1))


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Towards the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the border stays as it is."""
    if min(images.shape[2:]) < 3:
        return images
    pixels = images.to(torch.int32)
    box = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    box = box[..., :-2] + box[..., 1:-1] + box[..., 2:]
    smooth = (2 * (box + 4 * pixels[..., 1:-1, 1:-1]) + 13) // 26  # rounded
    changed = images.clone()
    rest = smooth * (ONE - _fixed(factors)).view(-1, 1, 1, 1)
    changed[..., 1:-1, 1:-1] = _blend(images[..., 1:-1, 1:-1], factors, rest)
    return changed


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the highest bits of each value are kept."""
    dropped = 2 ** (8 - bits.to(torch.int32))
    return images & (256 - dropped).to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Values from the threshold (0 to 255) on are inverted."""
    return torch.where(images >= thresholds.ceil().to(torch.uint8).view(-1, 1, 1, 1), ~images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0..255; one of a single value stays as it is."""
    flat = images.flatten(2)
    low, high = (edge.to(torch.int32) for edge in (flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)))
    levels = torch.arange(256, dtype=torch.int32, device=images.device)
    table = ((levels - low) * 255 // (high - low).clamp_(min=1)).clamp_(0, 255)
    return _through(torch.where(high > low, table, levels), images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel's values spread so that they are about equally frequent, by Pillow's rule."""
    flat = images.flatten(2).to(torch.int64)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, flat, counts.new_ones(1).expand_as(flat))
    brightest = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - brightest) // 255  # 0: too few pixels or values to spread
    table = ((counts.cumsum(2, dtype=torch.int32) - counts + step // 2) // step.clamp(min=1)).clamp_(max=255)
    levels = torch.arange(256, dtype=torch.int32, device=images.device)
    return _through(torch.where(step > 0, table, levels), images)


def _fixed(factors: Tensor) -> Tensor:
    return (factors * ONE).round().to(torch.int32)


def _blend(images: Tensor, factors: Tensor, rest: Tensor | Literal[0]) -> Tensor:
    """factor * image + rest, cut off at 0 and 255, rounded down; rest: int32, ONE times (1 - factor) * other."""
    mixed = images * _fixed(factors).view(-1, 1, 1, 1)
    return (mixed.add_(rest) >> BITS).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(k, c, h, w) uint8 -> (k, 1, h, w) int32 in 0..255, rounded down."""
    if images.shape[1] == 1:
        return images.to(torch.int32)
    red, green, blue = images.to(torch.int32)[:, :, None].unbind(1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]) >> GREY_BITS


def _through(table: Tensor, images: Tensor) -> Tensor:
    """table: (k, c, 256) of the new value for each old one."""
    return table.to(torch.uint8).gather(2, images.flatten(2).to(torch.int64)).view_as(images)


COLOURS = {
    "brightness": brightness,
    "color": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}
OPERATIONS = ("identity", *SHAPES, *COLOURS)  # numbered so in the draws; the order is part of every result
