"""What a step costs, in floating-point operations: weights for the progress bar, and the plan's estimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from regraft.data import DatasetInfo
from regraft.errors import DataError
from regraft.networks import CutPoint, cuts_below, resolve_cut
from regraft.spec import Run
from regraft.spec.models import UNTRAINED
from regraft.study.check import image_size
from regraft.study.features import Column
from regraft.study.keys import Keys, cacheable

SMALL = 3e8  # FLOPs that the overhead of any step is worth
BACKWARD = 3  # a training step is about three forward passes
USUAL_ITERATIONS = 50  # of a logistic regression
RECORD_BYTES = 4_000  # of spec, values and record beside the tensors


@dataclass(frozen=True)
class Cost:
    """Of one step, or of several together."""

    flops: float = 0.0
    images: float = 0.0  # through the network, forward passes of images (a training image counts once an epoch)
    disk_bytes: float = 0.0


@dataclass(frozen=True)
class Pass:
    """One network run over the images that `members` need, giving the features of all `columns`."""

    members: tuple[Run, ...]
    columns: tuple[Column, ...]
    images: float


class Costs:
    """Costs of the steps of one plan, from shapes and counts alone."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    def fit(self, run: Run) -> Cost:
        train, held = self.budget(run)
        epochs = run.recipe.epochs
        if cacheable(run):
            width = self._width(run)
            numbers = 0.0 if run.head.kind == "knn" else 4.0 * width * self.classes(run)
            return Cost(
                SMALL + self._head_flops(run, train * max(1, run.recipe.views), held), 0.0, numbers + RECORD_BYTES
            )
        below, whole, parameters = self._flops(run)
        above = max(0.0, whole - below) if run.head.kind == "rest" else 0.0
        once = below * (1 if run.method == "frozen" else BACKWARD) + above * BACKWARD
        recipe = run.recipe
        shown = train * (1 + (2 * recipe.ratio if recipe.semi != "none" else 0)) * (2 if recipe.sam else 1)
        flops = epochs * (shown * once + held * (below + above) * (2 if recipe.test_flip else 1))
        return Cost(SMALL + flops, epochs * (shown + held), 4 * parameters + RECORD_BYTES)

    def _head_flops(self, run: Run, train: float, held: float) -> float:
        width, classes = self._width(run), self.classes(run)
        if run.head.kind in UNTRAINED:
            return 2.0 * train * width * (held if run.head.kind == "knn" else 1.0)
        if run.target.episodes is not None:
            return 50.0 * run.target.episodes.count * width * run.target.episodes.ways
        if run.recipe.optimizer == "ridge":
            smaller = min(train, width)
            return 2.0 * train * width * smaller + 10.0 * smaller**3
        rounds = min(run.recipe.epochs, USUAL_ITERATIONS) if run.recipe.optimizer == "lbfgs" else run.recipe.epochs
        return 6.0 * rounds * (train + held) * width * classes

    def score(self, run: Run) -> Cost:
        count = self.test_images(run)
        if cacheable(run):
            episodes = 0.0 if run.target.episodes is None else self._head_flops(run, 0.0, 0.0)
            return Cost(SMALL + episodes, 0.0, 16 * count)
        below, whole, _ = self._flops(run)
        return Cost(SMALL + count * (whole if run.head.kind == "rest" else below), count, 16 * count)

    def features(self, columns: Sequence[Column], images: float) -> Cost:
        """One pass over `images` images that fills all `columns`."""
        points = [(self._point(column.run, column.cut), column.run.head.pool) for column in columns]
        deepest = max(point.flops for point, _ in points)
        return Cost(SMALL + images * deepest, images, 4 * images * sum(point.width(pool) for point, pool in points))

    def passes(self, runs: Iterable[Run]) -> list[Pass]:
        """How the features that the runs need will be extracted, as far as it can be told before any training."""
        groups: dict[object, list[Run]] = {}
        for run in filter(cacheable, runs):
            root = self.keys.root(run)
            seed = run.seed if root.source.weights == "random" or run.source.run else None
            groups.setdefault((self.keys.source_cell(run), run.source, run.target.data, seed), []).append(run)
        found = []
        for members in groups.values():
            columns: dict[str, Column] = {}
            for run in members:
                for cut in self._cuts(run):
                    column = Column(run, cut)
                    columns.setdefault(column.name, column)
            views = max(1, *(run.recipe.views for run in members)) if members else 1
            images = views * self.union(members) + max(self.test_images(run) for run in members)
            found.append(Pass(tuple(members), tuple(columns.values()), images))
        return found

    def budget(self, run: Run) -> tuple[float, float]:
        """(training images, validation images)."""
        total = float(sum(self._per_class(run)))
        held = round(total * run.target.validation) if run.target.episodes is None else 0
        return total - held, held

    def union(self, runs: Sequence[Run]) -> float:
        """Expected number of different training images that the budgets of `runs` draw together."""
        info = self._info(runs[0])
        if not info.classes:
            return 0.0
        missed = dict.fromkeys(info.classes, 1.0)
        for draw in {(r.seed, r.target): r for r in runs}.values():
            used = draw.target.classes or info.classes
            for name, k in zip(used, self._per_class(draw), strict=True):
                missed[name] *= 1.0 - k / max(1, info.train_counts[info.classes.index(name)])
        return float(sum(n * (1 - missed[c]) for c, n in zip(info.classes, info.train_counts, strict=True)))

    def known(self, run: Run) -> bool:
        """Whether the number of images is known."""
        return self._info(run).known

    def classes(self, run: Run) -> int:
        return len(run.target.classes or self._info(run).classes or ("?",) * 10)

    def test_images(self, run: Run) -> int:
        info = self._info(run)
        all_of_them = info.test_images or 0
        if run.target.classes and info.classes:
            all_of_them = all_of_them * len(run.target.classes) // len(info.classes)
        return min(run.target.test_images or all_of_them, all_of_them)

    def _info(self, run: Run) -> DatasetInfo:
        try:
            return self.keys.info(run.target.data)
        except DataError:  # a folder that is away
            return DatasetInfo(run.target.data, (), (), None, None, 3, None, False, "")

    def _per_class(self, run: Run) -> list[float]:
        info, target = self._info(run), run.target
        counts = dict(zip(info.classes, info.train_counts, strict=True))
        used = target.classes or info.classes
        if (asked := target.episodes) is not None:
            drawn = asked.count * asked.shots * asked.ways / max(1, len(used))
            return [min(float(counts.get(name, 0)), drawn) for name in used]
        if target.per_class is not None:
            return [float(min(target.per_class, counts.get(name, target.per_class))) for name in used]
        return [max(1.0, round(counts.get(name, 0) * (target.fraction or 1.0))) for name in used]

    def _flops(self, run: Run) -> tuple[float, float, float]:
        """Forward FLOPs of one image (up to the cut, of the whole network), and parameters up to the cut."""
        point, whole = self._point(run, run.cut), self._point(run, None)
        return float(point.flops), float(whole.flops), float(point.parameters)

    def _cuts(self, run: Run) -> list[str]:
        network, stem = self.keys.network(run)
        point = self._point(run, run.cut)
        if run.head.kind != "head2toe":
            return [point.name]
        return cuts_below(network, point.name, image_size(run, self.keys), stem=stem)

    def _width(self, run: Run) -> int:
        """Length of what the head takes."""
        width = sum(self._point(run, cut).width(run.head.pool) for cut in self._cuts(run))
        return max(1, round(width * run.head.share)) if run.head.kind == "head2toe" else width

    def _point(self, run: Run, at: str | None) -> CutPoint:
        network, stem = self.keys.network(run)
        return resolve_cut(network, at, image_size(run, self.keys), stem=stem)


def measure_flops_per_second(device: str = "cpu") -> float:
    """What convolutions reach here, by a probe of a fraction of a second; good to a factor of about two."""
    import time

    import torch

    x = torch.from_numpy(np.full((64, 64, 16, 16), 0.5, dtype=np.float32)).to(device)
    x = x.to(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    flops = 2.0 * 64 * 64 * 9 * 16 * 16 * 64

    def once() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            float(convolution(x).sum())
        return time.perf_counter() - start

    once()
    return flops / float(np.median([once() for _ in range(5)]))
