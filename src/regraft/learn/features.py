"""Features of a frozen trunk: every cut in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regraft.errors import Diverged
from regraft.learn.backends import Backend
from regraft.learn.batches import Batches, forward_in_chunks
from regraft.networks import Trunk

BATCH_SIZE = 128  # images, where no back end says what suits it


def extract(
    trunk: Trunk,
    images: Batches,
    *,
    backend: Backend | None = None,
    batch_size: int | None = None,
    advance: Callable[[float], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Pooled features of every cut, computed together.

    trunk: frozen, images (b, 3, s, s) -> {cut: (b, d)}, as made from `body_for_cuts(..., pooled=True)`.
    backend: what `choose_backend` gave for this trunk; None is the trunk itself. batch_size: in images; None
    is the back end's own.  Returns {cut: (n, d) float32 on the CPU}.  Raises Diverged on NaN or infinity."""
    assert trunk.frozen
    run = trunk if backend is None else backend
    size = batch_size or (BATCH_SIZE if backend is None else backend.batch_size)
    features: dict[str, Tensor] = {}
    done = 0

    def forward(positions: Tensor) -> dict[str, Tensor]:
        return {name: values.float().cpu() for name, values in run(images.take(positions, None)).items()}

    with torch.inference_mode():
        for chunk in forward_in_chunks(len(images), size, images.labels.device, forward):
            for name, values in chunk.items():  # (b, d)
                if not torch.isfinite(values).all():
                    raise Diverged(f"features at cut {name!r} hold NaN or infinity: the source's weights are broken")
                whole = features.setdefault(name, torch.empty(len(images), values.shape[1]))
                whole[done : done + len(values)] = values
            done += len(values)
            advance(done / len(images))
    return features
