"""In which numbers products are computed, and in which order memory lies."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from regraft.errors import StudyError, UnknownName, nearest

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
SMALL_BATCH = 64  # images; below it the plain order is the faster one on a CPU (train-cpu.json: 1.03 to 1.1 times)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on GPUs that compute in it, float32 elsewhere.

    On a CPU with bfloat16 instructions, bfloat16 trains about 1.4 times as fast (train-cpu.json), but gives other last
    bits than most machines have: it is there for the asking. Raises UnknownName, and StudyError where it is slow."""
    if name not in PRECISIONS:
        raise UnknownName(f"no precision {name!r}{nearest(name, PRECISIONS)} Known: {', '.join(PRECISIONS)}.")
    if name == "bfloat16" and not has_bfloat16(device):
        raise StudyError(
            f"precision: bfloat16, but this {device.type} does not compute in it and would be slower; use float32"
        )
    return PRECISIONS[name] or _usual(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 numbers by itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _usual(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" and has_bfloat16(device) else torch.float32


def mixed_precision(
    device: torch.device, precision: torch.dtype | None = None
) -> contextlib.AbstractContextManager[Any]:
    """Products in `precision` (None: the device's usual one), sums and weights in float32."""
    if (precision or _usual(device)) == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision or _usual(device))


def memory_order(device: torch.device, batch_size: int) -> torch.memory_format:
    """In which order convolutions like their images and kernels."""
    small = device.type == "cpu" and batch_size < SMALL_BATCH
    return torch.contiguous_format if small else torch.channels_last
