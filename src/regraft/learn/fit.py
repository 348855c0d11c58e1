"""The training loop, the only one: a model, labelled batches, a recipe and a seed.

Everything random in epoch e comes from streams named by (seed, purpose, e), so an interrupted training that goes on
from its checkpoint is the same, bit for bit on a CPU, as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.errors import Diverged
from regraft.learn.batches import Batches, forward_in_chunks
from regraft.seeding import derive, stream, torch_stream
from regraft.spec import Recipe

CHECKPOINT_SECONDS = 15.0  # a kill loses at most this and the epoch under way
EVALUATION_BATCH = 256


class Checkpoint(Protocol):
    """Where a fit under way keeps its state."""

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None: ...

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None: ...


@dataclass(frozen=True)
class Fit:
    """A trained model: the state of the kept epoch, and how training went."""

    state: dict[str, Tensor]  # model.state_dict(), on the CPU
    curve: list[dict[str, float]]  # per epoch: epoch, lr, train_loss, train_accuracy, validation_*
    epoch: int  # the kept one, counted from 1
    notes: tuple[str, ...]

    @property
    def kept(self) -> dict[str, float]:
        return self.curve[self.epoch - 1]


def fit(
    model: nn.Module,
    train: Batches,
    validation: Batches | None,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    advance: Callable[[float, str], None] = lambda done, message: None,
) -> Fit:
    """Train `model` by `recipe`; parameters without gradient stay as they are.

    validation: chooses the epoch if recipe.keep is "best", and is watched otherwise; never the test set.
    advance(done, message): called once a step with the share done.  Raises Diverged on a loss that is not finite."""
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, recipe, device)
    progress = _Progress(model, optimizer)
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        progress.restore(*saved)
    last_saved = time.monotonic()
    for epoch in range(len(progress.curve), recipe.epochs):
        entry = _epoch(model, optimizer, train, recipe, progress, seed=seed, epoch=epoch, advance=advance)
        if validation is not None:
            entry["validation_loss"], entry["validation_accuracy"] = evaluate(model, validation)
            if not math.isfinite(entry["validation_loss"]):
                raise divergence("validation", entry["validation_loss"], epoch, recipe)
        progress.finish_epoch(entry, keep=recipe.keep)
        advance((epoch + 1) / recipe.epochs, _message(entry, recipe.epochs))
        due = time.monotonic() - last_saved > CHECKPOINT_SECONDS
        if checkpoint is not None and due and epoch + 1 < recipe.epochs:
            checkpoint.save(*progress.snapshot())
            last_saved = time.monotonic()
    state = progress.best if progress.best else _cpu_state(model)
    return Fit(state, progress.curve, progress.kept_epoch(recipe.keep), tuple(progress.notes))


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Batches,
    recipe: Recipe,
    progress: _Progress,
    *,
    seed: int,
    epoch: int,
    advance: Callable[[float, str], None],
) -> dict[str, float]:
    device = train.labels.device
    steps = math.ceil(len(train) / recipe.batch_size)
    order = stream(seed, "order", epoch).permutation(len(train))
    augmentation = torch_stream(seed, "augment", epoch)
    loss_sum = torch.zeros((), device=device)
    hits = torch.zeros((), device=device)
    model.train()
    with own_randomness(seed, "dropout", epoch):
        # Batches of nearly equal size: a rest of one image would break BatchNorm, a small one distorts it.
        for step, chunk in enumerate(np.array_split(order, steps)):
            done = (epoch * steps + step) / (recipe.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done, recipe)
            positions = torch.from_numpy(chunk).to(device)
            inputs, labels = train.take(positions, augmentation), train.labels[positions]
            loss, right = _step(model, optimizer, inputs, labels, recipe, progress)
            loss_sum += loss * len(chunk)
            hits += right
            advance(done, "")
    mean_loss = float(loss_sum) / len(train)
    if not math.isfinite(mean_loss):
        raise divergence("training", mean_loss, epoch, recipe)
    return {
        "epoch": epoch + 1,
        "lr": learning_rate(epoch / recipe.epochs, recipe),
        "train_loss": mean_loss,
        "train_accuracy": float(hits) / len(train),
    }


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    progress: _Progress,
) -> tuple[Tensor, Tensor]:
    """One optimiser step; when the device's memory is too small, in as many parts as it takes."""
    while True:
        try:
            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=inputs.device)
            right = torch.zeros((), device=inputs.device)
            for x, y in zip(inputs.chunk(progress.parts), labels.chunk(progress.parts), strict=True):
                with mixed_precision(inputs.device):
                    logits = model(x)
                    loss = cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
                share = len(x) / len(inputs)
                (loss * share).backward()  # type: ignore[no-untyped-call]
                total += loss.detach() * share
                right += (logits.detach().argmax(1) == y).sum()
            optimizer.step()
            return total, right
        except torch.OutOfMemoryError:
            if progress.parts * 2 > len(inputs):
                raise
            progress.parts *= 2
            progress.notes.append(
                f"out of memory: batches of {recipe.batch_size} go through in {progress.parts} parts, gradients "
                "accumulated (BatchNorm sees the smaller parts)"
            )


