"""How a training steps: optimisers, the learning rate's course, sharpness-aware steps, averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regraft.spec import Recipe

Groups = list[dict[str, Any]]


def make_optimizer(
    model: nn.Module,
    recipe: Recipe,
    device: torch.device,
    *,
    rates: Mapping[nn.Parameter, float] = MappingProxyType({}),
    undecayed: Collection[nn.Parameter] = (),
    fixed: bool = True,
) -> torch.optim.Optimizer:
    """Parameters with a gradient only; weight decay spares vectors: biases and the norms' scales and shifts.

    rates: of single parameters, as shares of the learning rate, kept in their group's "share".  undecayed: spared as
    well.  fixed: the same parameters have gradients in every step, as fused optimisers ask for."""
    chosen: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            decay = recipe.weight_decay if p.ndim > 1 and p not in undecayed else 0.0
            chosen.setdefault((-rates.get(p, 1.0), -decay), []).append(p)
    # The highest rate first, and what decays before what is spared
    groups: Groups = [
        {"params": chosen[key], "weight_decay": -key[1], "share": -key[0]} for key in sorted(chosen)
    ]  # fmt: skip
    fused = fixed and device.type in ("cuda", "cpu")
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    assert recipe.optimizer in ("sgd", "sgdw"), "lbfgs is solved, not stepped"
    nesterov = recipe.momentum > 0
    kind = torch.optim.SGD if recipe.optimizer == "sgd" else SgdW
    return kind(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


class SgdW(torch.optim.SGD):
    """SGD whose weight decay stays out of the gradient, and so out of the momentum: p <- (1 - lr * decay) p, then a
    step (Loshchilov & Hutter 2019, arXiv:1711.05101). A decay of 5e-4 in `sgd` with momentum 0.9 is about 5e-3 here.
    """

    def __init__(self, groups: Groups, **options: Any) -> None:
        super().__init__(
            [{**group, "weight_decay": 0.0, "decay": group["weight_decay"]} for group in groups], **options
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if group["decay"]:
                torch._foreach_mul_(group["params"], 1.0 - group["lr"] * group["decay"])
        return super().step(closure)


def learning_rate(done: float, recipe: Recipe) -> float:
    """Learning rate when the share `done` in [0, 1) of all steps is behind.

    cosine: Loshchilov & Hutter 2017 (arXiv:1608.03983) without restarts.  one-cycle: up and down in straight lines
    (Smith & Topin 2018, arXiv:1708.07120), a quarter of the steps up unless `warmup` says otherwise."""
    warmup = recipe.warmup or (0.25 if recipe.schedule == "one-cycle" else 0.0)
    if done < warmup:
        return recipe.lr * max(done / warmup, 0.01)
    rest = (done - warmup) / (1.0 - warmup)
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "one-cycle":
        return recipe.lr * (1.0 - rest)
    return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * rest))


@contextlib.contextmanager
def climbed(model: nn.Module, radius: float) -> Iterator[None]:
    """The weights `radius` further along their gradient, for the second pass of a sharpness-aware step.

    Foret et al. 2021 (arXiv:2010.01412). Afterwards the weights are, bit for bit, what they were, and so are the
    statistics of BatchNorm: those of the weights that are kept. They are put back rather than switched off meanwhile,
    which graphs and compiled networks would not notice. Gradients are the caller's."""
    moved: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    touched = [*moved, *(buffer for norm in norms for buffer in norm.buffers(recurse=False))]
    with torch.no_grad():
        kept = [tensor.clone() for tensor in touched]
        gradients = [p.grad for p in moved if p.grad is not None]
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(moved, list(torch._foreach_mul(gradients, radius / (length + 1e-12))))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(touched, kept)


class Average:
    """Moving average of a model's weights and of BatchNorm's statistics (Polyak & Juditsky 1992), kept on its device.

    Early on the decay is (1 + step) / (10 + step), so that the random start is soon forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = _moving(model)  # the model's own tensors
        self.state = {k: v.clone() for k, v in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the step number `step`, counted from 0 over the whole training."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.state.values()), list(self.live.values()), 1.0 - decay)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The model has the average as its weights meanwhile."""
        own = {k: v.clone() for k, v in self.live.items()}
        self._fill(self.state)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.live.items():
            tensor.copy_(tensors[name])


def _moving(model: nn.Module) -> dict[str, Tensor]:
    """What training moves of a model's state, by name: nothing of a frozen trunk, in which averaging -0.0 with -0.0
    would give 0.0, another bit."""
    model.train()  # a frozen trunk stays in evaluation mode, by which its buffers are told
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    for path, module in model.named_modules():
        if not module.training:
            frozen |= {name for name, _ in module.named_buffers(path, recurse=False)}
    return {k: v for k, v in model.state_dict().items() if v.is_floating_point() and k not in frozen}
