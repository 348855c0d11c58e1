"""Heads on cached features: what they take, how they are computed, and the modules that they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from regraft.errors import Diverged, RunError
from regraft.learn.batches import Batches, FeatureBatches
from regraft.learn.fit import Fit, fit
from regraft.learn.head2toe import SelectedFeatures, normalise_blocks, relevance, select
from regraft.learn.logistic import logistic
from regraft.learn.nearest import CosinePrototypes, NearestNeighbours, prototypes
from regraft.learn.predict import evaluate
from regraft.learn.ridge import ridge
from regraft.learn.solve import Solved
from regraft.learn.together import fit_together
from regraft.networks import PooledHead, make_head
from regraft.spec import Run
from regraft.spec.models import UNTRAINED
from regraft.spec.recipe import SOLVED
from regraft.study.bench import Bench, Part
from regraft.study.features import read_features, training_views
from regraft.study.store import Scratch

Advance = Callable[[float, str], None]
Found = Fit | Diverged
Labelled = tuple[Tensor, Tensor]  # features (n, d), or (views, n, d); labels (n,)


def classifier(run: Run, bench: Bench, tensors: dict[str, Tensor]) -> nn.Module:
    """The trained head of a run, from its stored tensors (those of `head/`): pooled features (n, d) -> logits."""
    parts, _ = bench.training(run)
    if run.head.kind == "knn":  # the training images are its memory; their features are in the store
        x, labels, _, _ = training_features(run, parts, bench)
        return _with_votes(run, x, labels, len(bench.dataset(run).classes))
    head = _empty(run, bench, kept=len(tensors.get("0.indices", ())))
    head.load_state_dict(tensors)
    return head


# --- features ---------------------------------------------------------------------------------------------------


def head_features(run: Run, part: Part, bench: Bench, *, view: int = 0) -> Tensor:
    """What the head takes of the images of a part: (n, d), all cuts of a head2toe head side by side."""
    return _features(run, part, bench, view)[0]


def training_features(run: Run, parts: Sequence[Part], bench: Bench) -> tuple[Tensor, Tensor, str, str]:
    """(n, d), or (views, n, d); labels (n,); the hash of the trunk; the back end it ran on."""
    views, trunk, backend = [], "", ""
    for view in training_views(run):
        found = [_features(run, part, bench, view) for part in parts]
        views.append(found[0][0] if len(found) == 1 else torch.cat([x for x, _, _ in found]))
        _, trunk, backend = found[0]
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts]))
    return (torch.stack(views) if run.recipe.views else views[0]), labels, trunk, backend


def _features(run: Run, part: Part, bench: Bench, view: int) -> tuple[Tensor, str, str]:
    found = [read_features(run, (part.split, view), part.positions, bench, cut=cut) for cut in bench.keys.cuts(run)]
    blocks = [block for block, _, _ in found]
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)), found[0][1], found[0][2]


# --- solving ----------------------------------------------------------------------------------------------------


def solve(
    runs: Sequence[Run], x: Tensor, labels: Tensor, validation: Labelled | None, bench: Bench,
    scratch: Scratch, advance: Advance,
) -> list[Found]:  # fmt: skip
    """The heads of runs that differ in penalty or learning rate alone, on the training features of all of them.

    A head that diverges is a Diverged in its place.  Raises Diverged if the features are broken."""
    run, device = runs[0], bench.device
    if run.head.kind == "mlp":
        held = None if validation is None else FeatureBatches(validation[0], validation[1].numpy(), device=device)
        train = FeatureBatches(x, labels.numpy(), device=device)
        return [
            fit(
                grafted_on(run, bench), train, held, run.recipe,
                seed=run.seed, device=device, checkpoint=scratch, advance=advance,
            )
        ]  # fmt: skip
    x, labels = x.to(device), labels.to(device)
    if validation is not None:
        validation = validation[0].to(device), validation[1].to(device)
    if run.head.kind in UNTRAINED:
        return [_read_off(run, x, labels, validation, bench)]
    if run.head.kind == "head2toe":
        return _head2toe(runs, x, labels, validation, bench, advance)
    head = grafted_on(run, bench)
    assert isinstance(head, nn.Linear)
    start = head.weight.detach().to(device), head.bias.detach().to(device)
    return _linear(runs, x, labels, validation, start, bench, advance)


def _read_off(run: Run, x: Tensor, labels: Tensor, validation: Labelled | None, bench: Bench) -> Fit:
    classes = len(bench.dataset(run).classes)
    held = None if validation is None else _batches(*validation)
    if run.head.kind == "prototype":
        head = CosinePrototypes(prototypes(x, labels, classes=classes)).to(x.device)
        return Fit(state_of(head), [measured(head, _batches(x, labels), held)], 1, ())
    # Every training image is its own nearest neighbour: an accuracy on them would say nothing.
    votes = _with_votes(run, x, labels, classes)
    return Fit({}, [measured(votes, None, held)], 1, ())


def _with_votes(run: Run, x: Tensor, labels: Tensor, classes: int) -> NearestNeighbours:
    if run.head.neighbours > len(x):
        raise RunError(
            f"{run.label}: {run.head.neighbours} neighbours asked for, but there are {len(x)} training images; "
            "set the head's `neighbours` to fewer"
        )
    return NearestNeighbours(x, labels, classes=classes, neighbours=run.head.neighbours)


def _linear(
    runs: Sequence[Run], x: Tensor, labels: Tensor, validation: Labelled | None, start: Labelled, bench: Bench,
    advance: Advance,
) -> list[Found]:  # fmt: skip
    """Linear heads of one training set, one for each recipe. start: weight and bias, where they are stepped."""
    recipes = [run.recipe for run in runs]
    classes = len(bench.dataset(runs[0]).classes)
    if recipes[0].optimizer not in SOLVED:
        return fit_together(
            x, labels, validation, recipes, start=[start] * len(recipes),
            seed=runs[0].seed, device=bench.device, advance=advance,
        )  # fmt: skip
    if x.ndim == 3:  # every view is a training image of its own
        labels = labels.repeat(len(x))
        x = x.flatten(0, 1)  # (views, n, d) -> (views * n, d)
    penalties = [recipe.weight_decay for recipe in recipes]
    if recipes[0].optimizer == "ridge":
        solved = ridge(x, labels, classes=classes, penalties=penalties)
    else:
        solved = logistic(x, labels, classes=classes, penalties=penalties, max_iterations=recipes[0].epochs)
    held = None if validation is None else _batches(*validation)
    return heads_of(runs, solved, _batches(x, labels), held, x.device)


def heads_of(
    runs: Sequence[Run], solved: Sequence[Solved], train: Batches, validation: Batches | None, device: torch.device
) -> list[Found]:
    """The solved linear heads of the runs, each with its losses; a Diverged where they are not finite."""
    found: list[Found] = []
    for run, one in zip(runs, solved, strict=True):
        classes, width = one.weight.shape
        head = nn.Linear(width, classes, device=device)
        head.load_state_dict({"weight": one.weight, "bias": one.bias})
        notes = () if one.converged else (f"stopped after {one.iterations} iterations, short of its tolerance",)
        entry = measured(head, train, validation)
        if all(math.isfinite(value) for value in entry.values()):
            found.append(Fit(state_of(head), [entry], 1, notes))
        else:
            found.append(Diverged(f"{run.label}: the losses of the solved head are not finite; raise weight_decay"))
    return found


def _head2toe(
    runs: Sequence[Run], x: Tensor, labels: Tensor, validation: Labelled | None, bench: Bench, advance: Advance
) -> list[Found]:
    """Features of all cuts ranked by a group lasso, the best share kept, and a linear head for each recipe on them."""
    head, classes = runs[0].head, len(bench.dataset(runs[0]).classes)
    widths = _widths(runs[0], bench)
    rows, row_labels = (x, labels) if x.ndim == 2 else (x.flatten(0, 1), labels.repeat(len(x)))
    normal = torch.cat(normalise_blocks(torch.split(rows, widths, dim=1)), dim=1)  # (n, d), a copy: let go below
    scores = relevance(normal, row_labels, classes=classes, lasso=head.lasso)
    del normal, rows
    chosen = SelectedFeatures(widths, select(scores, head.share)).to(x.device)
    narrow = chosen(x) if x.ndim == 2 else torch.stack([chosen(view) for view in x])
    held = None if validation is None else (chosen(validation[0]), validation[1])
    zero = torch.zeros(classes, narrow.shape[-1], device=x.device), torch.zeros(classes, device=x.device)
    found: list[Found] = []
    for one in _linear(runs, narrow, labels, held, zero, bench, advance):
        if isinstance(one, Fit):
            selection = {f"0.{name}": value for name, value in state_of(chosen).items()}
            one = replace(one, state=selection | {f"1.{name}": value for name, value in one.state.items()})
        found.append(one)
    return found


def measured(head: nn.Module, train: Batches | None, validation: Batches | None) -> dict[str, float]:
    """The curve's only entry of a head that is solved, not stepped."""
    entry = {"epoch": 1.0, "lr": 0.0}
    if train is not None:
        entry["train_loss"], entry["train_accuracy"] = evaluate(head, train)
    if validation is not None:
        entry["validation_loss"], entry["validation_accuracy"] = evaluate(head, validation)
    return entry


