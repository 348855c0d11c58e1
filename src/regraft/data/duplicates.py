"""Pictures that are there twice: the same bytes, or the same photograph changed a little.

Near duplicates are found in three stages. Every image is described by its edges (their strength in 8 directions, in
4 x 4 windows that overlap: Dalal & Triggs 2005) and a few pixels of colour (`sketches`); a shift, a crop or another
scale changes that little. Products of the sketches give each image its nearest neighbours, exactly and in blocks, also
mirrored. The nearest few are laid over it (`registration`), coarsely, and those that then look alike more finely. What
counts in the end is the correlation of both pictures' detail where they lie over each other. Neither brightness nor
contrast plays a part in it.

From which correlation on two pictures are called the same is read off the data set itself (`calibrate`): pictures of
different classes are hardly ever the same one, and how alike the most alike of them are says what chance does.

The question, and what it came to for CIFAR: Barz & Denzler 2020, "Do we train on test data? Purging CIFAR of
near-duplicates", arXiv:1902.00423. Near duplicates make up 3.25 % of CIFAR-10's test images: 286 are like a training
image, and 39 pairs are among themselves (10 % of CIFAR-100's). They searched in the features of a trained network and
had people judge what was found. What is searched here needs no network, no download and no judgement.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.likeness import CHANCE, FEWEST, UNCALIBRATED, Threshold
from regraft.data.registration import likeness, rough
from regraft.data.sketches import Pictures, Positions, in_a_mirror
from regraft.seeding import stream

Advance = Callable[[float], None]  # share done

CANDIDATES = 6  # neighbours of an image that are compared with it, as they are and again mirrored
ROUGHLY = 0.8  # correlation of pixels, laid over each other coarsely, of pairs that are looked at more finely
FINELY = 3  # candidates of an image that are looked at finely in calibration, whatever they correlate
PAIRS = 128  # compared at a time
QUERY_BLOCK, GALLERY_BLOCK = 512, 16384  # 32 MB of products at a time
CALIBRATION_IMAGES = 1500


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


def contents(images: NDArray[np.uint8], positions: Positions) -> NDArray[np.uint64]:
    """(m,) a number for the bytes of each image. Of a million images two have the same by chance with odds of
    1 : 40 million."""
    numbers = np.empty(len(positions), np.uint64)
    for row, position in enumerate(positions):
        digest = hashlib.blake2b(np.ascontiguousarray(images[position]).tobytes(), digest_size=8).digest()
        numbers[row] = int.from_bytes(digest, "little")
    return numbers


def find_pairs(
    queries: Pictures,
    gallery: Pictures,
    threshold: float,
    *,
    same_split: bool = False,
    mirrors: bool = True,
    advance: Advance = lambda done: None,
) -> Pairs:
    """For each image of `queries` the images of `gallery` that are as like it as `threshold` (`registration.likeness`).

    At most 6 of an image are found, and 6 that are like its mirror image.  same_split: both are of one split; no image
    is compared with itself, and each pair is given once, the lower position first.  mirrors: whether a mirrored
    picture is the same one."""
    hidden = (
        _same_position(torch.from_numpy(queries.positions), torch.from_numpy(gallery.positions)) if same_split else None
    )
    found = [_Found.none()]
    for turn, mirrored in enumerate((False, True)[: 1 + mirrors]):
        rows, columns = _candidates(queries, gallery, hidden, mirrored=mirrored)
        if same_split:
            rows, columns = _once(queries, rows, gallery, columns)
        advance((turn + 0.3) / (1 + mirrors))
        roughly, warps = _rough(queries, rows, gallery, columns, mirrored=mirrored)
        near = np.flatnonzero(roughly >= ROUGHLY)
        rows, columns = rows[near], columns[near]
        values = _likeness(queries, rows, gallery, columns, warps[near], mirrored=mirrored)
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
    """The likeness that different pictures reach with a chance of 1 in 10,000 for each image searched for.

    train, labels: a whole training split.  The best likeness of an image to any picture of other classes, and that to
    any other picture of its class, are maxima over many pictures, so both are taken to follow a Gumbel law (Fisher &
    Tippett 1928) in Fisher's z = artanh r. Between classes there are hardly any duplicates, and the law is fitted at
    the median and the tenth from above. Within a class there are, and it is fitted below them, at the lower quartile
    and the median: pictures of one class are more alike than those of two, without being the same. The threshold is
    where the two tails together come to 1 in 10,000. It is the same for every budget of a data set; among fewer
    pictures than the whole split has, chance does less.

    That is an estimate from the bulk of the pictures. A class can have kinds that are more alike than it says (two
    ships on the horizon, two aircraft of one type in the sky)."""
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


# --- the three stages -----------------------------------------------------------------------------------------------


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
    """The nearest few of the gallery for each query, by their sketches: (pairs,) rows and columns."""
    sketches = in_a_mirror(queries.sketches) if mirrored else queries.sketches
    ours, theirs = sketches.flatten(1), gallery.sketches.flatten(1)  # (n, 8 + c, 4, 4) -> (n, 128 + 16 c)
    rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for top in range(0, len(ours), QUERY_BLOCK):
        i = slice(top, min(top + QUERY_BLOCK, len(ours)))
        values, places = torch.empty(i.stop - top, 0), torch.empty(i.stop - top, 0, dtype=torch.int64)
        for left in range(0, len(theirs), GALLERY_BLOCK):
            j = slice(left, min(left + GALLERY_BLOCK, len(theirs)))
            products = ours[i] @ theirs[j].T  # (r, d) x (d, g) -> (r, g)
            if hidden is not None:
                products.masked_fill_(hidden(i, j), -2.0)
            best = products.topk(min(CANDIDATES, products.shape[1]), dim=1)
            values, places = torch.cat([values, best.values], 1), torch.cat([places, best.indices + left], 1)
        best = values.topk(min(CANDIDATES, values.shape[1]), dim=1)
        row, column = torch.nonzero(best.values > 0, as_tuple=True)
        rows.append((row + top).numpy())
        columns.append(places.gather(1, best.indices)[row, column].numpy())
    return np.concatenate(rows), np.concatenate(columns)


def _once(
    queries: Pictures, rows: NDArray[np.int64], gallery: Pictures, columns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The candidates within a split without those that are there from both sides."""
    first, second = queries.positions[rows], gallery.positions[columns]
    _, once = np.unique(np.minimum(first, second) << 32 | np.maximum(first, second), return_index=True)
    once.sort()
    return rows[once], columns[once]


