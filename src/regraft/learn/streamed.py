"""Heads on features that are more than memory should hold: read a block at a time, as often as a head needs them.

Least squares and prototypes need sums over the images, one pass for any number of them. Logistic regression needs two
passes an iteration, and its logits (n, classes) in memory. Heads that are stepped see the batches, and take the steps,
that they see and take in memory, bit for bit; solved ones differ from those solved in memory by rounding only.
Whichever of images n and features d is fewer, its square is held in float64, as an eigendecomposition needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from regraft.errors import Diverged
from regraft.learn.feature_rows import FeatureRows
from regraft.learn.lbfgs import Images, SharedImages, with_ones
from regraft.learn.logistic import RANK_TOLERANCE, TOLERANCE, in_groups
from regraft.learn.nearest import all_present, directions_of
from regraft.learn.ridge import weights_for
from regraft.learn.solve import Scaling, Solved, chunks


@dataclass(frozen=True)
class Stream:
    """Labelled features, handed out in blocks; every pass over them is the same."""

    rows: FeatureRows  # (n, d)
    labels: Tensor  # (n,) in [0, classes)
    device: torch.device  # that computes; it must have float64

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Places of a block and its features (b, d) float32.  Raises Diverged on NaN or infinity."""
        for start in range(0, len(self), self.rows.block):
            places = slice(start, min(start + self.rows.block, len(self)))
            x = self.rows.take(torch.arange(places.start, places.stop)).to(self.device)
            low, high = torch.aminmax(x)
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise Diverged("the features hold NaN or infinity: the source's weights are broken; no head is solved")
            yield places, x

    def standardised(self, scaling: Scaling) -> Iterator[tuple[slice, Tensor]]:
        """Places and features (b, d) float64, few enough for copies to be small."""
        for places, x in self.blocks():
            start = places.start
            for rows in chunks(x):
                yield slice(start, start + len(rows)), scaling(rows)
                start += len(rows)


# --- sums over the images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Sums over n images, float64, of features less a fixed `centre` near their mean, so that little cancels."""

    centre: Tensor  # (d,)
    counts: Tensor  # (classes,) images
    by_class: Tensor  # (classes, d) sums
    squares: Tensor  # (d,) sums of squares, or (d, d) of all products

    @property
    def scaling(self) -> Scaling:
        """As `solve.scaling_of` gives it for these features in memory."""
        n = self.counts.sum()
        offset = self.by_class.sum(0) / n
        mean = self.centre + offset
        squares = self.squares if self.squares.ndim == 1 else self.squares.diagonal()
        scale = (squares / n - offset.square()).clamp(min=0).sqrt()
        resolution = torch.finfo(torch.float32).eps * mean.abs()
        return Scaling(mean[None], torch.where(scale > resolution.clamp(min=1e-30), scale, torch.inf)[None])

    def gram(self) -> Tensor:
        """z.T @ z / n, (d, d), of the standardised features z."""
        n, scale = self.counts.sum(), self.scaling.scale[0]
        offset = self.by_class.sum(0) / n
        return (self.squares / n).addr_(offset, offset, alpha=-1).div_(scale[:, None]).div_(scale)

    def with_classes(self) -> Tensor:
        """z.T @ t / n, (d, classes), of z and the centred one-hot labels t."""
        n = self.counts.sum()
        offset = self.by_class.sum(0) / n
        return (self.by_class - self.counts[:, None] * offset).T / n / self.scaling.scale.T


def moments_of(stream: Stream, *, classes: int, products: bool) -> Moments:
    """One pass over the images. products: those of all pairs of features, not only their squares."""
    counts = torch.bincount(stream.labels, minlength=classes).to(stream.device).double()
    found: Moments | None = None
    for places, x in stream.blocks():
        labels = stream.labels[places].to(stream.device)
        if found is None:
            d = x.shape[1]
            centre = x.mean(0, dtype=torch.float64)
            zeros = centre.new_zeros
            found = Moments(centre, counts, zeros(classes, d), zeros(d, d) if products else zeros(d))
        start = 0
        for rows in chunks(x):
            off = rows.double() - found.centre
            found.by_class.index_add_(0, labels[start : start + len(rows)], off)
            if products:
                found.squares.addmm_(off.T, off)
            else:
                found.squares.add_(off.square().sum(0))
            start += len(rows)
    assert found is not None, "a training part has images"
    return found


def _products_of_images(stream: Stream, scaling: Scaling) -> Tensor:
    """z @ z.T / n, (n, n), of standardised features: for fewer images than features. A pass for each block."""
    products = scaling.mean.new_zeros(len(stream), len(stream))
    for places, z in stream.standardised(scaling):
        for others, y in stream.standardised(scaling):
            if others.start > places.start:
                break
            products[places, others] = z @ y.T / len(stream)
            products[others, places] = products[places, others].T
    return products


