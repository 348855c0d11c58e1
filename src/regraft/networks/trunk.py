"""The trunk: the source network up to the cut. A frozen one cannot change, whatever is called on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regraft.spec.tuning import Norms


class Trunk(nn.Module):
    """`body`, frozen or trainable.

    Frozen means: no gradient, always in eval mode, no parameter and no buffer ever changes. `.train()` does
    not un-freeze it: nn.Module.train() recurses, and BatchNorm's running statistics would move
    (pytorch#86590).

    norms: what becomes of the BatchNorms. source: statistics and affine parameters stay (of a frozen trunk, the
    default); affine: only these learn; target: only the statistics follow the images, as in the leak above; all: both.
    """

    def __init__(self, body: nn.Module, frozen: bool, norms: Norms | None = None) -> None:
        super().__init__()
        self.body = body
        self.frozen = frozen
        self.norms: Norms = norms or ("source" if frozen else "all")
        assert not frozen or self.norms in ("source", "target")
        self.norm_layers = [module for module in body.modules() if isinstance(module, _BatchNorm)]
        if frozen:
            super().requires_grad_(False)
        elif self.norms in ("source", "target"):
            for layer in self.norm_layers:
                layer.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:  # (n, 3, h, w) -> the cut's value, (n, ...)
        if not self.frozen:
            return self.body(images)  # type: ignore[no-any-return]
        # no_grad, not inference_mode: a head trains on this output, and autograd refuses to save inference
        # tensors
        with torch.no_grad():
            return self.body(images)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Self:
        super().train(mode and not self.frozen)
        for layer in self.norm_layers:
            layer.train(mode and self.norms in ("target", "all"))
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if self.frozen and requires_grad:
            raise RuntimeError(
                "a frozen trunk cannot be made trainable; build it with Trunk(body, frozen=False) "
                "(in a study: method: finetune)"
            )
        return super().requires_grad_(requires_grad)

    def state_hash(self) -> str:
        """SHA-256 of every parameter and buffer, by name; equal if and only if the trunk is bit-identical.

        Of parameters alone where the norms' statistics are meant to move."""
        tensors: dict[str, Tensor] = dict(self.body.named_parameters())
        if self.norms != "target":
            tensors |= dict(self.body.named_buffers())
        return state_hash(tensors)


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of each tensor, sorted by name, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes by view: numpy has no bfloat16. A scalar has no last dimension to view, hence the reshape.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
