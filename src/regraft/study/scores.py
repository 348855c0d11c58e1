"""Transferability scores of a study's frozen rows, beside what was measured. Training images and their labels alone are
looked at, those of each row's own training part; what was measured is read from the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from regraft.errors import Diverged, WeightsError
from regraft.learn.transferability import LEEP, NCE, answer_scores, feature_scores
from regraft.networks import PooledHead, build, make_head
from regraft.networks.cuts import tail_of
from regraft.networks.nodes import PENULTIMATE
from regraft.seeding import stream
from regraft.spec import Head, Run, Study
from regraft.spec.models import Pooling
from regraft.study.bench import Bench, Part, Setting
from regraft.study.features import Column, FeatureTask, Place, obtain_features, pass_name, read_features, table_name
from regraft.study.keys import NotTrained, cacheable
from regraft.study.plan import plan
from regraft.study.results import read_results
from regraft.study.store import Store, canonical, default_store
from regraft.study.tables import Positions

IMAGES = 2000  # at most, of each training part: some seconds a cut where features are as many
# What is known without looking at a label, and what every score has to beat, beside the ridge probe.
DEPTH, SIZE, WIDTH, VALIDATION = "depth", "size", "width", "validation"


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one candidate, for one row and seed; higher is better. NaN: not to be had here."""

    row: str
    seed: int
    source: str
    cut: str
    target: str
    head: str
    optimizer: str
    images: int  # that the scores were computed on
    # Those of `regraft.learn.transferability`; depth: share of the network's FLOPs below the cut; size: FLOPs below the
    # cut; width: of the features; validation: accuracy of the trained head on validation images
    scores: dict[str, float]
    accuracy: float | None  # measured, on test images; None: not scored yet


def scores_table(
    study: Study,
    store: Store | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    offline: bool = False,
    answers: bool = True,
    images: int = IMAGES,
) -> list[ScoreRow]:
    """Of every frozen row and seed of `study`, in the order of the plan.

    Features that the store lacks are computed and kept, all cuts of a trunk in one pass, so that it can be asked before
    any head is trained. Left out: rows whose trunk is not trained yet or has diverged, few-shot episodes, and head2toe
    heads, which look at many cuts.
    answers: also LEEP and NCE, for which images go through the whole source network. They say how well a source suits
    a target, and are the same at each of its cuts; NaN where the source has no classifier.
    images: training images looked at, at most."""
    store = store or default_store()
    runs = plan(study)
    bench = Bench(Setting(str(store.root), tuple(runs), device, threads, offline))
    classifiers: dict[str, _Classifier | None] = {}
    work = []
    for cell in bench.keys.by_cell.values():
        run = cell[0]  # recipes of a cell share their features
        if not cacheable(run) or run.target.episodes is not None or run.head.kind == "head2toe":
            continue
        try:
            trunk = canonical([_trunk(run, bench), bench.keys.network(run)])
        except (NotTrained, Diverged, WeightsError):  # the source has no weights yet, or never will
            continue
        if answers and trunk not in classifiers:
            classifiers[trunk] = _classifier(run, bench)
        work.append(_Work(run, _part(run, bench, images), classifiers.get(trunk)))
    _fill(work, bench)
    found: dict[object, dict[str, float]] = {}
    measured = {(cell.row, cell.seed): cell for cell in read_results(study, store, keys=bench.keys).cells}
    rows = []
    for one in work:
        run, point, cell_found = one.run, bench.point(one.run), measured.get(one.run.cell)
        scores = {LEEP: math.nan, NCE: math.nan, **_scores(one, bench, found)}
        scores |= {DEPTH: point.depth, SIZE: float(point.flops), WIDTH: float(point.width(run.head.pool))}
        held = None if cell_found is None else cell_found.validation_accuracy
        scores[VALIDATION] = math.nan if held is None else held
        rows.append(
            ScoreRow(
                row=run.row, seed=run.seed, source=run.source_name, cut=bench.keys.cut(run), target=run.target_name,
                head=run.head.label, optimizer=run.recipe.optimizer, images=len(one.part), scores=scores,
                accuracy=None if cell_found is None else cell_found.accuracy,
            )
        )  # fmt: skip
    return rows


@dataclass(frozen=True, eq=False)
class _Classifier:
    """The source's own: features at one of its cuts -> logits of the source's classes."""

    cut: str
    pool: Pooling
    classify: nn.Module


