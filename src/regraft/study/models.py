"""A run's network before training, and its images as batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.learn.batches import ImageBatches
from regraft.networks import Grafted, PooledHead, graft
from regraft.spec import AS_IS, Augment, Run
from regraft.study.bench import Bench, Part


def grafted(run: Run, bench: Bench) -> Grafted:
    """The run's network as it is before training."""
    spec = bench.network(run)
    model = graft(
        spec.network, spec.stem, bench.source_state(run), run.cut, run.head, len(bench.dataset(run).classes),
        frozen=run.method == "frozen", norms=run.norms, seed=run.seed,
        generation=bench.keys.generation(run),
        image_size=bench.keys.preprocessing(run).image_size,
    )  # fmt: skip
    parent = bench.keys.parent(run) if run.head.start == "source" else None
    if parent is not None:
        tensors = bench.store.tensors(bench.keys.fitted(parent))
        assert isinstance(model.head, PooledHead)
        # A head that was trained on cached features has no pooling of its own.
        given = {k.removeprefix("head/").removeprefix("classify."): v for k, v in tensors.items() if k[:5] == "head/"}
        model.head.classify.load_state_dict(given)
    return model


def image_batches(run: Run, parts: Sequence[Part], bench: Bench, augmentation: Augment = AS_IS) -> ImageBatches:
    """The images and labels of the parts, one after the other."""
    return ImageBatches.of_parts(
        [(bench.images(run, part.split), part.positions) for part in parts],
        np.concatenate([part.labels for part in parts]),
        bench.keys.preprocessing(run),
        augmentation=augmentation,
        device=bench.device,
    )
