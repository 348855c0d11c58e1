"""Several seeds of one training, stepped together.

A small network on a GPU waits for kernels to be launched rather than for arithmetic. Seeds of the same network and
recipe need the same kernels, so their weights are stacked and each kernel serves all; each seed still takes exactly
the steps that it takes in `learn.fit.fit` alone.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from regraft.errors import Diverged
from regraft.learn.batches import Batches
from regraft.learn.epoch import blended_loss, order_of, set_rate, steps_of
from regraft.learn.fit import Advance, Fit, fit
from regraft.learn.mechanisms import step_seconds
from regraft.learn.optimizers import Average, learning_rate, make_optimizer
from regraft.learn.precision import mixed_precision
from regraft.learn.progress import Progress, cpu_state, epoch_entry
from regraft.seeding import torch_stream
from regraft.spec import Recipe

CLEARLY = 1.05  # times as fast: less is within what timing gets wrong


def together(recipe: Recipe) -> bool:
    """Whether this module can train seeds of `recipe` side by side."""
    stepped = recipe.optimizer in ("sgd", "sgdw", "adamw")
    plain = not (recipe.sam or recipe.mixup or recipe.cutmix)
    return stepped and plain and recipe.semi == "none"


def pays(single_seconds: float, joint_seconds: float, seeds: int) -> bool:
    """Whether a joint step of so many seeds is clearly faster than a step of each, one after the other."""
    return joint_seconds * CLEARLY < seeds * single_seconds


def measured(
    models: Sequence[nn.Module], trains: Sequence[Batches], recipe: Recipe, *, device: torch.device
) -> tuple[float, float] | None:
    """Seconds of a whole step of the first model alone, run eagerly, and of a joint step of all, for `pays`.

    The models are left as they are. None where they cannot step together. Not for a CPU, where a choice by the clock
    would let results differ from run to run."""
    copies = [copy.deepcopy(model).to(device, memory_format=torch.channels_last) for model in models]  # type: ignore[call-overload]
    if _obstacle(copies, trains, recipe):
        return None
    places = torch.arange(min(recipe.batch_size, len(trains[0])), device=device)
    try:
        joint = _Joint(
            copies, trains, [None] * len(copies), recipe, range(len(copies)), device, lambda done, text: None
        )
        moves = [torch_stream(0, "augment") for _ in copies]
        together_seconds = step_seconds(lambda: joint.step([places] * len(copies), moves), device)
    except torch.OutOfMemoryError:
        return None
    model, train, optimizer = copies[0].train(), trains[0], make_optimizer(copies[0], recipe, device)

    def single() -> None:
        inputs = train.take(places, moves[0])
        optimizer.zero_grad(set_to_none=True)
        with mixed_precision(device):
            loss = blended_loss(model(inputs), train.labels[places], train.labels[places], 1.0, recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step_seconds(single, device), together_seconds


def fit_seeds(
    models: Sequence[nn.Module],
    trains: Sequence[Batches],
    validations: Sequence[Batches | None],
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    device: torch.device,
    advance: Advance = lambda done, message: None,
) -> list[Fit | Diverged]:
    """For each seed what `fit` gives for its model, training and validation images, up to rounding.

    models: one network, started from different seeds; they end with the weights of the last epoch.
    advance(done, message): called once a step with the share of all that is done.
    A seed whose loss is not finite is given as the Diverged that `fit` raises; the others go on undisturbed.
    One after the other, and with a note, where the seeds cannot step together: unequal numbers of images, a recipe
    that `together` refuses, dropout and what else draws random numbers or has no batched form, too little memory."""
    assert len(models) == len(trains) == len(validations) == len(seeds)
    for model in models:
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    reason = _obstacle(models, trains, recipe)
    if not reason:
        start = [cpu_state(model) for model in models]
        try:
            return _Joint(models, trains, validations, recipe, seeds, device, advance).fit()
        except torch.OutOfMemoryError:
            reason = "too little memory for all of them"
            for model, state in zip(models, start, strict=True):
                model.load_state_dict(state)
    return _one_by_one(models, trains, validations, recipe, seeds, reason, device=device, advance=advance)


def _one_by_one(
    models: Sequence[nn.Module],
    trains: Sequence[Batches],
    validations: Sequence[Batches | None],
    recipe: Recipe,
    seeds: Sequence[int],
    reason: str,
    *,
    device: torch.device,
    advance: Advance,
) -> list[Fit | Diverged]:
    found: list[Fit | Diverged] = []
    note = f"seeds one after the other: {reason}"
    for i, (model, train, validation, seed) in enumerate(zip(models, trains, validations, seeds, strict=True)):

        def part(done: float, message: str, i: int = i) -> None:
            advance((i + done) / len(seeds), message)

        try:
            one = fit(model, train, validation, recipe, seed=seed, device=device, advance=part)
        except Diverged as error:
            found.append(error)
        else:
            found.append(Fit(one.state, one.curve, one.epoch, (*one.notes, note)))
    return found


def _obstacle(models: Sequence[nn.Module], trains: Sequence[Batches], recipe: Recipe) -> str:
    """Why these seeds cannot step together; empty if they can."""
    if len(models) == 1:
        return "there is only one"
    if not together(recipe):
        return "the recipe has steps that are not stacked"
    if len({len(train) for train in trains}) > 1:
        return "they have different numbers of images"
    shapes = [[(name, value.shape) for name, value in model.state_dict().items()] for model in models]
    if any(own != shapes[0] for own in shapes):
        return "their networks differ"
    probe = [train.take(torch.arange(2, device=train.labels.device), None) for train in trains]
    if len({inputs.shape for inputs in probe}) > 1:
        return "their images differ in size"
    try:
        with mixed_precision(probe[0].device):
            logits = _Stack(models)(torch.stack(probe))
        logits.sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return "too little memory for all of them"
    except RuntimeError as error:  # vmap's own for random numbers, data-dependent branches, operators without a rule
        return f"{error}".splitlines()[0][:200]
    return ""


class _Stack:
    """Networks of one form with their weights and buffers stacked: a leading dimension of seeds each."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = models
        self.model = copy.deepcopy(models[0]).train()
        self.whole = copy.deepcopy(self.model)  # holds the stacked tensors under the network's names
        states = [{**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models]
        for name, parameter in [*self.whole.named_parameters()]:
            stacked = nn.Parameter(_stacked([state[name] for state in states]), parameter.requires_grad)
            owner, _, own = name.rpartition(".")
            setattr(self.whole.get_submodule(owner), own, stacked)
        for name, _ in [*self.whole.named_buffers()]:
            owner, _, own = name.rpartition(".")
            setattr(self.whole.get_submodule(owner), own, _stacked([state[name] for state in states]))
        self.tensors = {**dict(self.whole.named_parameters()), **dict(self.whole.named_buffers())}
        # randomness: a random draw is refused, since a seed alone would not draw the same
        self.forward = vmap(self._one, randomness="error")

    def __call__(self, inputs: Tensor) -> Tensor:
        """(seeds, n, ...) -> logits (seeds, n, classes); moves BatchNorm's statistics."""
        logits: Tensor = self.forward(self.tensors, inputs)
        return logits

    def _one(self, tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.model, tensors, (inputs,))
        return logits

    def optimizer(self, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
        """As for one network: which parameters decay is read off a single one's, then the stacked take their places."""
        optimizer = make_optimizer(self.model, recipe, device)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [self.tensors[names[id(parameter)]] for parameter in group["params"]]
        return optimizer

    @torch.no_grad()
    def hand_out(self) -> None:
        """Give each network its own weights and buffers."""
        for i, model in enumerate(self.models):
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(self.tensors[name][i])


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Along a new first dimension; not in channels-last order, for which vmap's grouped convolutions have no form."""
    return torch.stack([tensor.detach().contiguous() for tensor in tensors])


class _Joint:
    """One joint training."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        trains: Sequence[Batches],
        validations: Sequence[Batches | None],
        recipe: Recipe,
        seeds: Sequence[int],
        device: torch.device,
        advance: Advance,
    ) -> None:
        self.models, self.trains, self.validations = models, trains, validations
        self.recipe, self.seeds, self.device, self.advance = recipe, seeds, device, advance
        self.steps = steps_of(len(trains[0]), recipe)
        self.stack = _Stack(models)
        self.optimizer = self.stack.optimizer(recipe, device)
        self.average = Average(self.stack.whole, recipe.ema) if recipe.ema else None
        alone = recipe.model_copy(update={"ema": 0.0})  # the average is the stack's
        self.progress = [Progress(model, self.optimizer, None, alone) for model in models]
        self.errors: dict[int, Diverged] = {}

    def fit(self) -> list[Fit | Diverged]:
        for epoch in range(self.recipe.epochs):
            going = [i for i in range(len(self.seeds)) if i not in self.errors and not self.progress[i].stop()]
            if not going:
                break
            entries = self._epoch(epoch)
            with contextlib.nullcontext() if self.average is None else self.average.lent():
                self.stack.hand_out()
            for i in going:
                try:
                    self.progress[i].finish_epoch(entries[i], self.validations[i])
                except Diverged as error:
                    self.errors[i] = error
            self.advance((epoch + 1) / self.recipe.epochs, self._message(epoch))
        return [self._result(i) for i in range(len(self.seeds))]

    def _epoch(self, epoch: int) -> list[dict[str, float]]:
        """Every training image of every seed once, each in its own new order."""
        n, count = len(self.trains[0]), len(self.seeds)
        orders = [order_of(n, seed, "order", epoch).to(self.device) for seed in self.seeds]
        moves = [torch_stream(seed, "augment", epoch) for seed in self.seeds]
        losses, hits = torch.zeros(2, count, device=self.device)
        for step, parts in enumerate(zip(*(order.tensor_split(self.steps) for order in orders), strict=True)):
            done = (epoch * self.steps + step) / (self.recipe.epochs * self.steps)
            set_rate(self.optimizer, learning_rate(done, self.recipe))
            loss, right = self.step(parts, moves)
            if self.average is not None:
                self.average.update(epoch * self.steps + step)
            losses += loss * len(parts[0])
            hits += right
            self.advance(done, "")
        return [
            epoch_entry(epoch, self.recipe, loss / n, right / n)
            for loss, right in torch.stack([losses, hits], dim=1).tolist()
        ]

    def step(self, places: Sequence[Tensor], moves: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """places: (b,) for each seed.  Returns mean losses and right answers, both (seeds,)."""
        drawn = list(zip(self.trains, places, moves, strict=True))
        inputs = torch.stack([train.take(positions, generator) for train, positions, generator in drawn])
        labels = torch.stack([train.labels[positions] for train, positions, _ in drawn])  # (seeds, b)
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.device):
            logits = self.stack(inputs)
            smoothing = self.recipe.label_smoothing
            each = cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="none")
        loss = each.view_as(labels).mean(1)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(2) == labels).sum(1)

    def _message(self, epoch: int) -> str:
        last = [own.curve[-1] for own in self.progress if own.curve]
        if not last:
            return f"all {len(self.seeds)} seeds diverged"
        text = f"epoch {epoch + 1}/{self.recipe.epochs}, {len(self.seeds)} seeds together"
        text += f", loss {sum(entry['train_loss'] for entry in last) / len(last):.3f}"
        if "validation_accuracy" in last[0]:
            shown = [f"{100 * entry['validation_accuracy']:.1f}" for entry in last]
            text += f", validation {' '.join(shown)} %"
        return text

    def _result(self, i: int) -> Fit | Diverged:
        return self.errors[i] if i in self.errors else Fit(*self.progress[i].outcome())
