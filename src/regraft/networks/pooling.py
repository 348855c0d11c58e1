"""Pooling: how a network's intermediate output, often a map, becomes one vector an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.errors import StudyError
from regraft.spec.models import Pooling

Layout = Literal["chw", "hwc", "tokens", "flat"]

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
CELLS: dict[Pooling, int] = {"grid-2": 2, "grid-3": 3, "grid-4": 4}  # per side
POSITIONS: dict[Layout, tuple[int, ...]] = {"chw": (2, 3), "hwc": (1, 2), "tokens": (1,), "flat": ()}  # dimensions


def pool(features: Tensor, layout: Layout, kind: Pooling = "average") -> Tensor:
    """One vector an image.

    features: (n, c, h, w), (n, h, w, c), (n, tokens, c) or (n, c) by `layout`.
    average: over all positions, (n, c). Of tokens, all are averaged, a class token among them: at an inner
    block it is one token like the others, and only the network's own last steps make it the summary (at
    `penultimate` those have run, and the layout is flat).
    average-max: that average, then the maximum over the same positions, (n, 2c).
    grid-k: averages over k x k cells of a map, (n, c * k * k), channel by channel, row by row. A cell reaches from
    floor(i * h / k) to ceil((i + 1) * h / k), so where k does not divide the side neighbours share a row.
    Which kinds a value has, `pooled_width` says.
    """
    # No step asks for the shape: torch.fx, which traces bodies anew to fold and export them, does not know it.
    assert kind in poolings(layout), f"no {kind} pooling of {layout} values; ask pooled_width first"
    if layout == "flat":
        return features
    if kind in CELLS:
        maps = features.permute(0, 3, 1, 2) if layout == "hwc" else features  # -> (n, c, h, w)
        # One operator: 2 to 25 times as fast as a mean for each cell, which pays where the maps are large and the
        # trunk below them small.
        return F.adaptive_avg_pool2d(maps, CELLS[kind]).flatten(1)
    average = features.mean(dim=POSITIONS[layout])  # (n, c)
    return average if kind == "average" else torch.cat([average, features.amax(dim=POSITIONS[layout])], dim=1)


def poolings(layout: Layout) -> tuple[Pooling, ...]:
    """The kinds that a large enough value of this layout has: tokens form no grid, a vector is one position."""
    return {"flat": POOLINGS[:1], "tokens": POOLINGS[:2]}.get(layout, POOLINGS)


def pooled_width(shape: tuple[int, ...], layout: Layout, kind: Pooling) -> int:
    """Length of the vector that `pool` makes of one image's value of this shape.

    shape: without the batch dimension.  Raises StudyError if such a value cannot be pooled so.
    """
    allowed = [known for known in poolings(layout) if CELLS.get(known, 1) <= _side(shape, layout)]
    if kind not in allowed:
        raise StudyError(
            f"pool: {kind} {_needs(kind)}; the value at this cut has shape {shape} ({_words(layout)}). "
            f"Possible here: {', '.join(allowed)}. Choose one of these, or a cut where the network still has such a "
            "map: `regraft cuts NAME` lists the shapes."
        )
    channels = shape[0] if layout == "chw" else shape[-1]
    return channels * (2 if kind == "average-max" else CELLS.get(kind, 1) ** 2)


def layouts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layout]:
    """How each value of one network is laid out, by its shape without the batch dimension; in the network's order.

    Images are square, so of three sides the two equal ones are height and width. Of a cube the shape says nothing:
    it is laid out as the map nearest to it in the network (channels first if there is no other).
    """
    found: dict[str, Layout] = {}
    names = list(shapes)
    maps = [i for i, name in enumerate(names) if len(shapes[name]) == 3 and len(set(shapes[name])) > 1]
    for i, name in enumerate(names):
        if len(shapes[name]) == 3:
            telling = names[min(maps, key=lambda other: abs(other - i), default=i)]
            height, width, channels = shapes[telling]
            found[name] = "hwc" if height == width != channels else "chw"
        else:
            found[name] = "tokens" if len(shapes[name]) == 2 else "flat"
    return found


def _side(shape: tuple[int, ...], layout: Layout) -> int:
    """The shorter side of a map, in positions; 1 of what is no map."""
    sides = {"chw": shape[1:], "hwc": shape[:2]}.get(layout, (1,))
    return min(sides)


def _needs(kind: Pooling) -> str:
    if kind in CELLS:
        return f"needs a map of at least {CELLS[kind]} x {CELLS[kind]} positions"
    return "needs a map, or tokens"


def _words(layout: Layout) -> str:
    return {
        "chw": "channels, height, width",
        "hwc": "height, width, channels",
        "tokens": "tokens, channels",
        "flat": "one vector",
    }[layout]
