"""One image through a traced network, to measure each node: shape, FLOPs, and whether its value is
overwritten later.

It runs on the meta device, which computes shapes without numbers, so it costs neither memory nor arithmetic.
A network that the meta device cannot run (some read a tensor's value) is run for real with one black image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from regraft.errors import ImageTooSmall
from regraft.networks.trace import Traced, same, structural_copy

ANY_SIZE = (224, 256, 384, 299, 64, 32)  # pixels; large ones first, for the meta device they cost nothing
IMAGE_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384)  # pixels


@dataclass(frozen=True)
class Measured:
    """What one pass says of a node's value."""

    shape: tuple[int, ...]  # of one image: without the batch dimension
    flops: int  # of this node alone, for one image; a multiply-add counts 2
    overwritten: bool  # a later in-place operation changes it


def measure(
    network: nn.Module, traced: Traced, image_size: int, *, training: bool = False
) -> dict[str, Measured]:
    """Node name -> what was measured with square images of `image_size` pixels; `network` is left as it was.

    Raises ImageTooSmall if the network cannot take such an image, NotImplementedError if it lies on the meta
    device and must not.
    """
    devices = ["meta"] if _on_meta(network) else ["meta", "cpu"]
    for device in devices:
        twin = structural_copy(network, _empty if device == "meta" else _own).train(training)
        module = fx.GraphModule(twin, traced.graph)
        images = torch.zeros(2, 3, image_size, image_size, device=device)
        try:
            with FlopCounterMode(display=False) as counter:
                probe = _Probe(module, counter)
                probe.run(images)
            return probe.measured(batch=2)
        except (RuntimeError, AssertionError, ValueError, NotImplementedError, TypeError) as error:
            failure = error
            if devices == ["meta"] and (isinstance(error, NotImplementedError) or "meta" in str(error)):
                raise NotImplementedError(f"needs real tensors: {error}") from error
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    raise ImageTooSmall(
        f"{type(network).__name__} cannot take images of {image_size} px: {reason[:160]}"
    ) from failure


def measure_at_any_size(network: nn.Module, traced: Traced, *, training: bool) -> dict[str, Measured]:
    """`measure` at the first usual image size that the network takes; for questions that no size changes."""
    for size in (*ANY_SIZE, *IMAGE_SIZES):
        try:
            return measure(network, traced, size, training=training)
        except ImageTooSmall as error:
            failure = error
    raise failure


def smallest_that_fits(fits: Callable[[int], Any]) -> int | None:
    """The smallest usual size for which `fits` does not raise ImageTooSmall, in pixels."""
    for size in IMAGE_SIZES:
        try:
            fits(size)
            return size
        except ImageTooSmall:
            continue
    return None


class _Probe(fx.Interpreter):
    """Runs a graph node by node and keeps every value, to compare its version counter at the end."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.counter = counter
        self.values: dict[str, tuple[torch.Tensor, int, int]] = {}  # name -> value, version then, FLOPs

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.values[n.name] = (value, value._version, self.counter.get_total_flops() - before)
        return value

    def measured(self, batch: int) -> dict[str, Measured]:
        return dict(self._measured(batch))

    def _measured(self, batch: int) -> Iterator[tuple[str, Measured]]:
        for name, (value, version, flops) in self.values.items():
            overwritten = value._version != version
            yield name, Measured(tuple(value.shape[1:]), flops // batch, overwritten)


def _on_meta(network: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in network.parameters())


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    twin = torch.empty_like(tensor, device="meta")
    return (
        nn.Parameter(twin, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
    )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Buffers are written in training, so the real network's must not be shared; parameters are only read."""
    return same(tensor) if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
