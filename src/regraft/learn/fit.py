"""The training loop, the only one: a model, labelled batches, a recipe and a seed.

Everything random in epoch e comes from streams named by (seed, purpose, e), so an interrupted training that goes on
from its checkpoint is the same, bit for bit on a CPU, as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.learn.batches import Batches, read_ahead
from regraft.learn.distributed import ALONE, Team
from regraft.learn.epoch import blended, blended_loss, order_of, own_randomness, set_rate, steps_of
from regraft.learn.graphs import Forward
from regraft.learn.mechanisms import check_wish, choose
from regraft.learn.methods import PLAIN, Tuned
from regraft.learn.optimizers import climbed, learning_rate, make_optimizer
from regraft.learn.precision import memory_order, mixed_precision
from regraft.learn.progress import Checkpoint, Progress, divergence, epoch_entry
from regraft.learn.unlabelled import Guesses
from regraft.seeding import stream, torch_stream
from regraft.spec import Recipe

LOOK_EVERY = 64  # steps between looks for a loss that is not finite: a look waits for the device
CHECKPOINT_SECONDS = 15.0  # a kill loses at most this and the epoch under way

Advance = Callable[[float, str], None]


@dataclass(frozen=True)
class Fit:
    """A trained model: the state of the kept epoch, and how training went."""

    state: dict[str, Tensor]  # model.state_dict(), on the CPU
    curve: list[dict[str, float]]  # per epoch: epoch, lr, train_loss, train_accuracy, validation_*
    epoch: int  # the kept one, counted from 1
    notes: tuple[str, ...]
    mechanism: dict[str, Any] = field(default_factory=dict)  # how the network was run, and why; determines nothing

    @property
    def kept(self) -> dict[str, float]:
        return self.curve[self.epoch - 1]


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels, handed out changed a little (to guess their label) and a lot (to learn it)."""

    weak: Batches
    strong: Batches  # the same images


def fit(
    model: nn.Module,
    train: Batches,
    validation: Batches | None,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    unlabelled: Unlabelled | None = None,
    tuned: Tuned = PLAIN,
    mechanism: str = "auto",
    precision: torch.dtype | None = None,
    checkpoint: Checkpoint | None = None,
    team: Team = ALONE,
    advance: Advance = lambda done, message: None,
) -> Fit:
    """Train `model` by `recipe`; parameters without gradient stay as they are.

    validation: chooses the epoch if recipe.keep is "best", and is watched otherwise; never the test set.
    unlabelled: what a recipe with `semi` learns from beside `train`.
    tuned: what a method of transfer does differently.
    mechanism: of `learn.mechanisms`; auto is the fastest by measure, and eager on a CPU.
    precision: of products, as `learn.precision.choose_precision` gives it; None: the device's usual one.
    team: of processes, each with a device of its own, that call this with the same arguments; each gets the same Fit.
    advance(done, message): called once a step with the share done.  Raises Diverged on a loss that is not finite."""
    model.to(device, memory_format=memory_order(device, recipe.batch_size))  # type: ignore[call-overload]
    loop = _Loop(model, train, unlabelled, recipe, tuned, seed, device, precision, team, advance)
    progress = loop.progress
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        progress.restore(*saved)
    loop.choose(mechanism, epochs_left=recipe.epochs - len(progress.curve))
    last_saved = time.monotonic()
    for epoch in range(len(progress.curve), recipe.epochs):
        if progress.stop():
            break
        progress.finish_epoch(loop.epoch(epoch), validation, precision=precision)
        advance((epoch + 1) / recipe.epochs, _message(progress.curve, recipe.epochs))
        due = time.monotonic() - last_saved > CHECKPOINT_SECONDS
        if checkpoint is not None and due and epoch + 1 < recipe.epochs:
            checkpoint.save(*progress.snapshot())
            last_saved = time.monotonic()
    return Fit(*progress.outcome(), loop.mechanism)