@dataclass(frozen=True, eq=False)
class _Work:
    """A row and seed, the images it is judged on, and what the source says of them."""

    run: Run
    part: Part
    source: _Classifier | None

    @property
    def place(self) -> Place:
        return self.part.split, 0  # the images as they are, whatever the head is trained on

    def columns(self, bench: Bench) -> list[Column]:
        """The row's own, and what the source's classifier takes."""
        own = Column(self.run, bench.keys.cut(self.run))
        return [own] if self.source is None else [own, Column(self._asked(), self.source.cut)]

    def features(self, bench: Bench) -> Tensor:
        return read_features(self.run, self.place, self.part.positions, bench)[0]

    def answers(self, bench: Bench) -> Tensor:
        """Of the source, (n, source classes), probabilities in float64."""
        assert self.source is not None
        x, _, _ = read_features(self._asked(), self.place, self.part.positions, bench, cut=self.source.cut)
        with torch.inference_mode():
            logits = torch.cat([self.source.classify(rows) for rows in torch.split(x, 1024)])
        return logits.double().softmax(1)

    def _asked(self) -> Run:
        """The run, with the pooling that the source's classifier takes."""
        assert self.source is not None
        return self.run.model_copy(update={"head": Head(pool=self.source.pool)})


def _part(run: Run, bench: Bench, images: int) -> Part:
    """The run's training part, or as many of its images."""
    part, _ = bench.parts(run)
    if len(part) <= images:
        return part
    chosen = np.sort(stream(run.seed, "scores").permutation(len(part))[:images])
    return replace(part, positions=part.positions[chosen], labels=part.labels[chosen])


def _trunk(run: Run, bench: Bench) -> object:
    """What determines its weights. Raises NotTrained, Diverged, WeightsError if there are none."""
    parent = bench.keys.parent(bench.keys.bearer(run))
    if parent is not None:
        bench.keys.fitted(parent)
    return bench.keys.trunk(run)


def _fill(work: Sequence[_Work], bench: Bench) -> None:
    """Have all features, a trunk's in one pass."""
    passes: dict[str, tuple[Place, dict[str, Column], list[Positions]]] = {}
    for one in work:
        name = pass_name(one.run, one.place, bench.keys)
        _, columns, lists = passes.setdefault(name, (one.place, {}, []))
        columns.update({column.name: column for column in one.columns(bench)})
        lists.append(one.part.positions)
    for place, columns, lists in passes.values():
        task = FeatureTask(tuple(columns.values()), place, np.unique(np.concatenate(lists)))
        obtain_features(task, bench, lambda done, message: None, True)


def _scores(one: _Work, bench: Bench, found: dict[object, dict[str, float]]) -> dict[str, float]:
    """found: those computed before; rows that differ in their head alone share them."""
    labels = torch.from_numpy(one.part.labels)
    images = one.part.positions.tobytes(), one.part.labels.tobytes()
    scores: dict[str, float] = {}
    for column, kind in zip(one.columns(bench), ("features", "answers"), strict=False):
        name = (kind, table_name(column.run, one.place, bench.keys, column.cut), *images)
        if name not in found:
            found[name] = (
                feature_scores(one.features(bench).to(bench.device), labels.to(bench.device))
                if kind == "features"
                else answer_scores(one.answers(bench), labels)
            )
        scores |= found[name]
    return scores


def _classifier(run: Run, bench: Bench) -> _Classifier | None:
    """None for random weights, and where the source's classifier does not take a vector or was not kept."""
    bearer = bench.keys.bearer(run)
    parent = bench.keys.parent(bearer)
    if parent is None and bearer.source.weights == "random":
        return None
    if parent is not None and parent.head.kind in ("linear", "mlp"):
        return _grafted_classifier(run, parent, bench)
    if bench.point(run, PENULTIMATE).layout != "flat":
        return None
    spec, state = bench.network(run), bench.source_state(run)
    classes = None if parent is None else len(bench.dataset(parent).classes)
    whole = build(spec.network, classes=classes, stem=spec.stem, seed=0, image_size=spec.image_size)
    tail = tail_of(whole, PENULTIMATE)
    own = tail.state_dict()
    if state is None or any(name not in state or state[name].shape != value.shape for name, value in own.items()):
        return None  # a file that was trained on other classes
    tail.load_state_dict({name: state[name] for name in own})
    return _Classifier(PENULTIMATE, "average", tail.eval())


def _grafted_classifier(run: Run, parent: Run, bench: Bench) -> _Classifier:
    """The head that the source run was trained with."""
    cut = bench.keys.cut(parent)
    classes, point = len(bench.dataset(parent).classes), bench.point(run, cut)
    head = make_head(parent.head, point, classes, spec=bench.network(run), seed=parent.seed)
    assert isinstance(head, PooledHead)
    tensors = bench.store.tensors(bench.keys.fitted(parent))
    held = {k.removeprefix("head/").removeprefix("classify."): v for k, v in tensors.items() if k.startswith("head/")}
    head.classify.load_state_dict(held)
    return _Classifier(cut, parent.head.pool, head.classify.eval())
