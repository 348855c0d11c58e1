"""One image through a traced network, to measure the shape and the FLOPs of each node.

It runs on the meta device, which computes shapes without numbers, so it costs neither memory nor arithmetic.
A network that the meta device cannot run (some read a tensor's value) is run for real with a black image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from regraft.errors import ImageTooSmall
from regraft.networks.trace import Traced, same, structural_copy

if TYPE_CHECKING:  # it imports Triton, where there is one
    from torch.utils.flop_counter import FlopCounterMode

ANY_SIZE = (224, 256, 384, 299, 64, 32)  # pixels; large ones first, for the meta device they cost nothing
IMAGE_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384)  # pixels


@dataclass(frozen=True)
class Measured:
    """What one pass says of a node's value."""

    shape: tuple[int, ...]  # of one image: without the batch dimension
    flops: int  # of this node alone, for one image; a multiply-add counts 2


def measure(network: nn.Module, traced: Traced, image_size: int) -> dict[str, Measured]:
    """Node name -> what was measured with square images of `image_size` pixels; `network` is left as it was.

    Raises ImageTooSmall if the network cannot take such an image, NotImplementedError if it lies on the meta
    device and must not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    devices = ["meta"] if _on_meta(network) else ["meta", "cpu"]
    for device in devices:
        twin = structural_copy(network, _empty if device == "meta" else same).eval()
        module = fx.GraphModule(twin, traced.graph)
        images = torch.zeros(1, 3, image_size, image_size, device=device)
        try:
            # The counter hooks into the gradients of what modules take, and fails where a caller has switched them off.
            with torch.enable_grad(), FlopCounterMode(display=False) as counter:
                probe = _Probe(module, counter)
                probe.run(images)
            return probe.measured
        except (RuntimeError, AssertionError, ValueError, NotImplementedError, TypeError) as error:
            failure = error
            if devices == ["meta"] and (isinstance(error, NotImplementedError) or "meta" in str(error)):
                raise NotImplementedError(f"needs real tensors: {error}") from error
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    raise ImageTooSmall(f"{type(network).__name__} cannot take images of {image_size} px: {reason[:160]}") from failure


def measure_at_any_size(network: nn.Module, traced: Traced) -> dict[str, Measured]:
    """`measure` at the first usual image size that the network takes; for questions that no size changes."""
    for size in (*ANY_SIZE, *IMAGE_SIZES):
        try:
            return measure(network, traced, size)
        except ImageTooSmall as error:
            failure = error
    raise failure


def size_that_fits(fits: Callable[[int], Any], wanted: int) -> int | None:
    """The first usual size, in pixels, for which `fits` does not raise ImageTooSmall.

    Those above `wanted` are tried from small to large, then the smaller ones."""
    for size in sorted(IMAGE_SIZES, key=lambda size: (size <= wanted, size)):
        try:
            fits(size)
            return size
        except ImageTooSmall:
            continue
    return None


class _Probe(fx.Interpreter):
    """Runs a graph node by node on one image and notes what each took."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter = counter
        self.measured: dict[str, Measured] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.measured[n.name] = Measured(tuple(value.shape[1:]), self.counter.get_total_flops() - before)
        return value


def _on_meta(network: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in network.parameters())


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    twin = torch.empty_like(tensor, device="meta")
    return nn.Parameter(twin, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