def _batches(x: Tensor, labels: Tensor) -> FeatureBatches:
    return FeatureBatches(x, labels.cpu().numpy(), device=x.device)


# --- modules ----------------------------------------------------------------------------------------------------


def _widths(run: Run, bench: Bench) -> list[int]:
    """Of the pooled features at each cut that the head takes."""
    return [bench.point(run, cut).width(run.head.pool) for cut in bench.keys.cuts(run)]


def _empty(run: Run, bench: Bench, *, kept: int) -> nn.Module:
    """The head's module, with weights yet to be loaded. kept: features of a head2toe head."""
    if run.head.kind == "linear" or run.head.kind == "mlp":
        return grafted_on(run, bench)
    classes, widths = len(bench.dataset(run).classes), _widths(run, bench)
    if run.head.kind == "prototype":
        return CosinePrototypes(torch.zeros(classes, sum(widths)))
    assert run.head.kind == "head2toe"
    return nn.Sequential(SelectedFeatures(widths, torch.arange(kept)), nn.Linear(kept, classes))


def grafted_on(run: Run, bench: Bench) -> nn.Module:
    """The part behind the pooling of the head that would be grafted on the live trunk: the same initial weights."""
    classes = len(bench.dataset(run).classes)
    head = make_head(
        run.head,
        bench.point(run),
        classes,
        spec=bench.network(run),
        seed=run.seed,
        generation=bench.keys.generation(run),
    )
    assert isinstance(head, PooledHead)
    return head.classify


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}
