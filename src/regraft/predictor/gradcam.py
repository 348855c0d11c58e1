"""Where in a picture a class was seen: Grad-CAM.

Selvaraju, Cogswell, Das, Vedantam, Parikh & Batra 2017, "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization" (arXiv:1610.02391): the last map of the network, its channels weighed by how much the
class's logit grows with each of them on average, summed, and what is negative left out. It says where in the picture
the evidence lies that the last map holds, not why; nor does it say anything about the certainty of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from regraft.errors import PredictorError
from regraft.predictor.network import Answering, Whole

LEAST_SIDE = 2  # positions; a map of one position says nothing of where


def grad_cam(network: Answering, image: Tensor, index: int) -> NDArray[np.float32]:
    """(h, w) in [0, 1], of the network's last map: how much each place speaks for a class; the highest is 1.

    All 0 where nothing speaks for it. network: its trunk as `cut` and `pooled_body` make them, graphs whose nodes are
    blocks. image: (1, 3, s, s), prepared, on the network's device. index: of the class.
    Of a vision transformer the map is that of its last block whose picture tokens reach the answer.
    Raises PredictorError where the network has no map, or its answer no gradient."""
    if image.ndim != 4 or len(image) != 1:
        raise PredictorError(f"Grad-CAM looks at one picture, (1, 3, s, s); got {tuple(image.shape)}")
    maps: list[_Map] = []
    with torch.enable_grad():
        prepared = image.detach().clone().requires_grad_()
        logits = network.answer(_run(network.trunk.body, prepared, maps))
        if not 0 <= index < logits.shape[1]:
            raise PredictorError(f"there is no class {index}; classes are 0 to {logits.shape[1] - 1}")
        if not maps:
            raise PredictorError("this network has no map of more than one position, so Grad-CAM has none to show")
        if not logits.requires_grad:
            raise PredictorError("the answer of this head has no gradient, so Grad-CAM cannot be drawn")
        gradients = torch.autograd.grad(logits[0, index], [one.value for one in maps], allow_unused=True)
    for one, gradient in reversed(list(zip(maps, gradients, strict=True))):
        if gradient is not None and bool(one.channels_first(gradient).any()):
            return class_map(one.channels_first(one.value.detach()), one.channels_first(gradient))
    last = maps[-1].channels_first(maps[-1].value)
    return np.zeros(tuple(last.shape[1:]), np.float32)


def class_map(values: Tensor, gradients: Tensor) -> NDArray[np.float32]:
    """(h, w) in [0, 1].  values: the map, (c, h, w).  gradients: of the class's logit by it, (c, h, w).

    Equations 1 and 2 of the article, then divided by the maximum."""
    weights = gradients.mean(dim=(1, 2), keepdim=True)  # (c, 1, 1)
    found = torch.relu((weights * values).sum(0))  # (h, w)
    highest = found.max()
    scaled = found / highest if highest > 0 else torch.zeros_like(found)
    return scaled.float().cpu().numpy().astype(np.float32)


@dataclass(frozen=True)
class _Map:
    """A value of one picture with places in it, as it came."""

    value: Tensor
    form: str  # "chw", "hwc" or "tokens"

    def channels_first(self, value: Tensor) -> Tensor:
        """(c, h, w) of a value laid out like this one."""
        if self.form == "chw":
            return value[0]
        if self.form == "hwc":
            return value[0].permute(2, 0, 1)
        side = isqrt(value.shape[1])
        places = value[0, value.shape[1] - side * side :]  # the class's token, and registers, come first
        return places.T.reshape(-1, side, side)


def _form(value: Any) -> str:
    """How a value is laid out, if it has places: pictures are square, so the two equal sides are height and width."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return ""
    shape = value.shape[1:]
    if len(shape) == 3 and shape[1] == shape[2] >= LEAST_SIDE:
        return "chw"
    if len(shape) == 3 and shape[0] == shape[1] >= LEAST_SIDE:
        return "hwc"
    return "tokens" if len(shape) == 2 and isqrt(shape[0]) >= LEAST_SIDE else ""


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values with places in them, in order."""

    def __init__(self, module: fx.GraphModule, maps: list[_Map]) -> None:
        super().__init__(module)
        self.maps = maps

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op not in ("placeholder", "get_attr", "output") and (form := _form(value)):
            self.maps.append(_Map(value, form))
        return value


def _run(body: nn.Module, image: Tensor, maps: list[_Map]) -> Any:
    """What the trunk gives; the maps on the way are added to `maps`."""
    value: Any = image
    for part in _parts(body):
        assert isinstance(part, fx.GraphModule), type(part)
        value = _Recorder(part, maps).run(value)
    return {"logits": value} if isinstance(value, Tensor) else value


def _parts(body: nn.Module) -> Iterable[nn.Module]:
    return (body.body, body.rest) if isinstance(body, Whole) else (body,)