def evaluate(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction), in evaluation mode."""
    logits = predict(model, batches)
    labels = batches.labels.cpu()
    accuracy = float((logits.argmax(1) == labels).double().mean())
    return float(cross_entropy(logits, labels)), accuracy


def predict(
    model: nn.Module, batches: Batches, advance: Callable[[float, str], None] = lambda done, message: None
) -> Tensor:
    """Logits (n, classes), float32 on the CPU, in evaluation mode."""
    model.eval()
    parts: list[Tensor] = []
    done = 0

    def forward(positions: Tensor) -> Tensor:
        with mixed_precision(positions.device):
            return model(batches.take(positions, None)).float().cpu()  # type: ignore[no-any-return]

    with torch.inference_mode():
        for logits in forward_in_chunks(len(batches), EVALUATION_BATCH, batches.labels.device, forward):
            parts.append(logits)
            done += len(logits)
            advance(done / len(batches), "")
    return torch.cat(parts)


def make_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Parameters with a gradient only; weight decay spares vectors: biases and the norms' scales and shifts."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type in ("cuda", "cpu")
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    assert recipe.optimizer == "sgd", "lbfgs is solved, not stepped"
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def divergence(which: str, loss: float, epoch: int, recipe: Recipe) -> Diverged:
    """The error for a training or validation loss that is not finite after `epoch`, counted from 0."""
    return Diverged(
        f"the {which} loss became {loss} in epoch {epoch + 1} at learning rate up to {recipe.lr:g}; "
        "try a tenth of it, or warmup: 0.1"
    )


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
def own_randomness(seed: int, name: str, *path: int) -> Iterator[None]:
    """Dropout and stochastic depth can only draw from torch's global generator: lend them a seeded one."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, name, *path))
        yield


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 on GPUs that compute in it; float32 elsewhere (on CPUs bf16 was measured slower)."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


class _Progress:
    """All that a training carries from one epoch to the next, and how to write it down."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}  # state of the best epoch so far, if it is to be kept
        self.best_epoch = 0
        self.parts = 1  # of a batch, more than one after an out-of-memory
        self.notes: list[str] = []

    def finish_epoch(self, entry: dict[str, float], *, keep: str) -> None:
        self.curve.append(entry)
        if keep != "best" or "validation_accuracy" not in entry:
            return
        so_far = self.curve[self.best_epoch - 1]["validation_accuracy"] if self.best_epoch else -1.0
        if entry["validation_accuracy"] > so_far:
            self.best_epoch = len(self.curve)
            self.best = _cpu_state(self.model)

    def kept_epoch(self, keep: str) -> int:
        return self.best_epoch if keep == "best" and self.best_epoch else len(self.curve)

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v for k, v in entry.items() if isinstance(v, Tensor)}
        state = {
            "curve": self.curve, "best_epoch": self.best_epoch, "parts": self.parts, "notes": self.notes,
        }  # fmt: skip
        return state, tensors

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.curve, self.best_epoch = state["curve"], state["best_epoch"]
        self.parts, self.notes = state["parts"], state["notes"]
        self.model.load_state_dict(_below("model/", tensors))
        self.best = _below("best/", tensors)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        inner: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer/", tensors).items():
            index, _, key = name.partition("/")
            like = parameters[int(index)]
            # Momentum in the parameter's own memory order, as the fused optimisers expect it
            value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            inner.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": inner, "param_groups": groups})


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _cpu_state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def _message(entry: dict[str, float], epochs: int) -> str:
    text = f"epoch {entry['epoch']:.0f}/{epochs}, loss {entry['train_loss']:.3f}"
    if "validation_accuracy" in entry:
        text += f", validation {100 * entry['validation_accuracy']:.1f} %"
    return text
