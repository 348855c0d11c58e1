"""Features of a frozen trunk: every cut in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regraft.errors import Diverged
from regraft.learn.batches import Batches, forward_in_chunks
from regraft.networks import Trunk


def extract(
    trunk: Trunk,
    images: Batches,
    *,
    batch_size: int = 128,
    advance: Callable[[float], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Pooled features of every cut, computed together.

    trunk: frozen, images (b, 3, s, s) -> {cut: (b, d)}, as made from `body_for_cuts(..., pooled=True)`.
    Returns {cut: (n, d) float32 on the CPU}.  Raises Diverged on NaN or infinity."""
    assert trunk.frozen
    parts: dict[str, list[Tensor]] = {}

    def forward(positions: Tensor) -> dict[str, Tensor]:
        return {name: values.float().cpu() for name, values in trunk(images.take(positions, None)).items()}

    with torch.inference_mode():
        for chunk in forward_in_chunks(len(images), batch_size, images.labels.device, forward):
            for name, values in chunk.items():
                parts.setdefault(name, []).append(values)
            advance(sum(map(len, next(iter(parts.values())))) / len(images))
    features = {name: torch.cat(chunks) for name, chunks in parts.items()}
    for name, values in features.items():
        if not torch.isfinite(values).all():
            raise Diverged(f"features at cut {name!r} hold NaN or infinity: the source's weights are broken")
    return features
