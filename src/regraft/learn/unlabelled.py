"""Learning from images without labels: the network's sure guesses about them become their labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regraft.spec import Recipe

NEVER_SURE = -1  # in place of a class


class Guesses:
    """What a training guesses of its `count` unlabelled images.

    fixmatch: a guess is learned from where its confidence reaches recipe.threshold (Sohn et al. 2020,
    arXiv:2001.07685).  flexmatch: the threshold of a class is lower the fewer images the network has yet been sure of
    to be of that class (Zhang et al. 2021, arXiv:2110.08263); at the start it is 0, and every guess is learned from.
    Nothing here waits for the device but `share`, which the loop asks for once an epoch."""

    def __init__(self, count: int, recipe: Recipe, device: torch.device) -> None:
        assert recipe.semi != "none"
        self.threshold = recipe.threshold
        self.kept = torch.zeros((), device=device)  # guesses learned from since `share` was last asked for
        self.seen = 0
        # Class of each image's last sure guess, (count,); of fixmatch, which needs no memory, None
        self.last = torch.full((count,), NEVER_SURE, device=device) if recipe.semi == "flexmatch" else None

    def loss(self, weak: Tensor, strong: Tensor, places: Tensor) -> Tensor:
        """Mean over all images, also those not learned from, of the cross-entropy of `strong` on the guess of `weak`.

        weak, strong: logits (m, classes) of the same images changed a little and a lot, weak without gradient;
        places: (m,) which of the unlabelled images they are."""
        confidence, guess = weak.float().softmax(1).max(1)
        learned = confidence >= self._thresholds(weak.shape[1])[guess]
        self._remember(places, torch.where(confidence >= self.threshold, guess, NEVER_SURE))
        self.kept += learned.sum()
        self.seen += len(guess)
        return (cross_entropy(strong.float(), guess, reduction="none") * learned).mean()

    def _thresholds(self, classes: int) -> Tensor:
        """Confidence from which a guess is learned from, (classes,)."""
        if self.last is None:
            return torch.full((classes,), self.threshold, device=self.kept.device)
        return self.threshold * mapped(learning_status(self.last, classes))

    def _remember(self, places: Tensor, sure: Tensor) -> None:
        """sure: (m,) classes, or NEVER_SURE, which leaves what was remembered."""
        if self.last is not None:
            # An image that is twice in a batch gets the higher class: a plain write is in no certain order on a GPU.
            latest = torch.full_like(self.last, NEVER_SURE).scatter_reduce_(0, places, sure, "amax")
            self.last = torch.where(latest == NEVER_SURE, self.last, latest)

    def share(self) -> float:
        """Of the guesses since the last call, how many were sure enough to learn from; 0 if there were none."""
        share = float(self.kept) / max(1, self.seen)
        self.kept.zero_()
        self.seen = 0
        return share

    def state(self) -> dict[str, Tensor]:
        """What a training that goes on needs; complete once `share` has been asked for."""
        return {} if self.last is None else {"last": self.last}

    def load(self, state: dict[str, Tensor]) -> None:
        if self.last is not None:
            self.last.copy_(state["last"])


def learning_status(last: Tensor, classes: int) -> Tensor:
    """How far each class is, (classes,) in [0, 1]: its sure guesses over those of the class that has most.

    last: (n,) classes or NEVER_SURE. While more images are without a sure guess than any class has, their number
    takes the place of that class's: no class is far then (the warm-up of arXiv:2110.08263, section 3.2)."""
    # Counted with a place of its own for NEVER_SURE; bincount would wait for the device
    places = torch.where(last == NEVER_SURE, classes, last)
    counts = torch.zeros(classes + 1, dtype=torch.int64, device=last.device)
    counts.scatter_add_(0, places, torch.ones_like(places))
    return counts[:classes] / counts.max()


def mapped(status: Tensor) -> Tensor:
    """x / (2 - x): slow at first, when guesses are often wrong, and faster towards 1."""
    return status / (2.0 - status)
