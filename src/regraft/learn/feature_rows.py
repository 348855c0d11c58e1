"""Features that stay in files: taken a block at a time, for passes and for batches in random order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class FeatureRows(Protocol):
    """Features (n, d) that are taken by their number, 0 to n - 1; of augmented views, one view after the other."""

    @property
    def width(self) -> int:
        """d"""
        ...

    @property
    def block(self) -> int:
        """So many may be in memory at a time."""
        ...

    def __len__(self) -> int: ...

    def take(self, places: Tensor) -> Tensor:
        """places (b,), in any order -> (b, d) float32, on the CPU."""
        ...


def in_blocks(features: Tensor | FeatureRows, size: int) -> Iterator[Tensor]:
    """All features, `size` at a time."""
    if isinstance(features, Tensor):
        yield from torch.split(features, size)
    else:
        yield from in_turn(features, torch.split(torch.arange(len(features)), size))


def in_turn(rows: FeatureRows, steps: Sequence[Tensor]) -> Iterator[Tensor]:
    """The features at each of `steps`, read for many steps at a time: a file is opened once for all of them."""
    for group in _groups(steps, rows.block):
        taken = rows.take(torch.cat(group).cpu())
        yield from torch.split(taken, [len(places) for places in group])


def _groups(steps: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Steps in a row, of `most` places together, or one of more."""
    group: list[Tensor] = []
    places = 0
    for step in steps:
        if group and places + len(step) > most:
            yield group
            group, places = [], 0
        group.append(step)
        places += len(step)
    if group:
        yield group


class StreamedBatches:
    """`batches.FeatureBatches` of features that stay in files.

    Batches that are announced (`expect`), and those taken one after the other from the front, are read in blocks."""

    def __init__(self, rows: FeatureRows, labels: Tensor, *, device: torch.device) -> None:
        """labels: (n,); rows: (views * n, d)."""
        assert len(rows) % len(labels) == 0
        self.rows, self.device = rows, device
        self.labels = labels.to(device)
        self.views = len(rows) // len(labels)
        self.coming: deque[Tensor] = deque()
        self.ahead: Iterator[Tensor] = iter(())
        self.start, self.held = 0, torch.empty(0, rows.width)  # rows from `start` on

    def __len__(self) -> int:
        return len(self.labels)

    def expect(self, coming: Sequence[Tensor]) -> None:
        """The next batches, as the very tensors that `take` will get."""
        if self.views == 1:  # else which view is known when the batch is taken
            self.coming, self.ahead = deque(coming), in_turn(self.rows, coming)

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        """(b,) -> (b, d); of views the first, or with a generator one drawn for each image."""
        if self.coming and positions is self.coming[0]:
            self.coming.popleft()
            return next(self.ahead).to(self.device)
        places = positions.cpu()
        if self.views > 1 and generator is not None:
            views = torch.randint(self.views, (len(places),), generator=generator)
            return self.rows.take(places + len(self) * views).to(self.device)
        first = int(places[0]) if len(places) else 0
        if torch.equal(places, torch.arange(first, first + len(places))):
            return self._slice(first, first + len(places)).to(self.device)
        return self.rows.take(places).to(self.device)

    def _slice(self, first: int, end: int) -> Tensor:
        if first < self.start or end > self.start + len(self.held):
            self.start = first
            self.held = torch.empty(0, self.rows.width)  # let go before the next is read
            self.held = self.rows.take(torch.arange(first, min(max(end, first + self.rows.block), len(self.rows))))
        return self.held[first - self.start : end - self.start]
