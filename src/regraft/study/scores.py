"""Transferability scores of a study's frozen rows, beside what was measured. Each is computed once, from training
images and their labels alone (`scoring`), and kept in the store; what is there is read without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.errors import Diverged, RegraftError, WeightsError
from regraft.learn.score_names import LEEP, NCE
from regraft.spec import Run, Study
from regraft.study.keys import Keys, NotTrained, cacheable
from regraft.study.plan import Cell, plan
from regraft.study.results import Results, read_results
from regraft.study.store import Store, default_store, key_of

VERSION = 1  # raised by hand when a score's value changes
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

    Scores, and features, that the store lacks are computed and kept, all cuts of a trunk in one pass, so that it can be
    asked before any head is trained. Left out: rows whose trunk is not trained yet or has diverged, few-shot episodes,
    and head2toe heads, which look at many cuts.
    answers: also LEEP and NCE, for which images go through the whole source network. They say how well a source suits
    a target, and are the same at each of its cuts; NaN where the source has no classifier.
    images: training images looked at, at most."""
    store = store or default_store()
    runs = plan(study)
    keys = Keys(runs, store, offline=offline)
    asked = dict(candidates(keys))
    if any(_read(keys, run, images, answers) is None for run in asked.values()):
        from regraft.study.bench import Bench, Setting
        from regraft.study.scoring import obtain_scores

        bench = Bench(Setting(store.location, tuple(runs), device, threads, offline))
        obtain_scores(list(asked.values()), bench, images=images, answers=answers)
        keys = bench.keys
    found = {cell: _read(keys, run, images, answers) for cell, run in asked.items()}
    return _rows(keys, asked, found, read_results(study, store, keys=keys))


def stored_scores(results: Results, *, images: int = IMAGES) -> list[ScoreRow] | None:
    """The same as the store has it, beside `results`; None unless it has the scores of every candidate."""
    if results.store is None:
        return None
    keys = Keys(plan(results.study), results.store, offline=True)
    try:
        asked: dict[Cell, Run] = {}
        found: dict[Cell, Mapping[str, Any] | None] = {}
        for cell, run in candidates(keys):
            asked[cell], found[cell] = run, _read(keys, run, images, True)
            if found[cell] is None:  # most studies have none: known at the first
                return None
    except RegraftError:  # data or weights are gone, so that what determined the scores cannot be told
        return None
    return _rows(keys, asked, found, results) if found else None


def candidates(keys: Keys) -> Iterator[tuple[Cell, Run]]:
    """The cells that have scores, each with one of its runs: recipes of a cell share their features."""
    for cell, (run, *_) in keys.by_cell.items():
        if not cacheable(run) or run.target.episodes is not None or run.head.kind == "head2toe":
            continue
        try:
            parent = keys.parent(keys.bearer(run))
            if parent is not None:
                keys.fitted(parent)
            keys.trunk(run)
        except (NotTrained, Diverged, WeightsError):  # the source has no weights yet, or never will
            continue
        yield cell, run


def score_spec(keys: Keys, run: Run, images: int, answers: bool) -> dict[str, Any]:
    """What determines a cell's scores: features, and which images of the target it trains on."""
    target = run.target
    part = {
        "classes": target.classes, "per_class": target.per_class, "fraction": target.fraction,
        "validation": target.validation, "seed": run.seed,
    }  # fmt: skip
    return {
        "stage": "transferability", "version": VERSION, "features": key_of(keys.features(run, "train")), "part": part,
        "images": images, "answers": answers,
    }  # fmt: skip


def score_keys(keys: Keys) -> set[str]:
    """Keys of the scores of a study in the store, whether they are there or not."""
    return {key_of(score_spec(keys, run, IMAGES, answers)) for _, run in candidates(keys) for answers in (True, False)}


def _read(keys: Keys, run: Run, images: int, answers: bool) -> Mapping[str, Any] | None:
    artifact = keys.store.get(key_of(score_spec(keys, run, images, answers)))
    return None if artifact is None else artifact.values


def _rows(
    keys: Keys, asked: Mapping[Cell, Run], found: Mapping[Cell, Mapping[str, Any] | None], results: Results
) -> list[ScoreRow]:
    measured = {(cell.row, cell.seed): cell for cell in results.cells}
    rows = []
    for cell, run in asked.items():
        values, scored = found[cell], measured.get(cell)
        assert values is not None
        held = None if scored is None else scored.validation_accuracy
        scores = {LEEP: math.nan, NCE: math.nan, **values["scores"], VALIDATION: math.nan if held is None else held}
        rows.append(
            ScoreRow(
                row=run.row, seed=run.seed, source=run.source_name, cut=keys.cut(run), target=run.target_name,
                head=run.head.label, optimizer=run.recipe.optimizer, images=values["images"], scores=scores,
                accuracy=None if scored is None else scored.accuracy,
            )
        )  # fmt: skip
    return rows
