"""A model's answers: logits of all images of a set, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.learn.batches import Batches, forward_in_chunks
from regraft.learn.precision import mixed_precision

EVALUATION_BATCH = {"cpu": 256, "cuda": 2048, "mps": 256}


def evaluate(
    model: nn.Module, batches: Batches, *, flip: bool = False, precision: torch.dtype | None = None
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction), in evaluation mode. flip, precision: as in `predict`."""
    logits = predict(model, batches, flip=flip, precision=precision)
    labels = batches.labels.cpu()
    accuracy = float((logits.argmax(1) == labels).double().mean())
    return float(cross_entropy(logits, labels)), accuracy


def predict(
    model: nn.Module,
    batches: Batches,
    advance: Callable[[float, str], None] = lambda done, message: None,
    *,
    flip: bool = False,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Logits (n, classes), float32 on the CPU, in evaluation mode.

    flip: the mean over each image and its mirror image (left to right); for images only.
    precision: of products, as `learn.precision.choose_precision` gives it; None: the device's usual one."""
    model.eval()
    parts: list[Tensor] = []
    done = 0
    device = batches.labels.device

    def forward(positions: Tensor) -> Tensor:
        inputs = batches.take(positions, None)
        with mixed_precision(device, precision):
            logits = model(inputs).float()
            if flip:
                logits = (logits + model(inputs.flip(3)).float()) / 2
        return logits.cpu()  # type: ignore[no-any-return]

    with torch.inference_mode():
        for logits in forward_in_chunks(len(batches), EVALUATION_BATCH[device.type], device, forward):
            parts.append(logits)
            done += len(logits)
            advance(done / len(batches), "")
    return torch.cat(parts)
