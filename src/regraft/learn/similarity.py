"""How alike two representations of the same images are (CKA), and how far fine-tuning moved a network.

Pure functions of feature tables (n, d) and state dicts. CKA is that of Kornblith et al. 2019 (arXiv:1905.00414) with
linear kernels, between the layers of one network or of two, however wide. Summed over mini-batches with the unbiased
estimate of HSIC (Song et al. 2012, as in Nguyen et al. 2021, arXiv:2010.15327) it needs no products of all images,
and the size of the batches matters by chance alone. The plain estimate comes out too large where features are more
than images: of unrelated ones it is near 1 then, the unbiased one near 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.errors import TooFewImages
from regraft.learn.solve import centring_of, with_float64
from regraft.seeding import torch_stream

BATCH_SIZE = 512  # images; their products take 2 MiB a table
LEAST_IMAGES = 4  # that the unbiased estimate is defined for
STATISTICS = ("running_mean", "running_var")  # of BatchNorm: not trained, but gathered
REST = "(rest)"


def linear_cka(a: Tensor, b: Tensor) -> float:
    """The plain estimate: |B.T A|^2 / (|A.T A| |B.T B|) of centred features, in [0, 1]; NaN if one is constant.

    Not changed by rotating or scaling either.  a: (n, d), b: (n, e), of the same images in the same order.
    Takes products of all images, (n, n): for some thousands of them.
    Raises Diverged on features that are not finite.  Kornblith et al. 2019."""
    k, m = (_products(table) for table in (a, b))
    _check_same_images([k, m])
    both = k.square().sum().sqrt() * m.square().sum().sqrt()
    return float((k * m).sum() / both) if both > 0 else math.nan


def minibatch_cka(a: Tensor, b: Tensor, *, batch_size: int = BATCH_SIZE) -> float:
    """`cka_matrix` of two tables: around 0 for unrelated features, a little below it by chance; 1 for equal ones."""
    return float(cka_matrix([a], [b], batch_size=batch_size)[0, 0])


def cka_matrix(a: Sequence[Tensor], b: Sequence[Tensor], *, batch_size: int = BATCH_SIZE) -> Tensor:
    """CKA of every table of `a` with every table of `b`, unbiased, over mini-batches.

    a, b: tables (n, d_i) of the same images in the same order.  Returns (len(a), len(b)) float64; NaN where a table is
    constant. Images left over that are fewer than 4 are left out.  Raises TooFewImages below 4 images, Diverged on
    features that are not finite."""
    _check_same_images([*a, *b])
    n = len(a[0])
    # Batches in an order of their own: tables are often sorted by class, and a batch of one class knows no others.
    order = torch.randperm(n, generator=torch_stream(0, "cka")) if n > batch_size else torch.arange(n)
    similarity = Similarity()
    for rows in torch.split(order, batch_size):
        if len(rows) >= LEAST_IMAGES or n < LEAST_IMAGES:
            similarity.add(*([table[rows.to(table.device)] for table in tables] for tables in (a, b)))
    return similarity.matrix()


class Similarity:
    """`cka_matrix` for tables that are never whole in memory: `add` batch after batch, then `matrix`.

    Each batch has to be a random one as regards the classes of its images."""

    def __init__(self) -> None:
        self._between: Tensor | None = None  # (a, b), HSIC summed over batches
        self._of_a: Tensor | None = None  # (a,), each with itself
        self._of_b: Tensor | None = None  # (b,)

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Features of one batch of images, of every table.  Raises TooFewImages below 4 images."""
        _check_same_images([*a, *b])
        if len(a[0]) < LEAST_IMAGES:
            raise TooFewImages(
                f"CKA without bias needs at least {LEAST_IMAGES} images in a batch, got {len(a[0])}; give more"
            )
        k, m = (torch.stack([_without_diagonal(_products(table)) for table in tables]) for tables in (a, b))
        # A batch counts by its images: the last one may be short.
        between, of_a, of_b = (len(a[0]) * hsic for hsic in (_hsic(k, m), _hsic_own(k), _hsic_own(m)))
        if self._between is None or self._of_a is None or self._of_b is None:
            self._between, self._of_a, self._of_b = between, of_a, of_b
        else:
            self._between, self._of_a, self._of_b = self._between + between, self._of_a + of_a, self._of_b + of_b

    def matrix(self) -> Tensor:
        """(a, b) float64 on the CPU, of all batches so far."""
        assert self._between is not None and self._of_a is not None and self._of_b is not None, "add a batch first"
        # Roots apart: products of tiny numbers would vanish. No table has less than 0 with itself but by rounding.
        lengths = self._of_a.clamp(min=0).sqrt()[:, None], self._of_b.clamp(min=0).sqrt()[None, :]
        return torch.where((lengths[0] > 0) & (lengths[1] > 0), self._between / lengths[0] / lengths[1], math.nan)


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC of every pair.  k: (a, n, n), m: (b, n, n), zero diagonals.  Returns (a, b)."""
    n = k.shape[-1]
    rows_k, rows_m = k.sum(-1), m.sum(-1)  # (a, n), (b, n)
    whole = torch.outer(rows_k.sum(-1), rows_m.sum(-1)) / ((n - 1) * (n - 2))
    return (k.flatten(1) @ m.flatten(1).T + whole - 2 / (n - 2) * rows_k @ rows_m.T) / (n * (n - 3))


def _hsic_own(k: Tensor) -> Tensor:
    return torch.cat([_hsic(one, one).flatten() for one in torch.split(k, 1)])


def _products(table: Tensor) -> Tensor:
    """(n, n) products of the centred rows of a table (n, d), float64 on the CPU."""
    x, _ = with_float64(table, table)
    scaling = centring_of(x)
    z = scaling(x)
    # What varies by less than its numbers resolve is constant.
    varies = z.abs().amax(0) > torch.finfo(x.dtype).eps * scaling.mean[0].abs()
    z = torch.where(varies, z, 0.0)
    return (z @ z.T).cpu()


def _without_diagonal(products: Tensor) -> Tensor:
    return products - torch.diag(products.diagonal())


def _check_same_images(tables: Sequence[Tensor]) -> None:
    if len({len(table) for table in tables}) != 1:
        raise ValueError(
            "CKA compares features of the same images; the tables have "
            f"{', '.join(str(len(table)) for table in tables) or 'no'} rows"
        )


# --- what fine-tuning moved -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """How far one block moved, relative to where it began: |after - before| / |before|. None without such tensors."""

    block: str
    weights: float | None  # trained parameters
    statistics: float | None  # BatchNorm's running means and variances


def weight_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, blocks: Sequence[str]) -> list[Moved]:
    """Relative change of the weights of each block, and of all tensors in no block as "(rest)" if there are any.

    before, after: state dicts by the same names; names in one only (another classifier) are left out, integers too.
    blocks: names of modules, such as cuts; a tensor belongs to the longest that its name begins with. A block whose
    tensors were 0 before and are not after moved infinitely far."""
    squares: dict[tuple[str, bool], list[float]] = {}
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if not old.is_floating_point() or old.shape != new.shape:
            continue
        block = max((b for b in blocks if name.startswith(f"{b}.")), key=len, default=REST)
        sums = squares.setdefault((block, name.rpartition(".")[2] in STATISTICS), [0.0, 0.0])
        sums[0] += float((new.double().cpu() - old.double().cpu()).square().sum())
        sums[1] += float(old.double().square().sum())
    found = {block for block, _ in squares}
    names = [*(block for block in blocks if block in found), *([REST] if REST in found else [])]
    return [Moved(b, _relative(squares.get((b, False))), _relative(squares.get((b, True)))) for b in names]


def _relative(sums: list[float] | None) -> float | None:
    if sums is None:
        return None
    moved, length = sums
    return math.sqrt(moved / length) if length > 0 else (math.inf if moved > 0 else 0.0)


def drift(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """CKA between before and after fine-tuning at every cut that both have: 1 where nothing was relearned.

    before, after: cut -> features (n, d) of the same images in the same order.  Errors as for `cka_matrix`."""
    return {
        cut: minibatch_cka(features, after[cut], batch_size=batch_size)
        for cut, features in before.items()
        if cut in after
    }
