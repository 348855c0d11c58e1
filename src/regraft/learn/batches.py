"""Labelled inputs in memory, handed out in batches: images (augmented, prepared) or cached features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.augment import augment, prepare
from regraft.spec import Preprocessing
from regraft.spec.models import Augmentation

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
    """uint8 images (n, h, w, c), kept on the device if they fit; augmented and prepared there, batch by batch."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation = "none",
        device: torch.device,
    ) -> None:
        # (n, h, w, c) -> (n, c, h, w) as a view: the memory stays channels-last, which convolutions prefer
        whole = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        self.device = device
        self.images = whole.to(device) if _fits(whole, device) else whole
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
        self.preprocessing = preprocessing
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        images = self.images[positions.to(self.images.device)].to(self.device)
        if generator is not None:
            images = augment(images, self.augmentation, generator)
        return prepare(images, self.preprocessing)  # (n, 3, s, s) float32


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may live on the device: networks and activations need most of its memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < free / 3


class FeatureBatches:
    """Pooled features (n, d) of a frozen trunk."""

    def __init__(self, features: Tensor, labels: NDArray[np.int64], *, device: torch.device) -> None:
        self.features = features.to(device)
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.features[positions]
