"""One seed, many independent random streams, each with a name.

A stream's numbers depend on the seed, its name and its path alone, so adding a stream moves no other
and a training can be resumed at any epoch without saving a generator's state. No global generator is used.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _entropy(seed: int, name: str, path: tuple[int, ...]) -> list[int]:
    digest = hashlib.sha256(name.encode()).digest()[:16]
    return [seed, *np.frombuffer(digest, dtype="<u4").tolist(), *path]


def stream(seed: int, name: str, *path: int) -> np.random.Generator:
    """A generator for `seed`, `name` ("subset", "init", "order", "augment", ...) and `path` (e.g. the epoch)."""
    return np.random.default_rng(np.random.SeedSequence(_entropy(seed, name, path)))


def derive(seed: int, name: str, *path: int) -> int:
    """A 63-bit seed for libraries that want an integer (torch)."""
    words = np.random.SeedSequence(_entropy(seed, name, path)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def torch_stream(seed: int, name: str, *path: int) -> torch.Generator:
    """The same as `stream`, as a CPU torch.Generator."""
    import torch

    return torch.Generator().manual_seed(derive(seed, name, *path))
