"""Heads without training: similarity to the classes' prototypes, and votes of the nearest training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from regraft.errors import Diverged, TooFewImages

# Cosines lie in [-1, 1], too close together for a softmax. 10 is where learned scales start in Gidaris & Komodakis
# 2018 (arXiv:1804.09458) and Chen et al. 2021 (arXiv:2003.04390). It moves losses only, never the predicted class.
PROTOTYPE_SCALE = 10.0
TEMPERATURE = 0.07  # Wu et al. 2018 (arXiv:1805.01978)
LEAST_SHARE = 1e-6  # of the votes, given to each class in any case: logits and losses stay finite
CHUNK_SIMILARITIES = 2**25  # of queries to training images, held at a time: 128 MiB


ROWS = 8192  # of features that are normalised at once


def prototypes(features: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Mean of the L2-normalised features of each class, normalised again.

    features: (n, d).  labels: (n,) in [0, classes).  Returns (classes, d) float32.
    Raises TooFewImages if a class has no image, Diverged on features that are not finite.
    Snell et al. 2017 (arXiv:1703.05175), with cosines as in Chen et al. 2021 (arXiv:2003.04390)."""
    all_present(labels, classes)
    sums = features.new_zeros(classes, features.shape[1], dtype=torch.float32)
    for rows, their_labels in zip(
        torch.split(features, ROWS), torch.split(labels, ROWS), strict=True
    ):  # no copy of all features
        sums.index_add_(0, their_labels, directions_of(rows))
    return normalize(sums, dim=1)  # the length of a sum plays no part


def all_present(labels: Tensor, classes: int) -> None:
    """Raises TooFewImages if one of the classes is none of the labels (n,)."""
    counts = torch.bincount(labels, minlength=classes)
    if empty := torch.nonzero(counts == 0).flatten().tolist():
        raise TooFewImages(
            f"no prototype for {len(empty)} of {classes} classes, the first of them number {empty[0]}: none of the "
            f"{len(labels)} training images is theirs; give every class at least one image"
        )


class CosinePrototypes(nn.Module):
    """logits = PROTOTYPE_SCALE * cosine of the features and each class's prototype."""

    prototypes: Tensor  # (classes, d), of length 1

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        self.register_buffer("prototypes", prototypes)

    def forward(self, features: Tensor) -> Tensor:  # (n, d) -> (n, classes)
        return PROTOTYPE_SCALE * linear(directions_of(features), self.prototypes)


class NearestNeighbours(nn.Module):
    """logits = log of each class's share of the votes of the nearest training images, by cosine.

    A vote weighs exp(cosine / TEMPERATURE), as in Wu et al. 2018 (arXiv:1805.01978) and DINO's evaluation (Caron et
    al. 2021, arXiv:2104.14294).

    features: (n, d) of the training images; none yet, (0, d), if a state is loaded next, which brings its own.
    labels: (n,) in [0, classes).  neighbours: how many vote; all, if there are fewer.
    Raises Diverged on features that are not finite."""

    features: Tensor  # (n, d), of length 1
    labels: Tensor  # (n,)

    def __init__(self, features: Tensor, labels: Tensor, *, classes: int, neighbours: int) -> None:
        super().__init__()
        self.classes, self.neighbours = classes, neighbours
        self.register_buffer("features", directions_of(features))
        self.register_buffer("labels", labels.long())

    def forward(self, features: Tensor) -> Tensor:  # (n, d) -> (n, classes)
        size = max(1, CHUNK_SIMILARITIES // len(self.features))
        return torch.cat([self._vote(queries) for queries in torch.split(features, size)])

    def _vote(self, queries: Tensor) -> Tensor:
        similarities = linear(directions_of(queries), self.features)  # (b, n)
        nearest, which = similarities.topk(min(self.neighbours, len(self.features)), dim=1)
        weights = (nearest / TEMPERATURE).softmax(dim=1)  # sum to 1
        votes = weights.new_zeros(len(queries), self.classes).scatter_add_(1, self.labels[which], weights)
        return ((votes + LEAST_SHARE) / (1 + self.classes * LEAST_SHARE)).log()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("features", "labels"):  # their number is known from the state alone
            if (held := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(held, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{len(self.features)} images, {self.classes} classes, neighbours={self.neighbours}"


def directions_of(features: Tensor) -> Tensor:
    """Features (n, d) float32, each row of length 1, or 0 if it was 0."""
    features = features.float()
    largest = torch.linalg.vector_norm(features, ord=torch.inf, dim=1, keepdim=True)  # (n, 1)
    if not torch.isfinite(largest).all():
        raise Diverged("the features hold NaN or infinity: the trunk's weights are broken")
    # By the largest first: squares of huge or tiny features are no float32
    return normalize(features / largest.clamp(min=torch.finfo(torch.float32).tiny), dim=1)
