"""Placeholder for FixMatch and FlexMatch: interface only, to be filled by its owner."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.spec import Recipe


class Guesses:
    """What a training guesses of its unlabelled images."""

    def __init__(self, count: int, recipe: Recipe, device: torch.device) -> None:
        raise NotImplementedError

    def loss(self, weak: Tensor, strong: Tensor, places: Tensor) -> Tensor:
        """weak, strong: logits (m, classes), weak without gradient; places: (m,) which unlabelled images."""
        raise NotImplementedError

    def share(self) -> float:
        """Of the guesses since the last call, how many were sure enough to learn from."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def load(self, state: dict[str, Tensor]) -> None:
        raise NotImplementedError
