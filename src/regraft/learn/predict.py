"""A model's answers: logits of all images of a set, in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.learn.batches import Batches, forward_in_chunks

EVALUATION_BATCH = {"cpu": 256, "cuda": 2048, "mps": 256}


def evaluate(model: nn.Module, batches: Batches, *, flip: bool = False) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction), in evaluation mode."""
    logits = predict(model, batches, flip=flip)
    labels = batches.labels.cpu()
    accuracy = float((logits.argmax(1) == labels).double().mean())
    return float(cross_entropy(logits, labels)), accuracy


def predict(
    model: nn.Module,
    batches: Batches,
    advance: Callable[[float, str], None] = lambda done, message: None,
    *,
    flip: bool = False,
) -> Tensor:
    """Logits (n, classes), float32 on the CPU, in evaluation mode.

    flip: the mean over each image and its mirror image (left to right); for images only."""
    model.eval()
    parts: list[Tensor] = []
    done = 0
    device = batches.labels.device

    def forward(positions: Tensor) -> Tensor:
        inputs = batches.take(positions, None)
        with mixed_precision(device):
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


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 on GPUs that compute in it; float32 elsewhere (on CPUs bf16 was measured slower)."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()
