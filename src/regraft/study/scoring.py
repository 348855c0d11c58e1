"""How the transferability scores of frozen rows are computed: features of training images, and the source's answers to
them. Looked at are the images and labels of each row's own training part, and no others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from regraft.learn.transferability import answer_scores, feature_scores
from regraft.networks import PooledHead, build, make_head
from regraft.networks.cuts import tail_of
from regraft.networks.nodes import PENULTIMATE
from regraft.seeding import stream
from regraft.spec import Head, Run
from regraft.spec.models import Pooling
from regraft.study.bench import Bench, Part
from regraft.study.features import Column, FeatureTask, Place, obtain_features, pass_name, read_features, table_name
from regraft.study.scores import DEPTH, SIZE, WIDTH, score_spec
from regraft.study.store import Payload, Scratch, canonical, key_of
from regraft.study.tables import Positions


def obtain_scores(runs: Sequence[Run], bench: Bench, *, images: int, answers: bool) -> None:
    """Compute and store the scores of these runs that the store lacks; their trunks are there."""
    classifiers: dict[str, _Classifier | None] = {}
    work = []
    for run in runs:
        if bench.store.has(key_of(score_spec(bench.keys, run, images, answers))):
            continue
        trunk = canonical([bench.keys.trunk(run), bench.keys.network(run)])
        if answers and trunk not in classifiers:
            classifiers[trunk] = _classifier(run, bench)
        work.append(_Work(run, _part(run, bench, images), classifiers.get(trunk)))
    _fill(work, bench)
    found: dict[object, dict[str, float]] = {}
    for one in work:
        spec = score_spec(bench.keys, one.run, images, answers)
        bench.store.cached(spec, partial(_payload, one, bench, found), device=bench.device_name)


def _payload(one: _Work, bench: Bench, found: dict[object, dict[str, float]], scratch: Scratch) -> Payload:
    point = bench.point(one.run)
    scores = _scores(one, bench, found)
    scores |= {DEPTH: point.depth, SIZE: float(point.flops), WIDTH: float(point.width(one.run.head.pool))}
    return Payload(
        {"images": len(one.part), "scores": {name: value for name, value in scores.items() if not math.isnan(value)}}
    )


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
