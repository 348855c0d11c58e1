"""Heads of a study on features that would take more memory than they may: streamed from the store.

Whether they are is told by their number, width and views alone, on every machine: a head that is solved differs by
rounding from one solved in memory, and the same study is to give the same heads everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regraft.learn.feature_rows import StreamedBatches
from regraft.learn.fit import Fit, fit
from regraft.learn.nearest import CosinePrototypes
from regraft.learn.streamed import Stream, logistic_streamed, prototypes_streamed, ridge_streamed
from regraft.learn.together import fit_together
from regraft.spec import Run
from regraft.spec.recipe import SOLVED
from regraft.study.bench import Bench, Part
from regraft.study.features import read_features, training_views
from regraft.study.solve import Found, grafted_on, heads_of, measured, state_of
from regraft.study.store import Scratch
from regraft.study.tables import Positions

STREAMED = ("linear", "mlp", "prototype")  # a knn head is its training images, and head2toe ranks all cuts' features
BLOCKS = 8  # of the memory that features may take: a block is read, copied, and turned to float64 in parts
BLOCK_BYTES = 2**28  # and no more than that

Advance = Callable[[float, str], None]


@dataclass(frozen=True)
class StoredRows:
    """`learn.feature_rows.FeatureRows` of parts of splits, in the tables of the store."""

    run: Run
    bench: Bench
    pieces: tuple[tuple[str, int, Positions], ...]  # split, view, positions in the split
    width: int
    block: int

    def __len__(self) -> int:
        return sum(len(positions) for _, _, positions in self.pieces)

    def take(self, places: Tensor) -> Tensor:
        """places (b,) -> (b, d). What is missing or damaged is computed first."""
        out = torch.empty(len(places), self.width)
        start = 0
        for split, view, positions in self.pieces:
            here = torch.nonzero((places >= start) & (places < start + len(positions)))[:, 0]
            if len(here):
                wanted = positions[(places[here] - start).numpy()]
                out[here] = read_features(self.run, (split, view), wanted, self.bench)[0]
            start += len(positions)
        return out


@dataclass(frozen=True)
class Held:
    """Parts whose features stay in the store."""

    rows: StoredRows  # (views * n, d)
    labels: Tensor  # (n,)

    def batches(self, device: torch.device) -> StreamedBatches:
        return StreamedBatches(self.rows, self.labels, device=device)


def is_streamed(run: Run, images: int, bench: Bench) -> bool:
    """Whether the features of so many images are more than may be in memory at the run's cut."""
    return run.head.kind in STREAMED and 4 * images * _width(run, bench) > bench.setting.feature_bytes


def training_rows(run: Run, parts: Sequence[Part]) -> int:
    """Images that the run's head learns from, each view of one counted."""
    return sum(map(len, parts)) * len(training_views(run))


def held_rows(run: Run, parts: Sequence[Part], bench: Bench, views: Sequence[int]) -> Held:
    """The features of the parts, one after the other, for one view after the other."""
    width = _width(run, bench)
    block = max(1, min(bench.setting.feature_bytes // BLOCKS, BLOCK_BYTES) // (4 * width))
    pieces = tuple((part.split, view, part.positions) for view in views for part in parts)
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts]))
    return Held(StoredRows(run, bench, pieces, width, block), labels)


def solve_streamed(
    runs: Sequence[Run], parts: Sequence[Part], held: Part | None, bench: Bench, scratch: Scratch, advance: Advance
) -> list[Found]:
    """`solve.solve`, with no more of the features in memory than the bench's setting allows."""
    run, device = runs[0], bench.device
    views = training_views(run)
    validation = None if held is None else held_rows(run, [held], bench, [0])
    if run.head.kind == "linear" and run.recipe.optimizer not in SOLVED:
        train = held_rows(run, parts, bench, views)
        head = grafted_on(run, bench)
        assert isinstance(head, torch.nn.Linear)
        start = head.weight.detach().to(device), head.bias.detach().to(device)
        return fit_together(
            train.rows, train.labels, None if validation is None else (validation.rows, validation.labels),
            [one.recipe for one in runs], start=[start] * len(runs), seed=run.seed, device=device, advance=advance,
        )  # fmt: skip
    watched = None if validation is None else validation.batches(device)
    if run.head.kind == "mlp":
        train = held_rows(run, parts, bench, views)
        return [
            fit(
                grafted_on(run, bench), train.batches(device), watched, run.recipe,
                seed=run.seed, device=device, checkpoint=scratch, advance=advance,
            )
        ]  # fmt: skip
    # The order of the images plays no part: as they lie in the files, each is read once in a pass.
    train = held_rows(run, [_sorted(part) for part in parts], bench, views)
    every = Held(train.rows, train.labels.repeat(len(views)))  # each view is a training image of its own
    stream = Stream(every.rows, every.labels, torch.device("cpu") if device.type == "mps" else device)
    classes = len(bench.dataset(run).classes)
    if run.head.kind == "prototype":
        found = CosinePrototypes(prototypes_streamed(stream, classes=classes)).to(device)
        return [Fit(state_of(found), [measured(found, every.batches(device), watched)], 1, ())]
    penalties = [one.recipe.weight_decay for one in runs]
    if run.recipe.optimizer == "ridge":
        solved = ridge_streamed(stream, classes=classes, penalties=penalties)
    else:
        solved = logistic_streamed(stream, classes=classes, penalties=penalties, max_iterations=run.recipe.epochs)
    return heads_of(runs, solved, every.batches(device), watched, device)


def trunk_and_backend(run: Run, parts: Sequence[Part], bench: Bench) -> tuple[str, str]:
    """The hash of the trunk that made the training features, and by which back end."""
    part, view = parts[0], training_views(run)[0]
    _, trunk, backend = read_features(run, (part.split, view), part.positions[:1], bench)
    return trunk, backend


def _width(run: Run, bench: Bench) -> int:
    return bench.point(run).width(run.head.pool)


def _sorted(part: Part) -> Part:
    order = np.argsort(part.positions)
    return Part(part.split, part.positions[order], part.labels[order])