def _of_features(of_images: Tensor, stream: Stream, scaling: Scaling) -> Tensor:
    """z.T @ of_images, (n, k) -> (d, k), in one pass."""
    total = of_images.new_zeros(stream.rows.width, of_images.shape[1])
    for places, z in stream.standardised(scaling):
        total.addmm_(z.T, of_images[places])
    return total


# --- heads ------------------------------------------------------------------------------------------------------


def ridge_streamed(stream: Stream, *, classes: int, penalties: Sequence[float]) -> list[Solved]:
    """`ridge.ridge` for all penalties from one pass over the images (three or more, if they are fewer than features).

    Raises Diverged on features that are not finite."""
    n, d = len(stream), stream.rows.width
    moments = moments_of(stream, classes=classes, products=d <= n)
    scaling, shares = moments.scaling, moments.counts / n
    if d <= n:
        s, directions = torch.linalg.eigh(moments.gram())
        weights = weights_for(s, directions, directions.T @ moments.with_classes(), penalties)
    else:
        labels = stream.labels.to(stream.device)
        targets = one_hot(labels, classes).double() - shares
        s, directions = torch.linalg.eigh(_products_of_images(stream, scaling))
        of_images = weights_for(s, directions, directions.T @ targets / n, penalties)
        together = _of_features(torch.cat(of_images, dim=1), stream, scaling)
        weights = list(torch.split(together, classes, dim=1))
    folded = (scaling.fold(weight.T, shares) for weight in weights)
    return [Solved(w, b, converged=True, iterations=0) for w, b in folded]


def prototypes_streamed(stream: Stream, *, classes: int) -> Tensor:
    """`nearest.prototypes`, (classes, d) float32, from one pass; sums in float64.

    Raises TooFewImages if a class has no image, Diverged on features that are not finite."""
    all_present(stream.labels, classes)
    sums = torch.zeros(classes, stream.rows.width, dtype=torch.float64, device=stream.device)
    for places, x in stream.blocks():
        sums.index_add_(0, stream.labels[places].to(stream.device), directions_of(x).double())
    return normalize(sums, dim=1).float()


def logistic_streamed(
    stream: Stream, *, classes: int, penalties: Sequence[float], max_iterations: int, tolerance: float = TOLERANCE
) -> list[Solved]:
    """`logistic.logistic`; each iteration, for all penalties together, is two passes over the images.

    Raises Diverged on features that are not finite."""
    n, d = len(stream), stream.rows.width
    moments = moments_of(stream, classes=classes, products=d <= n)
    scaling = moments.scaling
    images: Images
    if d <= n:
        s, directions = torch.linalg.eigh(moments.gram())
        s = s.clamp(min=0).float()
        images = StreamedImages(stream, scaling, directions)
    else:  # fewer images than features: their coordinates, (n, r) with r < n, are held
        s, of_images = torch.linalg.eigh(_products_of_images(stream, scaling))
        kept = s > RANK_TOLERANCE * s[-1]
        lengths = (n * s[kept]).sqrt()
        images = SharedImages(with_ones((of_images[:, kept] * lengths).float()))
        s, directions = s[kept].float(), of_images[:, kept] / lengths  # (n, r)
        del of_images
    del moments
    solved = in_groups(
        images, stream.labels.to(stream.device), s, penalties,
        classes=classes, max_iterations=max_iterations, tolerance=tolerance,
    )  # fmt: skip
    found = []
    for w, converged, iterations in solved:
        along = w[:, :-1].double()  # (classes, r)
        of_features = along @ directions.T if d <= n else _of_features(directions @ along.T, stream, scaling).T
        weight, bias = scaling.fold(of_features, w[:, -1])
        found.append(Solved(weight, bias, converged, iterations))
    return found


@dataclass(frozen=True)
class StreamedImages:
    """`lbfgs.Images`: the same for all problems, read anew in each pass.

    The weights are turned into the basis of the features, not the features into that of the weights."""

    stream: Stream
    scaling: Scaling
    directions: Tensor  # (d, d) float64, the basis

    def logits(self, weights: Tensor) -> Tensor:
        m, classes = weights.shape[:2]
        flat = weights.flatten(0, 1)  # (m * classes, d + 1)
        of_features = (flat[:, :-1].double() @ self.directions.T).float().T
        logits = weights.new_empty(len(self.stream), m * classes)
        for places, z in self.stream.standardised(self.scaling):
            logits[places] = torch.addmm(flat[:, -1], z.float(), of_features)
        return logits.view(-1, m, classes)

    def gradient(self, errors: Tensor) -> Tensor:
        flat = errors.flatten(1)  # (n, m * classes)
        sums = self.directions.new_zeros(flat.shape[1], len(self.directions))
        for places, z in self.stream.standardised(self.scaling):
            sums += flat[places].T @ z.float()
        of_weights = torch.cat([sums @ self.directions, flat.sum(0, dtype=torch.float64)[:, None]], dim=1)
        return (of_weights / len(self.stream)).float().view(*errors.shape[1:], -1)

    def of(self, problems: Tensor) -> StreamedImages:
        return self
