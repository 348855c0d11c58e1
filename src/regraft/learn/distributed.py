"""One training over several devices: each computes on its share of every batch, and all take the same step.

Equal to one device up to rounding: the batches, their augmentation and blending, and the learning rate are those of one
device; BatchNorm sees the whole batch; gradients are means over the whole batch. Dropout and stochastic depth alone
draw other numbers, since each device draws its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from regraft.errors import StudyError
from regraft.learn.batches import Batches

LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # by which processes of one machine talk; elsewhere gloo finds its own way


@dataclass(frozen=True)
class Team:
    """This process's place among those that train one model together; all call the same methods in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def path(self) -> tuple[int, ...]:
        """What tells this process's random streams from the others'."""
        return () if self.alone else (self.rank,)

    def around(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose backward passes leave means of all processes' gradients in the parameters."""
        if self.alone:
            return model
        own = [torch.cuda.current_device()] if device.type == "cuda" else None
        with warnings.catch_warnings():  # its successor is not in every release of torch that there is
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # Buffers need no broadcast: BatchNorm's statistics are those of the whole batch, everywhere.
            return DistributedDataParallel(model, device_ids=own, broadcast_buffers=False)

    def norms(self) -> contextlib.AbstractContextManager[Any]:
        """Meanwhile BatchNorm in training mode sees the images of all processes."""
        return contextlib.nullcontext() if self.alone else _SharedNorms()

    def sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Of each scalar, its sum over all processes."""
        if self.alone:
            return values
        together = torch.stack(values)
        dist.all_reduce(together)
        return tuple(together)

    def share_of(self, batches: Batches) -> Batches:
        """The part of a set that this process evaluates, none of them empty."""
        return batches if self.alone or len(batches) < self.size else _Share(batches, self.rank, self.size)

    def scores(self, loss: float, accuracy: float, batches: Batches) -> tuple[float, float]:
        """Those of the whole set, from the scores of each process's share."""
        if self.alone:
            return loss, accuracy
        n = len(self.share_of(batches))
        sums = torch.tensor([loss * n, round(accuracy * n), n], dtype=torch.float64, device=batches.labels.device)
        dist.all_reduce(sums)
        whole = sums.tolist()
        return whole[0] / whole[2], whole[1] / whole[2]


ALONE = Team()


def check_devices(count: int, device: torch.device) -> None:
    """Raises StudyError unless this machine has `count` devices of the kind."""
    if count == 1:
        return
    here = torch.cuda.device_count() if device.type == "cuda" else math.inf if device.type == "cpu" else 1
    if count > here or not dist.is_available():
        raise StudyError(
            f"devices: {count} for one training, but this machine has {here} of kind {device.type}; "
            "use fewer, or --device cpu with a process for each"
        )


@contextlib.contextmanager
def joined(rank: int, size: int, meeting: Path, device: torch.device) -> Iterator[Team]:
    """A team of processes of this machine that all name the same new file, `meeting`, as the place to meet."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    elif sys.platform in LOOPBACK:  # else gloo resolves the machine's name, which may lead nowhere, or out
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Team(rank, size)
    finally:
        dist.destroy_process_group()


class _Share:
    """Every `size`-th input of a set, from number `rank` on."""

    def __init__(self, batches: Batches, rank: int, size: int) -> None:
        self.batches = batches
        self.places = torch.arange(rank, len(batches), size, device=batches.labels.device)
        self.labels = batches.labels[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.batches.take(self.places[positions], generator)


# --- BatchNorm over all processes -------------------------------------------------------------------------------


class _SharedNorms(TorchFunctionMode):
    """Calls of batch_norm in training mode become `_SharedNorm`.

    torch.nn.SyncBatchNorm does the same on GPUs only, and takes the place of modules; networks have BatchNorms of their
    own making, with an activation inside, that would be lost. Every one of them calls this function."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is batch_norm:
            return _normalised(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _normalised(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """The parameters of torch.nn.functional.batch_norm, by its names."""
    if not training:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, count = _statistics(input)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)  # unbiased, as in torch
    return _SharedNorm.apply(input, weight, bias, mean, var, count, eps)  # type: ignore[no-any-return]


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (c,) of each channel of x (n, c, ...) over all processes, and the count."""
    var, mean = torch.var_mean(_wide(x), dim=_but_channels(x), correction=0)
    own = torch.cat([mean, var, mean.new_tensor([x.numel() / x.shape[1]])])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return pooled_statistics(torch.stack(every))


def pooled_statistics(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of several sets together. parts: (sets, c + c + 1) of the same of each.

    By deviations from the common mean, which cancel nothing (Chan, Golub & LeVeque 1983)."""
    means, variances = parts[:, :-1].chunk(2, dim=1)  # (sets, c) each
    counts = parts[:, -1:]
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, var, total


class _SharedNorm(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var depend on the images of all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, count: Tensor,
        eps: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        dy = _wide(gradients[0])
        shape = (1, -1, *(1,) * (x.ndim - 2))
        slope = (var + ctx.eps).rsqrt()  # (c,)
        normal = (_wide(x) - mean.view(shape)) * slope.view(shape)
        sums = torch.stack([dy.sum(_but_channels(x)), (dy * normal).sum(_but_channels(x))])  # (2, c)
        of_bias, of_weight = sums.clone()  # of this process's images, as all gradients of parameters
        dist.all_reduce(sums)
        sums /= count
        dx = dy - sums[0].view(shape) - normal * sums[1].view(shape)
        dx *= (slope if weight is None else slope * weight).view(shape)
        learns = weight is not None
        return dx.to(x.dtype), of_weight if learns else None, of_bias if learns else None, None, None, None, None


def _but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _wide(x: Tensor) -> Tensor:
    """bfloat16 is too short for sums."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
