"""Labelled inputs in memory, handed out in batches: images (augmented, prepared) or cached features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.augment import augment, augment_view, prepare
from regraft.spec import AS_IS, Augment, Preprocessing

T = TypeVar("T")


class Batches(Protocol):
    """Labels of shape (n,), and inputs for any of the n positions."""

    labels: Tensor

    def __len__(self) -> int: ...

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        """Inputs at `positions`; augmented if a generator is given and the set augments at all."""
        ...


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

    view: (number, positions (n,) in the whole split) of an augmented view, in place of random augmentation."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        augmentation: Augment = AS_IS,
        view: tuple[int, NDArray[np.int64]] | None = None,
        device: torch.device,
    ) -> None:
        # (n, h, w, c) -> (n, c, h, w) as a view: the memory stays channels-last, which convolutions prefer
        whole = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        self.device = device
        self.images = whole.to(device) if _fits(whole, device) else whole
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.view = view

    def __len__(self) -> int:
        return len(self.labels)

    def changed(self, augmentation: Augment) -> ImageBatches:
        """The same images, augmented in another way; no copy is made."""
        other = copy.copy(self)
        other.augmentation = augmentation
        return other

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        images = self.images[positions.to(self.images.device)].to(self.device)
        if self.view is not None:
            number, places = self.view
            images = augment_view(images, self.augmentation, number, places[positions.cpu().numpy()])
        elif generator is not None:
            images = augment(images, self.augmentation, generator)
        return prepare(images, self.preprocessing)  # (n, 3, s, s) float32


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may live on the device: networks and activations need most of its memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < free / 3


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
