"""What the store keeps of a training, whichever way it was done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.errors import Diverged
from regraft.learn.fit import Fit
from regraft.spec import Run
from regraft.study.bench import Bench, Part
from regraft.study.store import Payload


def fit_payload(
    run: Run,
    bench: Bench,
    found: Fit,
    tensors: dict[str, Tensor],
    train: Sequence[Part],
    held: Part | None,
    hashes: tuple[str, str],
) -> Payload:
    """train: the parts trained on.  hashes: of the trunk, before and after.  Raises Diverged on NaN or infinity."""
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Diverged(f"{run.label}: {name} holds NaN or infinity after training; lower the learning rate")
    kept = found.kept
    values: dict[str, Any] = {
        "validation_accuracy": kept.get("validation_accuracy"),
        "validation_loss": kept.get("validation_loss"),
        "train_accuracy": kept.get("train_accuracy"),
        "epoch": found.epoch,
        "curve": found.curve,
        "train_images": sum(map(len, train)),
        "validation_images": 0 if held is None else len(held),
        "class_names": list(bench.dataset(run).classes),
        "depth": round(bench.point(run).depth, 6),
        "trunk_sha256": {"before": hashes[0], "after": hashes[1]},
        "notes": list(found.notes),
    }
    run_as = {"mechanism": found.mechanism, "precision": str(bench.precision).removeprefix("torch.")}
    return Payload(values, tensors, run_as if found.mechanism else {})
