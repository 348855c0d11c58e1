"""Forward and backward as CUDA graphs: recorded once for each batch size, then replayed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Forward = Callable[[Tensor], Tensor]

MOST_GRAPHS = 4  # each keeps a batch's activations; further batch sizes run eagerly


class Graphs:
    """Forward and backward recorded once for each batch size, and replayed without their launches.

    make_graphed_callables rather than torch.compile's "reduce-overhead": the kernels are eager's own, it takes
    seconds, and it needs no compiler. What is recorded reads the weights and buffers where they are."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.eager: Forward = model
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self.trained = next(p for p in model.parameters() if p.requires_grad)
        self.graphs: dict[object, Forward] = {}
        # Recording leaves each parameter's accumulating node on the stream that it was recorded on: meant so.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)

    def __call__(self, inputs: Tensor) -> Tensor:
        # A replay writes gradients where the last one did. While those are in use, as when a batch goes through in
        # parts, it would overwrite them (github.com/pytorch/pytorch/issues/181723).
        if self.trained.grad is not None:
            return self.eager(inputs)
        # Numbers are recorded as they are: with another momentum it is another recording.
        key = (inputs.shape, inputs.stride(), tuple(norm.momentum for norm in self.norms))
        if key not in self.graphs:
            if len(self.graphs) == MOST_GRAPHS:
                return self.eager(inputs)
            self.graphs[key] = self._recorded(inputs)
        return self.graphs[key](inputs)

    def _recorded(self, inputs: Tensor) -> Forward:
        """The first one has to succeed; after that a training is under way, and what fails runs eagerly."""
        if not self.graphs:
            return self._capture(inputs)
        try:
            return self._capture(inputs)
        except RuntimeError:
            return self.eager

    def _capture(self, inputs: Tensor) -> Forward:
        precision = torch.get_autocast_dtype("cuda")
        enabled = torch.is_autocast_enabled("cuda")
        # Autocast's cache of converted weights would outlive the recording that it belongs to.
        with (
            kept(self.model, inputs.device),
            torch.autocast("cuda", dtype=precision, enabled=enabled, cache_enabled=False),
        ):
            graphed: Any = torch.cuda.make_graphed_callables(_Whole(self.model), (inputs.clone(),))
        forward: Forward = graphed
        return forward


def let_go() -> None:
    """Give back the memory of recordings that nobody uses any more: torch keeps them in reference cycles."""
    gc.collect()


class _Whole(nn.Module):
    """A network in a shell of its own: capturing replaces a module's `forward`, and the network is to keep its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        return logits


@contextlib.contextmanager
def kept(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Gradients, buffers (BatchNorm's statistics) and the global random generators are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(p, p.grad) for p in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def wait(device: torch.device) -> None:
    """Until all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
