"""Linear heads of one training set, trained by SGD or AdamW side by side.

A linear head on cached features is so little work that a training loop spends its time on overheads and on fetching
the features. Heads that share features and batches share both: one product gives all their logits, one all their
gradients, and each still takes exactly the steps that it takes in `learn.fit.fit` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regraft.errors import Diverged
from regraft.learn.feature_rows import FeatureRows, in_blocks, in_turn
from regraft.learn.fit import Fit
from regraft.learn.optimizers import learning_rate
from regraft.learn.progress import divergence
from regraft.seeding import stream, torch_stream
from regraft.spec import Recipe

EVALUATION_BATCH = 1024
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8  # torch's defaults


def fit_together(
    features: Tensor | FeatureRows,
    labels: Tensor,
    validation: tuple[Tensor | FeatureRows, Tensor] | None,
    recipes: Sequence[Recipe],
    *,
    start: Sequence[tuple[Tensor, Tensor]],
    seed: int,
    device: torch.device,
    advance: Callable[[float, str], None] = lambda done, message: None,
) -> list[Fit | Diverged]:
    """For each recipe what `fit` gives for a linear layer of that start, up to rounding.

    features: (n, d), or (views, n, d) for cached augmented views, of which each image shows one in each epoch; float32.
    Those in files, (n, d) or (views * n, d), are read as they are needed, and give the same heads bit for bit.
    labels: (n,) in [0, classes).  validation: (m, d) and (m,), used as `fit` uses it.
    recipes: sgd or adamw with equal epochs and batch_size; all else may differ.
    start: a head's first weight (classes, d) and bias (classes,), the same classes for all.
    advance(done, message): called once a step with the share done.
    A head whose loss is not finite is given as the Diverged that `fit` raises; the others go on undisturbed. In float32
    on every device, where `fit` computes products in bfloat16 if the device is a GPU."""
    epochs, batch_size = recipes[0].epochs, recipes[0].batch_size
    assert {(r.epochs, r.batch_size) for r in recipes} == {(epochs, batch_size)}, "heads that step together"
    # Heads of one optimiser lie side by side, so that its step is one operation on all of them.
    order = sorted(range(len(recipes)), key=lambda i: recipes[i].optimizer)
    data = _Data(_at(features, device), labels.to(device), batch_size)
    held_out = None if validation is None else (_at(validation[0], device), validation[1].to(device))
    heads = _Heads([start[i] for i in order], [recipes[i] for i in order], device)
    found = [_Progress(recipes[i]) for i in order]
    with torch.no_grad():
        for epoch in range(epochs):
            losses, hits = _epoch(heads, data, seed=seed, epoch=epoch, epochs=epochs, advance=advance)
            columns, counts = [losses, hits], [len(data.labels)] * 2
            if held_out is not None:
                columns += _evaluate(heads, *held_out)
                counts += [len(held_out[1])] * 2
            for i, sums in enumerate(torch.stack(columns, dim=1).tolist()):
                scores = [total / count for total, count in zip(sums, counts, strict=True)]
                found[i].finish_epoch(scores, epoch, lambda i=i: heads.state(i))  # type: ignore[misc]
            advance((epoch + 1) / epochs, _message(found, epochs))
            if all(head.error is not None for head in found):
                break
    results = {i: head.result(heads.state(place)) for place, (i, head) in enumerate(zip(order, found, strict=True))}
    return [results[i] for i in range(len(recipes))]


class _Data:
    """Features, one view of each image after the other, and the batches of an epoch."""

    def __init__(self, features: Tensor | FeatureRows, labels: Tensor, batch_size: int) -> None:
        self.labels, self.device = labels, labels.device
        self.rows: Tensor | FeatureRows
        if isinstance(features, Tensor):
            self.views = len(features) if features.ndim == 3 else 0
            self.rows = features.flatten(0, 1) if self.views else features  # (views * n, d), no copy
        else:
            self.rows, self.views = features, len(features) // len(labels)
        self.steps = math.ceil(len(labels) / batch_size)

    def inputs(self, steps: Sequence[Tensor]) -> Iterator[Tensor]:
        """Features (b, d) of the rows of each step."""
        if isinstance(self.rows, Tensor):
            for rows in steps:
                yield self.rows.index_select(0, rows)
        else:
            for x in in_turn(self.rows, steps):
                yield x.to(self.device)

    def batches(self, seed: int, epoch: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Rows and labels of each step, in the order and of the sizes that `fit` takes them."""
        n = len(self.labels)
        order = torch.from_numpy(stream(seed, "order", epoch).permutation(n))
        rows = order
        if self.views:
            # The k-th draw is for the k-th image of the epoch, whatever the batches' sizes.
            rows = order + n * torch.randint(self.views, (n,), generator=torch_stream(seed, "augment", epoch))
        shown = self.labels[order.to(self.labels.device)]
        return rows.to(self.device).tensor_split(self.steps), shown.tensor_split(self.steps)


