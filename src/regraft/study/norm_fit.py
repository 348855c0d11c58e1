"""What a trained network's BatchNorms say about the images that it was trained on.

A norm holds mean and variance of its inputs in training. Where the inputs that it gets now are far from them, the
images are prepared in another way: scaled or shifted at the first norm, of another size at the later ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.spec import Preprocessing

if TYPE_CHECKING:  # torch is imported when there is a network to look into
    from torch import Tensor, nn

SIZES = (16, 32, 64, 128, 224)  # pixels, tried beside the recorded and the published image size
LARGEST = 320
AS_GOOD = 0.05  # a Misfit.total so close to the best is as good: the order of channels hardly shows
CLEARLY = math.log(2)  # one Misfit.total is better than another: a factor of 2 in the standard deviation

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CAFFE = {"mean": (123.68 / 255, 116.779 / 255, 103.939 / 255), "std": (1 / 255, 1 / 255, 1 / 255)}
# Ways in which published weights want their images, by name; mean and std in [0, 1] units.
FAMILIES: dict[str, dict[str, Any]] = {
    "ImageNet's mean and std": IMAGENET,
    "-1 to 1": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "regraft's own for random weights": {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
    "0 to 1, nothing subtracted": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "0 to 255, nothing subtracted": {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
    "Caffe's (0 to 255, mean colour subtracted)": CAFFE,
    "Caffe's in BGR": {"mean": CAFFE["mean"][::-1], "std": CAFFE["std"], "channels": "bgr"},
}


@dataclass(frozen=True)
class Misfit:
    """How the inputs of a BatchNorm differ from the statistics it holds; mean over its channels."""

    scale: float  # ln(standard deviation of the inputs / of those that it was trained on)
    shift: float  # |difference of the means| / root of the sum of both variances

    @property
    def total(self) -> float:
        return abs(self.scale) + self.shift


@dataclass(frozen=True)
class Other:
    """A preprocessing that the weights were not given."""

    name: str
    preprocessing: Preprocessing
    misfit: Misfit


@dataclass(frozen=True)
class Fits:
    """How well the source's norms fit what they get."""

    first: Misfit | None  # the first one's, prepared as recorded
    better: Other | None
    sizes: Mapping[int, float]


NO_FITS = Fits(None, None, {})


def norm_fits(body: nn.Module, pictures: Tensor, recorded: Preprocessing, published: Preprocessing | None) -> Fits:
    """Of a network in evaluation mode, which is left as it is.

    pictures: (n, h, w, c) uint8.  recorded: how they are prepared.  published: what the library's own weights for the
    network expect, if it has any."""
    first, better = _families(body, pictures, recorded, published)
    mended = first is not None and better is not None and better.misfit.total < first.total - CLEARLY
    colours = better.preprocessing if mended and better is not None else recorded  # one mistake at a time
    return Fits(first, better, _by_size(body, pictures, colours, published))


def is_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm with statistics of its own."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm) and module.running_mean is not None


class _Enough(Exception):
    """The first norm has been seen; the rest of the network need not run."""


def _misfits(body: nn.Module, inputs: Tensor, *, first: bool) -> list[Misfit]:
    """Of every norm of the network in the order in which they run, or of the first one."""
    seen: list[Misfit] = []

    def look(norm: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(_misfit(norm, given[0]))
        if first:
            raise _Enough

    hooks = [module.register_forward_pre_hook(look) for module in body.modules() if is_norm(module)]
    try:
        body(inputs)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _misfit(norm: nn.Module, x: Tensor) -> Misfit:  # x: (n, c, ...)
    values = x.transpose(0, 1).flatten(1).double()  # (c, n * positions)
    buffers = dict(norm.named_buffers(recurse=False))
    held_mean, held = buffers["running_mean"].double(), buffers["running_var"].double() + 1e-8
    own_mean, own = values.mean(1), values.var(1, correction=0) + 1e-8
    # A channel that was constant in training says nothing.
    alive = held > 1e-4 * held.max()
    scale = 0.5 * (own / held).log()[alive].mean()
    shift = ((own_mean - held_mean).abs() / (own + held).sqrt())[alive].mean()
    return Misfit(float(scale), float(shift))


def _families(
    body: nn.Module, pictures: Tensor, recorded: Preprocessing, published: Preprocessing | None
) -> tuple[Misfit | None, Other | None]:
    """The first norm's misfit as recorded, and the other preprocessing that fits it best."""
    import torch

    from regraft.data.augment import prepare

    plain = recorded.model_copy(update={**FAMILIES["0 to 1, nothing subtracted"], "channels": "rgb"})
    pixels = prepare(pictures, plain)  # (n, 3, s, s) in [0, 1]; resized once for all

    def misfit(how: Preprocessing) -> Misfit | None:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (how.mean, how.std))
        ordered = pixels.flip(1) if how.channels == "bgr" else pixels
        return next(iter(_misfits(body, (ordered - mean) / std, first=True)), None)

    tried: dict[str, Preprocessing] = {}
    if published is not None:
        fields = {"mean": published.mean, "std": published.std, "channels": published.channels}
        tried["what is published for this network"] = recorded.model_copy(update=fields)
    tried |= {name: recorded.model_copy(update={"channels": "rgb", **fields}) for name, fields in FAMILIES.items()}
    others = [Other(name, how, found) for name, how in tried.items() if (found := misfit(how)) is not None]
    best = min((other.misfit.total for other in others), default=0.0)
    return misfit(recorded), next((other for other in others if other.misfit.total <= best + AS_GOOD), None)


def _by_size(
    body: nn.Module, pictures: Tensor, recorded: Preprocessing, published: Preprocessing | None
) -> dict[int, float]:
    """Mean misfit over all norms at the recorded image size and at others; {} for a network without norms."""
    from regraft.data.augment import prepare

    if not any(map(is_norm, body.modules())):
        return {}
    sizes = {recorded.image_size, *SIZES, *([] if published is None else [published.image_size])}
    found = {}
    for size in sorted(size for size in sizes if size == recorded.image_size or size <= LARGEST):
        # As much work as at the recorded size or at 64 px, as far as that goes.
        count = max(4, min(len(pictures), int(len(pictures) * (max(64, recorded.image_size) / size) ** 2)))
        how = recorded.model_copy(update={"image_size": size})
        try:
            seen = _misfits(body, prepare(pictures[:count], how), first=False)
        except (RuntimeError, AssertionError):  # smaller than its pooling allows, or made for one size
            if size == recorded.image_size:
                raise
            continue
        found[size] = sum(misfit.total for misfit in seen) / len(seen)
    return found