@dataclass(frozen=True)
class _Batch:
    """What one step, or a part of it, learns from."""

    inputs: Tensor  # (n, ...)
    labels: Tensor  # (n,)
    others: Tensor  # (n,) labels of what was blended in
    share: float  # of `labels` in the loss
    weak: Tensor | None = None  # (m, ...) unlabelled images
    strong: Tensor | None = None
    places: Tensor | None = None  # (m,) which ones

    def parts(self, count: int) -> Iterator[_Batch]:
        """The batch in `count` pieces of nearly equal size."""

        def cut(tensor: Tensor | None) -> tuple[Tensor | None, ...]:
            return (None,) * count if tensor is None else tensor.tensor_split(count)

        pieces = map(cut, (self.inputs, self.labels, self.others, self.weak, self.strong, self.places))
        for x, y, z, weak, strong, places in zip(*pieces, strict=True):
            assert x is not None
            assert y is not None
            assert z is not None
            yield _Batch(x, y, z, self.share, weak, strong, places)


class _Loop:
    """One training: what stays the same from epoch to epoch."""

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        unlabelled: Unlabelled | None,
        recipe: Recipe,
        tuned: Tuned,
        seed: int,
        device: torch.device,
        precision: torch.dtype | None,
        team: Team,
        advance: Advance,
    ) -> None:
        self.model, self.train, self.unlabelled, self.recipe = model, train, unlabelled, recipe
        self.seed, self.device, self.precision, self.team, self.advance = seed, device, precision, team, advance
        self.steps = steps_of(len(train), recipe)  # of an epoch
        self.tuned = tuned
        self.optimizer = make_optimizer(
            model, recipe, device, rates=tuned.rates, undecayed=tuned.undecayed, fixed=tuned.fixed
        )
        self.guesses = None if unlabelled is None else Guesses(len(unlabelled.weak), recipe, device)
        self.progress = Progress(model, self.optimizer, self.guesses, recipe, team)
        self.forward: Forward = model
        self.mechanism: dict[str, Any] = {}

    def choose(self, wish: str, *, epochs_left: int) -> None:
        """How the network is run from here on: eager, compiled or as graphs."""
        check_wish(wish, self.device)
        if not self.team.alone:
            assert self.guesses is None and self.tuned.fixed, "what one device alone can train"
            self.forward = self.team.around(self.model, self.device)
            self.mechanism = {"mechanism": f"eager on {self.team.size} devices", "why": "asked for"}
            return
        # Labelled and unlabelled images together are batches of another size; what learns may change between epochs.
        if self.guesses is not None or not self.tuned.fixed or epochs_left <= 0:
            return
        self.model.train()
        _, batch = next(self._batches(self._order(0), 0))

        def step(forward: Forward) -> None:
            self.forward = forward
            self._gradient(batch)

        chosen = choose(
            self.model, batch.inputs, steps_left=epochs_left * self.steps, step=step, device=self.device, wish=wish,
            batch_sizes=1 if len(self.train) % self.steps == 0 else 2,
        )  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        self.forward, self.mechanism = chosen.forward, chosen.record

    def _order(self, epoch: int) -> Tensor:
        return order_of(len(self.train), self.seed, "order", epoch).to(self.device)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Every training image once, in a new order."""
        n = len(self.train)
        loss_sum, hits = torch.zeros(2, device=self.device)
        self.model.train()
        self.tuned.before_epoch(epoch / self.recipe.epochs)
        with own_randomness(self.seed, "dropout", epoch, *self.team.path):
            for step, (positions, batch) in enumerate(self._batches(self._order(epoch), epoch)):
                done = (epoch * self.steps + step) / (self.recipe.epochs * self.steps)
                set_rate(self.optimizer, learning_rate(done, self.recipe))
                loss, right = self._step(batch)
                if self.progress.average is not None:
                    self.progress.average.update(epoch * self.steps + step)
                loss_sum += loss * len(positions)
                if step % LOOK_EVERY == 0 and not math.isfinite(float(loss_sum)):
                    raise divergence("training", float(loss_sum), epoch, self.recipe)
                hits += right
                self.advance(done, "")
        entry = epoch_entry(epoch, self.recipe, float(loss_sum) / n, float(hits) / n)
        return entry if self.guesses is None else {**entry, "guessed": self.guesses.share()}

    def _batches(self, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, _Batch]]:
        augmentation, mixing = torch_stream(self.seed, "augment", epoch), torch_stream(self.seed, "mix", epoch)
        unlabelled = self._unlabelled_places(epoch)
        steps = order.tensor_split(self.steps)
        read_ahead(self.train, steps)
        for positions, mixed in blended(self.train, steps, self.recipe, augmentation, mixing):
            batch = _Batch(mixed.inputs, mixed.labels, mixed.others, mixed.share)
            if self.unlabelled is not None:
                places = next(unlabelled)
                weak = self.unlabelled.weak.take(places, augmentation)
                strong = self.unlabelled.strong.take(places, augmentation)
                batch = _Batch(batch.inputs, batch.labels, batch.others, batch.share, weak, strong, places)
            yield positions, batch

    def _unlabelled_places(self, epoch: int) -> Iterator[Tensor]:
        """For each step of an epoch, `ratio` unlabelled images for each labelled one."""
        if self.unlabelled is None:
            return
        count = len(self.unlabelled.weak)
        wanted = self.recipe.ratio * len(self.train)
        rng = stream(self.seed, "unlabelled", epoch)
        drawn = [rng.permutation(count) for _ in range(math.ceil(wanted / count))]
        places = torch.from_numpy(np.concatenate(drawn)[:wanted]).to(self.device)
        steps = places.tensor_split(self.steps)
        read_ahead(self.unlabelled.weak, steps)
        yield from steps

    def _step(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """One optimiser step; when the device's memory is too small, in as many parts as it takes."""
        progress = self.progress
        while True:
            try:
                loss, right = self._gradient(batch)
                if self.recipe.sam:
                    with climbed(self.model, self.recipe.sam):
                        self._gradient(batch)
                self.optimizer.step()
                return loss, right
            except torch.OutOfMemoryError:
                if progress.parts * 2 > len(batch.inputs) or not self.team.alone:  # the others would wait for ever
                    raise
                progress.parts *= 2
                progress.notes.append(
                    f"out of memory: batches of {self.recipe.batch_size} go through in {progress.parts} parts, "
                    "gradients accumulated (BatchNorm sees the smaller parts)"
                )

    def _gradient(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Fill the parameters' gradients; mean loss and number of right answers of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        total, right = torch.zeros(2, device=self.device)
        own = batch if self.team.alone else list(batch.parts(self.team.size))[self.team.rank]
        for part in own.parts(self.progress.parts):
            with mixed_precision(self.device, self.precision), self.team.norms():
                loss, logits = self._loss(part)
            share = len(part.inputs) / len(batch.inputs)
            # The team's gradients are means over its members, the loss is a sum over their shares
            (loss * (share * self.team.size)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * share
            right += (logits.detach().argmax(1) == (part.labels if part.share >= 0.5 else part.others)).sum()
        self.tuned.after_gradient()
        total, right = self.team.sum(total, right)
        return total, right

    def _loss(self, part: _Batch) -> tuple[Tensor, Tensor]:
        """Mean loss of a part, and the logits of its labelled images."""
        if self.guesses is None or part.weak is None or part.strong is None or part.places is None:
            logits = self.forward(part.inputs)
        else:  # together, so that BatchNorm sees one batch
            together = self.forward(torch.cat([part.inputs, part.weak, part.strong]))
            sizes = [len(part.inputs), len(part.weak), len(part.strong)]
            logits, weak, strong = torch.split(together, sizes)
        loss = blended_loss(logits, part.labels, part.others, part.share, self.recipe)
        if self.guesses is not None and part.places is not None:
            loss = loss + self.guesses.loss(weak.detach(), strong, part.places)
        return loss, logits


def _message(curve: list[dict[str, float]], epochs: int) -> str:
    entry = curve[-1]
    text = f"epoch {entry['epoch']:.0f}/{epochs}, loss {entry['train_loss']:.3f}"
    if "validation_accuracy" in entry:
        text += f", validation {100 * entry['validation_accuracy']:.1f} %"
        text += f" {_line([e['validation_accuracy'] for e in curve])}"
    return text


def _line(values: list[float], width: int = 16) -> str:
    """The curve so far as a line of blocks, from 0 to its highest value: "▁▃▅▆▇█"."""
    shown = [values[i * len(values) // width] for i in range(width)] if len(values) > width else values
    top = max(*shown, 1e-9) if len(shown) > 1 else max(shown[0], 1e-9)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] for value in shown) if len(values) > 1 else ""