def _rough(
    queries: Pictures, rows: NDArray[np.int64], gallery: Pictures, columns: NDArray[np.int64], *, mirrored: bool
) -> tuple[NDArray[np.float32], Tensor]:
    """Of each pair, laid over each other coarsely: (pairs,) correlations of the pixels, and (pairs, 4) warps."""
    values, warps = np.empty(len(rows), np.float32), torch.empty(len(rows), 4)
    for part, ours, theirs in _pictures(queries, rows, gallery, columns, mirrored=mirrored):
        warps[part], found = rough(ours, theirs)
        values[part] = found.numpy()
    return values, warps


def _likeness(
    queries: Pictures, rows: NDArray[np.int64], gallery: Pictures, columns: NDArray[np.int64], warps: Tensor, *,
    mirrored: bool,
) -> NDArray[np.float32]:  # fmt: skip
    """(pairs,)"""
    values = np.empty(len(rows), np.float32)
    for part, ours, theirs in _pictures(queries, rows, gallery, columns, mirrored=mirrored):
        values[part] = likeness(ours, theirs, warps[part]).numpy()
    return values


def _pictures(
    queries: Pictures, rows: NDArray[np.int64], gallery: Pictures, columns: NDArray[np.int64], *, mirrored: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The pictures of some pairs at a time, (b, c, s, s) both."""
    for start in range(0, len(rows), PAIRS):
        part = slice(start, start + PAIRS)
        ours, theirs = queries.pixels(rows[part]), gallery.pixels(columns[part])
        yield part, ours.flip(3) if mirrored else ours, theirs


def _best(queries: Pictures, gallery: Pictures, hidden: Hidden, *, mirrors: bool) -> NDArray[np.float32]:
    """(n,) the best likeness of each query to what is not hidden from it; -1 where that is nothing."""
    best = np.full(len(queries), -1, np.float32)
    for mirrored in (False, True)[: 1 + mirrors]:
        rows, columns = _candidates(queries, gallery, hidden, mirrored=mirrored)
        roughly, warps = _rough(queries, rows, gallery, columns, mirrored=mirrored)
        order = np.lexsort((-roughly, rows))  # each query's candidates, the likeliest first
        starts = np.searchsorted(rows[order], rows[order])
        near = order[np.arange(len(order)) - starts < FINELY]
        rows, columns = rows[near], columns[near]
        np.maximum.at(best, rows, _likeness(queries, rows, gallery, columns, warps[near], mirrored=mirrored))
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
