"""All that a training carries from one epoch to the next, and how to write it down."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regraft.errors import Diverged
from regraft.learn.batches import Batches
from regraft.learn.distributed import ALONE, Team
from regraft.learn.optimizers import Average, learning_rate
from regraft.learn.predict import evaluate
from regraft.learn.unlabelled import Guesses
from regraft.spec import Recipe


class Checkpoint(Protocol):
    """Where a fit under way keeps its state."""

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None: ...

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None: ...


class Progress:
    """The curve so far, the best epoch, averaged weights, and what had to be done differently."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        guesses: Guesses | None,
        recipe: Recipe,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.model, self.optimizer, self.guesses, self.recipe = model, optimizer, guesses, recipe
        self.average = Average(model, recipe.ema) if recipe.ema else None
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}  # state of the best epoch so far, if it is to be kept
        self.best_epoch = 0
        self.parts = 1  # of a batch, more than one after an out-of-memory
        self.notes: list[str] = []
        self.stopped = ""

    def kept_weights(self) -> contextlib.AbstractContextManager[None]:
        """The model has the weights that are judged and kept meanwhile: its own, or their average."""
        return contextlib.nullcontext() if self.average is None else self.average.lent()

    def finish_epoch(
        self, entry: dict[str, float], validation: Batches | None, *, precision: torch.dtype | None = None
    ) -> None:
        """Judge the epoch that `entry` (of `epoch_entry`) tells of, and keep its weights if they are the best.

        precision: as in `predict`.  Raises Diverged on a loss that is not finite."""
        epoch = len(self.curve)
        if not math.isfinite(entry["train_loss"]):
            raise divergence("training", entry["train_loss"], epoch, self.recipe)
        if validation is None:
            self.curve.append(entry)
            return
        with self.kept_weights():
            own = self.team.share_of(validation)
            loss, accuracy = evaluate(self.model, own, flip=self.recipe.test_flip, precision=precision)
            loss, accuracy = self.team.scores(loss, accuracy, validation)
            if not math.isfinite(loss):
                raise divergence("validation", loss, epoch, self.recipe)
            self.curve.append({**entry, "validation_loss": loss, "validation_accuracy": accuracy})
            so_far = self.curve[self.best_epoch - 1]["validation_accuracy"] if self.best_epoch else -1.0
            if self.recipe.keep == "best" and accuracy > so_far:
                self.best_epoch = len(self.curve)
                self.best = cpu_state(self.model)

    def stop(self) -> bool:
        """Whether the recipe's patience is over: so many epochs have passed without a better one; 0 waits for ever."""
        patience, waited = self.recipe.patience, len(self.curve) - self.best_epoch
        if not self.stopped and patience > 0 and self.best_epoch > 0 and waited >= patience:
            self.stopped = (
                f"stopped after epoch {len(self.curve)}: none better on validation since epoch {self.best_epoch}"
            )
        return bool(self.stopped)

    def outcome(self) -> tuple[dict[str, Tensor], list[dict[str, float]], int, tuple[str, ...]]:
        """State, curve, number of the kept epoch, notes: the fields of a `Fit`."""
        with self.kept_weights():
            state = self.best or cpu_state(self.model)
        notes = (*self.notes, *([self.stopped] if self.stopped else []))
        return state, self.curve, self.best_epoch or len(self.curve), notes

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        if self.average is not None:
            tensors |= {f"average/{k}": v for k, v in self.average.state.items()}
        if self.guesses is not None:
            tensors |= {f"guesses/{k}": v for k, v in self.guesses.state().items()}
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
        if self.average is not None:
            for name, value in _below("average/", tensors).items():
                self.average.state[name].copy_(value)
        if self.guesses is not None:
            self.guesses.load(_below("guesses/", tensors))
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


def epoch_entry(epoch: int, recipe: Recipe, loss: float, accuracy: float) -> dict[str, float]:
    """What the curve says of the training in `epoch`, counted from 0.

    loss, accuracy: means over the training images, as augmented, while the weights changed."""
    rate = learning_rate(epoch / recipe.epochs, recipe)
    return {"epoch": epoch + 1, "lr": rate, "train_loss": loss, "train_accuracy": accuracy}


def divergence(which: str, loss: float, epoch: int, recipe: Recipe) -> Diverged:
    """The error for a training or validation loss that is not finite after `epoch`, counted from 0."""
    return Diverged(
        f"the {which} loss became {loss} in epoch {epoch + 1} at learning rate up to {recipe.lr:g}; "
        "try a tenth of it, or warmup: 0.1"
    )


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def cpu_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
