"""Pictures that are there twice: the same bytes, or the same photograph changed a little.

Near duplicates are found in two stages. Every image is shrunk to 8 x 8 pixels of normalised contrast, and products of
these give each image its nearest neighbours, exactly and in blocks, also mirrored. The best few of each are compared
pixel by pixel: the correlation of both pictures' detail (each pixel less the mean of the 5 x 5 about it, in pictures
of 32 pixels) at shifts of up to 2 pixels. Neither brightness nor contrast plays a part in it. Of detail rather than of
pixels, because the pixels of any two skies correlate: at the level that 1 in 1,000 images reaches with one of another
class, detail tells 82 % of the near duplicates known in CIFAR-10 (below), pixels 33 % (LOG.md).

From which correlation on two pictures are called the same is read off the data set itself (`calibrate`): pictures of
different classes are hardly ever the same one, and how alike the most alike of them are says what chance does.

The question, and what it came to for CIFAR: Barz & Denzler 2020, "Do we train on test data? Purging CIFAR of
near-duplicates", arXiv:1902.00423. Near duplicates make up 3.25 % of CIFAR-10's test images: 286 are like a training
image, and 39 pairs are among themselves (10 % of CIFAR-100's). They searched in the features of a trained network and
had people judge what was found. What is searched here are pixels: no network, no download and no judgement, and so
only pictures that agree in detail.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regraft.seeding import stream

Positions = NDArray[np.int64]
Advance = Callable[[float], None]  # share done

SMALL = 8  # pixels a side, where neighbours are searched
LARGEST = 64  # pixels a side, where pictures are compared; larger ones are shrunk to it
CANDIDATES = 4  # neighbours of an image that are compared with it, as they are and again mirrored
BATCH_BYTES = 2**21  # of pictures as they are stored, at a time
QUERY_BLOCK, GALLERY_BLOCK = 512, 16384  # 32 MB of products at a time
NEARLY_CONSTANT = 2.0  # of 255 levels: standard deviation of all pixels about their channel's mean
CALIBRATION_IMAGES = 2000
FEWEST = 100  # training images; with fewer the data says nothing of chance
UNCALIBRATED = 0.97
BLUNT = 0.97  # a picture that was compressed, or moved by half a pixel, correlates less
CHANCE = 1e-4  # pairs taken for the same picture by chance, for each image that is searched for


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of a split that are looked at, and what they are searched by.

    images: (n, h, w, c) uint8 of the whole split, possibly memory-mapped.  positions: (m,) of those looked at, sorted.
    small: (m, c, 8, 8) float32, each of length 1, or 0 where the picture is nearly constant.
    side: in pixels, at which pictures are compared."""

    images: NDArray[np.uint8]
    positions: Positions
    small: Tensor
    side: int
    grey: bool

    def __len__(self) -> int:
        return len(self.positions)

    def part(self, positions: Positions) -> Pictures:
        """Only these of the images looked at."""
        rows = torch.from_numpy(np.searchsorted(self.positions, positions))
        return replace(self, positions=positions, small=self.small[rows])

    def detail(self, rows: NDArray[np.int64]) -> Tensor:
        """(b, c, side, side) float32 of the images looked at number `rows`: what each pixel has beyond the mean about
        it. Light and dark halves are common to many pictures; this is not."""
        pixels = _pixels(self.images[self.positions[rows]], self.side, grey=self.grey)
        at = torch.arange(self.side)
        about = _means((at[:, None] - at).abs() <= max(1, self.side // 12))
        return pixels - about @ pixels @ about.T


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images that are taken for the same picture; the closest first. All arrays: (m,)."""

    first: Positions
    second: Positions
    correlation: NDArray[np.float32]
    exact: NDArray[np.bool_]  # the same bytes
    mirrored: NDArray[np.bool_]  # one is like the other's mirror image

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Threshold:
    """From which correlation on two pictures are taken for the same, and what is known of its errors."""

    correlation: float
    by_chance: float | None  # pairs expected by chance for each image searched for; None: not calibrated
    images: int  # training images that it was calibrated on
    other_class: int  # of these, how many have a picture of another class that close

    @property
    def blunt(self) -> bool:
        """Whether different pictures are so alike that hardly more than copies can be told from them."""
        return self.by_chance is not None and self.correlation > BLUNT

    @property
    def text(self) -> str:
        """For people: what the threshold is, and what it rests on."""
        if self.by_chance is None:
            return f"{self.correlation:.3f}, not calibrated (fewer than {FEWEST} training images)"
        return (
            f"{self.correlation:.3f}: by chance {10_000 * self.by_chance:.2g} for 10,000 images; of "
            f"{self.images:,} training images {self.other_class} have one of another class that close"
        )


def look_at(
    images: NDArray[np.uint8], positions: Positions | None = None, *, side: int | None = None, grey: bool = False
) -> Pictures:
    """Describe images for the search.  images: (n, h, w, c) uint8.  positions: default all.

    side: at which they are compared, default their own, at most 64.  grey: leave colour out, as to compare with
    grey pictures."""
    positions = np.arange(len(images)) if positions is None else positions
    side = side or min(images.shape[1], LARGEST)
    found = torch.empty(len(positions), 1 if grey else images.shape[3], SMALL, SMALL)
    done = 0
    for batch in _batches(images, positions):
        pixels = _pixels(images[batch], side, grey=grey)
        small = _centred(F.adaptive_avg_pool2d(pixels, SMALL))  # (b, c, side, side) -> (b, c, 8, 8)
        length = small.flatten(1).norm(dim=1).clamp_(min=1e-6)
        length.masked_fill_(_spread(pixels) < NEARLY_CONSTANT, torch.inf)
        torch.div(small, length[:, None, None, None], out=found[done : done + len(batch)])
        done += len(batch)
    return Pictures(images, positions, found, side, grey)


def contents(images: NDArray[np.uint8], positions: Positions) -> NDArray[np.uint64]:
    """(m,) a number for the bytes of each image. Of a million images two have the same by chance with odds of
    1 : 40 million."""
    numbers = np.empty(len(positions), np.uint64)
    for row, position in enumerate(positions):
        digest = hashlib.blake2b(np.ascontiguousarray(images[position]).tobytes(), digest_size=8).digest()
        numbers[row] = int.from_bytes(digest, "little")
    return numbers


def nearly_constant(images: NDArray[np.uint8], positions: Positions) -> Positions:
    """Those of `positions` whose pixels hardly vary: a standard deviation under 2 of 255 levels."""
    found = [np.empty(0, np.int64)]
    for batch in _batches(images, positions):
        pixels = _pixels(images[batch], images.shape[1], grey=False)
        found.append(batch[(_spread(pixels) < NEARLY_CONSTANT).numpy()])
    return np.concatenate(found)


def find_pairs(
    queries: Pictures,
    gallery: Pictures,
    threshold: float,
    *,
    same_split: bool = False,
    mirrors: bool = True,
    advance: Advance = lambda done: None,
) -> Pairs:
    """For each image of `queries` the images of `gallery` that correlate with it from `threshold` on.

    At most 4 of an image are found, and 4 that are like its mirror image.  same_split: both are of one split; no image
    is compared with itself, and each pair is given once, the lower position first.  mirrors: whether a mirrored
    picture is the same one."""
    hidden = (
        _same_position(torch.from_numpy(queries.positions), torch.from_numpy(gallery.positions)) if same_split else None
    )
    found = [_Found.none()]
    for turn, mirrored in enumerate((False, True)[: 1 + mirrors]):
        rows, columns = _candidates(queries, gallery, hidden, mirrored=mirrored)
        advance((turn + 0.5) / (1 + mirrors))
        values = _compared(queries, rows, gallery, columns, mirrored=mirrored)
        kept = values >= threshold
        found.append(_Found(rows[kept], columns[kept], values[kept], np.full(int(kept.sum()), mirrored)))
        advance((turn + 1) / (1 + mirrors))
    every = _Found(*(np.concatenate(parts) for parts in zip(*(part.arrays for part in found), strict=True)))
    first, second = queries.positions[every.rows], gallery.positions[every.columns]
    if same_split:
        first, second = np.minimum(first, second), np.maximum(first, second)
    best = _best_of_each(first, second, every.values)
    first, second = first[best], second[best]
    equal_shape = queries.images.shape[1:] == gallery.images.shape[1:]
    exact = np.array(
        [
            equal_shape and np.array_equal(queries.images[i], gallery.images[j])
            for i, j in zip(first, second, strict=True)
        ],
        dtype=np.bool_,
    )
    return Pairs(first, second, every.values[best], exact, every.mirrored[best])


def calibrate(train: Pictures, labels: NDArray[np.int64], *, mirrors: bool = True) -> Threshold:
    """The correlation that different pictures reach with a chance of 1 in 10,000 for each image searched for.

    train, labels: a whole training split.  The best correlation of an image with any picture of other classes, and that
    with any other picture of its class, are maxima over many pictures, so both are taken to follow a Gumbel law
    (Fisher & Tippett 1928) in Fisher's z = artanh r. Between classes there are hardly any duplicates, and the law is
    fitted at the median and the tenth from above. Within a class there are, and it is fitted below them, at the lower
    quartile and the median: pictures of one class are more alike than those of two, without being the same. The
    threshold is where the two tails together come to 1 in 10,000. It is the same for every budget of a data set; among
    fewer pictures than the whole split has, chance does less.

    That is an estimate from the bulk of the pictures. A class can have kinds that are more alike than it says (two
    ships on the horizon, two aircraft of one type in the sky): in CIFAR-10, of the 60 least close test images that were
    found beyond those that Barz & Denzler list, about 11 are such, by eye, where chance was to give 1 in all."""
    if len(train) < FEWEST:
        return Threshold(UNCALIBRATED, None, len(train), 0)
    chosen = np.sort(stream(0, "audit").permutation(len(train))[:CALIBRATION_IMAGES])
    asked = train.part(train.positions[chosen])
    of_query, of_gallery = torch.from_numpy(labels[chosen]), torch.from_numpy(labels)
    itself = _same_position(torch.from_numpy(asked.positions), torch.from_numpy(train.positions))

    def same_class(i: slice, j: slice) -> Tensor:
        return of_query[i, None] == of_gallery[None, j]

    own = _best(asked, train, lambda i, j: itself(i, j) | ~same_class(i, j), mirrors=mirrors)
    other = _best(asked, train, same_class, mirrors=mirrors)
    tails = [_gumbel(own, 0.25, 0.5), _gumbel(other, 0.5, 0.9)]

    def rate(z: float) -> float:
        return sum(-math.expm1(-math.exp(min(50.0, (place - z) / scale))) for place, scale in tails)

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) > CHANCE else (low, middle)
    correlation = min(math.tanh(high), 0.9999)  # below 1, so that equal pictures are found whatever is rounded
    return Threshold(correlation, rate(math.atanh(correlation)), len(asked), int((other >= correlation).sum()))


# --- the two stages -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float32]
    mirrored: NDArray[np.bool_]

    @classmethod
    def none(cls) -> _Found:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.bool_))

    @property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        return self.rows, self.columns, self.values, self.mirrored


Hidden = Callable[[slice, slice], Tensor]  # (rows, columns) -> (r, c) bool: which pairs are not to be found


def _same_position(first: Tensor, second: Tensor) -> Hidden:
    return lambda i, j: first[i, None] == second[None, j]


def _candidates(
    queries: Pictures, gallery: Pictures, hidden: Hidden | None, *, mirrored: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The nearest few of the gallery for each query, by their small pictures: (pairs,) rows and columns."""
    small = queries.small.flip(3) if mirrored else queries.small
    ours, theirs = small.flatten(1), gallery.small.flatten(1)  # (n, c, 8, 8) -> (n, 64 c)
    rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for top in range(0, len(ours), QUERY_BLOCK):
        i = slice(top, min(top + QUERY_BLOCK, len(ours)))
        values, places = torch.empty(i.stop - top, 0), torch.empty(i.stop - top, 0, dtype=torch.int64)
        for left in range(0, len(theirs), GALLERY_BLOCK):
            j = slice(left, min(left + GALLERY_BLOCK, len(theirs)))
            products = ours[i] @ theirs[j].T  # (r, 64 c) x (64 c, g) -> (r, g)
            if hidden is not None:
                products.masked_fill_(hidden(i, j), -2.0)
            best = products.topk(min(CANDIDATES, products.shape[1]), dim=1)
            values, places = torch.cat([values, best.values], 1), torch.cat([places, best.indices + left], 1)
        best = values.topk(min(CANDIDATES, values.shape[1]), dim=1)
        row, column = torch.nonzero(best.values > 0, as_tuple=True)
        rows.append((row + top).numpy())
        columns.append(places.gather(1, best.indices)[row, column].numpy())
    return np.concatenate(rows), np.concatenate(columns)


def _compared(
    queries: Pictures, rows: NDArray[np.int64], gallery: Pictures, columns: NDArray[np.int64], *, mirrored: bool
) -> NDArray[np.float32]:
    """(pairs,) correlations of the pictures themselves."""
    found = [np.empty(0, np.float32)]
    for batch in _batches(queries.images, np.arange(len(rows))):
        ours, theirs = queries.detail(rows[batch]), gallery.detail(columns[batch])
        found.append(correlation(ours.flip(3) if mirrored else ours, theirs).numpy())
    return np.concatenate(found)


def correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """(b,) the best correlation of each of `ours` with its picture in `theirs`, (b, c, s, s) float32 both, over shifts
    of up to s / 16 pixels, at most 2, in both directions."""
    side = ours.shape[2]
    reach = min(2, side // 16)
    width = side - 2 * reach
    inner = _centred(ours[:, :, reach : reach + width, reach : reach + width])
    length = inner.square().sum((1, 2, 3))
    theirs = _centred(theirs)  # changes nothing but what is lost in rounding
    start, at = torch.arange(2 * reach + 1)[:, None], torch.arange(side)
    windows = _means((at >= start) & (at < start + width))  # (shifts, s)
    mean, square = windows @ theirs @ windows.T, windows @ theirs.square() @ windows.T  # (b, c, shifts, shifts)
    lengths = (square - mean.square()).sum(1).mul_(width * width)  # (b, shifts, shifts)
    products = torch.empty_like(lengths)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            window = theirs[:, :, down : down + width, right : right + width]
            products[:, down, right] = (inner * window).sum((1, 2, 3))  # `inner` has no mean: theirs plays no part
    values = products / (length[:, None, None] * lengths).sqrt_().clamp_(min=1e-3)
    return values.flatten(1).amax(1).clamp_(max=1.0)


def _best(queries: Pictures, gallery: Pictures, hidden: Hidden, *, mirrors: bool) -> NDArray[np.float32]:
    """(n,) the best correlation of each query with what is not hidden from it; -1 where that is nothing."""
    best = np.full(len(queries), -1, np.float32)
    for mirrored in (False, True)[: 1 + mirrors]:
        rows, columns = _candidates(queries, gallery, hidden, mirrored=mirrored)
        np.maximum.at(best, rows, _compared(queries, rows, gallery, columns, mirrored=mirrored))
    return best


def _gumbel(correlations: NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """(place, scale) of the Gumbel law in z = artanh r that has these two quantiles of the correlations, (n,)."""
    z = np.arctanh(np.clip(correlations.astype(np.float64), -0.999999, 0.999999))
    lower, upper = (float(quantile) for quantile in np.quantile(z, (low, high)))
    of_lower, of_upper = -math.log(-math.log(low)), -math.log(-math.log(high))
    scale = max((upper - lower) / (of_upper - of_lower), 1e-3)
    return lower - of_lower * scale, scale


def _best_of_each(first: Positions, second: Positions, values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Places of the best of each pair (it may be there from both sides, and mirrored), the closest pair first."""
    order = np.lexsort((second, first, -values))
    _, once = np.unique(first[order] << 32 | second[order], return_index=True)
    best: NDArray[np.int64] = order[np.sort(once)]
    return best


def _batches(images: NDArray[np.uint8], positions: Positions) -> Iterator[Positions]:
    """`positions` in parts, so that few of these images are in memory at once."""
    step = max(1, BATCH_BYTES // math.prod(images.shape[1:]))
    for start in range(0, len(positions), step):
        yield positions[start : start + step]


def _pixels(images: NDArray[np.uint8], side: int, *, grey: bool) -> Tensor:
    """(b, h, w, c) uint8 -> (b, c, side, side) float32 in 0..255."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    if grey:
        pixels = pixels.mean(1, keepdim=True)
    return pixels.contiguous() if pixels.shape[2] == side else F.interpolate(pixels, size=(side, side), mode="area")


def _means(inside: Tensor) -> Tensor:
    """(m, s) bool -> float32: what to multiply s pixels by for the means of m parts of them. Along both axes this is
    five times as fast as `avg_pool2d` on a CPU."""
    return inside.float() / inside.sum(1, keepdim=True)


def _centred(pixels: Tensor) -> Tensor:
    return pixels - pixels.mean((2, 3), keepdim=True)


def _spread(pixels: Tensor) -> Tensor:
    """(b,) standard deviation about each channel's mean."""
    return pixels.var((2, 3), correction=0).mean(1).sqrt()
