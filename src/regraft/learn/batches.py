"""Labelled inputs, handed out in batches: images (augmented, prepared) or cached features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.augment import augment, augment_view, prepare
from regraft.learn.rows import MEMORY_SHARE, Kept, Part, Rows, free_bytes, rows_of
from regraft.spec import AS_IS, Augment, Preprocessing

T = TypeVar("T")


class Batches(Protocol):
    """Labels of shape (n,), and inputs for any of the n positions."""

    labels: Tensor

    def __len__(self) -> int: ...

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        """Inputs at `positions`; augmented if a generator is given and the set augments at all."""
        ...


@runtime_checkable
class _ReadAhead(Protocol):
    """Batches that may lie in files."""

    def expect(self, coming: Sequence[Tensor]) -> None: ...


def forward_in_chunks(count: int, size: int, device: torch.device, forward: Callable[[Tensor], T]) -> Iterator[T]:
    """forward(positions) over all `count` positions, `size` at a time; halved as often as the memory asks for it."""
    start = 0
    while start < count:
        positions = torch.arange(start, min(start + size, count), device=device)
        try:
            yield forward(positions)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2
            continue
        start += len(positions)


class ImageBatches:
    """uint8 images (n, h, w, c), kept on the device if they fit; augmented and prepared there, batch by batch.

    images: an array in memory, or `rows_of` arrays that may be larger than memory.
    view: (number, positions (n,) in the whole split) of an augmented view, in place of random augmentation."""

    def __init__(
        self,
        images: NDArray[np.uint8] | Rows,
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        augmentation: Augment = AS_IS,
        view: tuple[int, NDArray[np.int64]] | None = None,
        device: torch.device,
    ) -> None:
        self.rows = _in_memory(images, device) if isinstance(images, np.ndarray) else images
        assert len(self.rows) == len(labels)
        self.device = device
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.view = view

    @classmethod
    def of_parts(
        cls,
        parts: Sequence[Part],
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        augmentation: Augment = AS_IS,
        device: torch.device,
        memory_bytes: int | None = None,
    ) -> ImageBatches:
        """The images of parts of memory-mapped splits, copied into memory only if they fit.

        parts: (images of a whole split, positions in it), one after the other; labels: (n,) of all of them.
        memory_bytes: see `rows_of`. Where the images lie changes no result."""
        rows = rows_of(parts, device, memory_bytes)
        return cls(rows, labels, preprocessing, augmentation=augmentation, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def changed(self, augmentation: Augment) -> ImageBatches:
        """The same images, augmented in another way; no copy is made."""
        other = copy.copy(self)
        other.augmentation = augmentation
        return other

    def expect(self, coming: Sequence[Tensor]) -> None:
        """What `take` will be asked for next."""
        self.rows.expect(coming)

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        images = self.rows.take(positions)
        if self.view is not None:
            number, places = self.view
            images = augment_view(images, self.augmentation, number, places[positions.cpu().numpy()])
        elif generator is not None:
            images = augment(images, self.augmentation, generator)
        return prepare(images, self.preprocessing)  # (n, 3, s, s) float32


def read_ahead(batches: Batches, coming: Sequence[Tensor]) -> None:
    """Announce the positions that `take` will get next, as these very tensors, so that they are read beforehand.

    Without it each batch of what does not fit into memory is read when it is asked for."""
    if isinstance(batches, _ReadAhead):
        batches.expect(coming)


def _in_memory(images: NDArray[np.uint8], device: torch.device) -> Kept:
    whole = torch.from_numpy(np.ascontiguousarray(images))
    fits = device.type != "cuda" or whole.nbytes <= free_bytes(device) * MEMORY_SHARE
    return Kept(whole.to(device) if fits else whole, device)


class FeatureBatches:
    """Pooled features of a frozen trunk: (n, d), or (views, n, d) of augmented views, one of which is drawn each time
    that an image is shown in training."""

    def __init__(self, features: Tensor, labels: NDArray[np.int64], *, device: torch.device) -> None:
        self.features = features.to(device)
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.features.ndim == 2:
            return self.features[positions]
        if generator is None:
            return self.features[0, positions]
        views = torch.randint(len(self.features), (len(positions),), generator=generator)
        return self.features[views.to(positions.device), positions]