class _Heads:
    """Weights (heads, classes, d) and biases (heads, classes), and the optimisers that step them."""

    def __init__(self, start: Sequence[tuple[Tensor, Tensor]], recipes: Sequence[Recipe], device: torch.device) -> None:
        self.recipes = recipes
        self.weight = torch.stack([weight.detach().float() for weight, _ in start]).to(device)
        self.bias = torch.stack([bias.detach().float() for _, bias in start]).to(device)
        self.gradient = torch.empty_like(self.weight)
        self.count, self.classes, self.width = self.weight.shape
        self.smoothing = torch.tensor([[[r.label_smoothing]] for r in recipes], device=device)  # (heads, 1, 1)
        self.smooths = any(r.label_smoothing for r in recipes)
        self.optimizers: list[tuple[slice, _Sgd | _AdamW, _Sgd | _AdamW]] = []
        for name, kind in OPTIMIZERS.items():
            own = [i for i, r in enumerate(recipes) if r.optimizer == name]
            if own:
                where = slice(own[0], own[-1] + 1)
                chosen = [recipes[i] for i in own]
                # Decay spares biases, as in `fit`.
                pair = (kind(self.weight[where], chosen, decays=True), kind(self.bias[where], chosen, decays=False))
                self.optimizers.append((where, *pair))
        assert sum(where.stop - where.start for where, _, _ in self.optimizers) == len(recipes), "sgd or adamw"

    def logits(self, x: Tensor) -> Tensor:
        """(b, d) -> (heads, classes, b): along the batch, softmax over few classes is 40 times as fast on a CPU."""
        flat = torch.addmm(self.bias.view(-1, 1), self.weight.view(-1, self.width), x.T)
        return flat.view(self.count, self.classes, len(x))

    def step(self, x: Tensor, y: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every head.  x: (b, d), y: (b,), rates: (heads, 1).

        Returns the batch's sums of losses (heads,) and right answers (heads,), from before the step."""
        b = len(x)
        logits = self.logits(x)
        own = y.expand(self.count, 1, b)
        log_p = logits.log_softmax(1)
        loss = log_p.gather(1, own).sum((1, 2)).neg_()
        if self.smooths:
            share = self.smoothing[:, 0, 0]
            loss = (1 - share) * loss - share / self.classes * log_p.sum((1, 2))
        # d loss / d logits is probability - target
        delta = log_p.exp_()
        delta.scatter_add_(1, own, (self.smoothing - 1).expand(self.count, 1, b))
        if self.smooths:
            delta.sub_(self.smoothing / self.classes)
        gradient = self.gradient.view(-1, self.width)
        torch.addmm(gradient, delta.view(-1, b), x, beta=0, alpha=1 / b, out=gradient)  # (heads * classes, d)
        of_bias = delta.mean(2)  # (heads, classes)
        for where, weights, biases in self.optimizers:
            weights.step(self.gradient[where].flatten(1), rates[where])
            biases.step(of_bias[where], rates[where])
        return loss, _right(logits, y)

    def state(self, i: int) -> dict[str, Tensor]:
        """Of nn.Linear, on the CPU."""
        return {"weight": self.weight[i].cpu().clone(), "bias": self.bias[i].cpu().clone()}


class _Sgd:
    """torch.optim.SGD with Nesterov's correction; a row of hyperparameters for each head."""

    def __init__(self, parameters: Tensor, recipes: Sequence[Recipe], *, decays: bool) -> None:
        self.parameters = parameters.flatten(1)  # (heads, values), a view
        self.decay = _column([r.weight_decay for r in recipes], parameters.device) if decays else None
        self.momentum = _column([r.momentum for r in recipes], parameters.device)
        self.velocity = torch.zeros_like(self.parameters)

    def step(self, gradient: Tensor, rates: Tensor) -> None:
        """gradient: (heads, values), overwritten.  rates: (heads, 1)."""
        if self.decay is not None:
            gradient.addcmul_(self.parameters, self.decay)
        self.velocity.mul_(self.momentum).add_(gradient)
        gradient.addcmul_(self.velocity, self.momentum)
        self.parameters.addcmul_(gradient, rates, value=-1)


class _AdamW:
    """torch.optim.AdamW with its default betas; a row of hyperparameters for each head."""

    def __init__(self, parameters: Tensor, recipes: Sequence[Recipe], *, decays: bool) -> None:
        self.parameters = parameters.flatten(1)  # (heads, values), a view
        self.decay = _column([r.weight_decay for r in recipes], parameters.device) if decays else None
        self.mean = torch.zeros_like(self.parameters)
        self.square = torch.zeros_like(self.parameters)
        self.steps = 0

    def step(self, gradient: Tensor, rates: Tensor) -> None:
        """gradient: (heads, values), overwritten.  rates: (heads, 1)."""
        self.steps += 1
        first, second = ADAM_BETAS
        if self.decay is not None:
            self.parameters.mul_(1 - rates * self.decay)
        self.mean.lerp_(gradient, 1 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        torch.sqrt(self.square, out=gradient).div_(math.sqrt(1 - second**self.steps)).add_(ADAM_EPSILON)
        torch.div(self.mean, gradient, out=gradient)
        self.parameters.addcmul_(gradient, rates, value=-1 / (1 - first**self.steps))


OPTIMIZERS: dict[str, type[_Sgd] | type[_AdamW]] = {"sgd": _Sgd, "adamw": _AdamW}


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


@dataclass
class _Progress:
    """One head's curve, and its kept epoch by the rule of `fit`."""

    recipe: Recipe
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    error: Diverged | None = None

    def finish_epoch(self, scores: list[float], epoch: int, state: Callable[[], dict[str, Tensor]]) -> None:
        """scores: train_loss, train_accuracy and, if there is a validation part, validation_loss and _accuracy."""
        if self.error is not None:
            return
        for which, loss in zip(("training", "validation"), scores[::2], strict=False):
            if not math.isfinite(loss):
                self.error = divergence(which, loss, epoch, self.recipe)
                return
        names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        rate = learning_rate(epoch / self.recipe.epochs, self.recipe)
        self.curve.append({"epoch": epoch + 1, "lr": rate, **dict(zip(names, scores, strict=False))})
        if self.recipe.keep == "best" and len(scores) == 4:
            so_far = self.curve[self.best_epoch - 1]["validation_accuracy"] if self.best_epoch else -1.0
            if scores[3] > so_far:
                self.best_epoch, self.best = epoch + 1, state()

    def result(self, last: dict[str, Tensor]) -> Fit | Diverged:
        if self.error is not None:
            return self.error
        return Fit(self.best or last, self.curve, self.best_epoch or len(self.curve), ())


def _epoch(
    heads: _Heads, data: _Data, *, seed: int, epoch: int, epochs: int, advance: Callable[[float, str], None]
) -> tuple[Tensor, Tensor]:
    """Sums of losses and of right answers (heads,) over an epoch's steps."""
    device = data.device
    losses = torch.zeros(heads.count, device=device)
    hits = torch.zeros(heads.count, device=device)
    done = [(epoch * data.steps + step) / (epochs * data.steps) for step in range(data.steps)]
    table = [[learning_rate(share, recipe) for recipe in heads.recipes] for share in done]
    rates = torch.tensor(table, device=device)[:, :, None]  # (steps, heads, 1)
    rows, labels = data.batches(seed, epoch)
    for share, rate, x, y in zip(done, rates, data.inputs(rows), labels, strict=True):
        loss, right = heads.step(x, y, rate)
        losses += loss
        hits += right
        advance(share, "")
    return losses, hits


def _at(features: Tensor | FeatureRows, device: torch.device) -> Tensor | FeatureRows:
    return features.to(device) if isinstance(features, Tensor) else features


def _evaluate(heads: _Heads, features: Tensor | FeatureRows, labels: Tensor) -> list[Tensor]:
    """Sums of cross-entropy (heads,) and of right answers (heads,)."""
    losses = torch.zeros(heads.count, device=labels.device)
    hits = torch.zeros(heads.count, device=labels.device)
    parts = zip(in_blocks(features, EVALUATION_BATCH), torch.split(labels, EVALUATION_BATCH), strict=True)
    for block, y in parts:
        x = block.to(labels.device)
        logits = heads.logits(x)
        losses -= logits.log_softmax(1).gather(1, y.expand(heads.count, 1, len(x))).sum((1, 2))
        hits += _right(logits, y)
    return [losses, hits]


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of right answers (heads,).  logits: (heads, classes, b)."""
    return (logits.max(1).indices == labels).sum(1)  # on a CPU argmax along this axis is 30 times as slow


def _message(found: Sequence[_Progress], epochs: int) -> str:
    whole = [head.curve[-1] for head in found if head.error is None]
    if not whole:
        return f"all {len(found)} heads diverged"
    text = f"epoch {whole[0]['epoch']:.0f}/{epochs}, {len(found)} heads"
    text += f", loss {min(entry['train_loss'] for entry in whole):.3f}"
    if "validation_accuracy" in whole[0]:
        text += f", validation {100 * max(entry['validation_accuracy'] for entry in whole):.1f} %"
    return text
