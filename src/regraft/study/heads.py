"""Heads on cached features as steps of a study. The recipes of a cell share trunk, images and labels, and are solved
together."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from regraft.errors import Diverged
from regraft.learn.fit import Fit
from regraft.spec import Run
from regraft.spec.models import UNTRAINED
from regraft.spec.recipe import SOLVED
from regraft.study.bench import Bench
from regraft.study.payload import fit_payload
from regraft.study.solve import Found, head_features, solve, training_features
from regraft.study.store import Payload, Scratch, key_of
from regraft.study.streams import is_streamed, solve_streamed, training_rows, trunk_and_backend

Advance = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class HeadTask:
    """Heads of one cell that are computed together: they differ in penalty or learning rate.

    The group is the plan's, whatever of it is in the store: a resumed study computes what an uninterrupted one does."""

    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        run = self.runs[0]
        return run.label if len(self.runs) == 1 else f"{run.row} [seed {run.seed}, {len(self.runs)} recipes]"


def together(runs: Sequence[Run]) -> list[HeadTask]:
    """The runs, all with cacheable heads, in groups that can be computed together."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        recipe = run.recipe
        kin: object = run  # an mlp head goes alone
        if run.head.kind in UNTRAINED or run.target.episodes is not None:
            kin = run
        elif recipe.optimizer in SOLVED:
            kin = (recipe.optimizer, recipe.epochs, recipe.augmentation, recipe.views)
        elif run.head.kind != "mlp":
            kin = ("steps", recipe.epochs, recipe.batch_size, recipe.augmentation, recipe.views)
        groups.setdefault((run.cell, run.refit, kin), []).append(run)
    return [HeadTask(tuple(members)) for members in groups.values()]


def obtain_heads(task: HeadTask, bench: Bench, advance: Advance, wait: bool) -> str:
    """Compute every head of the task, unless the store has them all."""
    specs = [bench.keys.fit(run) for run in task.runs]
    name = hashlib.sha256("".join(map(key_of, specs)).encode()).hexdigest()
    with bench.store.locked(f"heads-{name}", wait=wait):
        artifacts = [bench.store.get(key_of(spec)) for spec in specs]
        if any(artifact is None for artifact in artifacts):
            began = time.perf_counter()
            scratch = Scratch(bench.store.root / "work" / key_of(specs[0]))
            payloads = _compute(task, bench, scratch, advance)
            seconds = round((time.perf_counter() - began + scratch.seconds_before) / len(task.runs), 3)
            artifacts = [
                bench.store.cached(
                    spec,
                    lambda _, p=payload: Payload(p.values, p.tensors, {**p.record, "seconds": seconds}),  # type: ignore[misc]
                    device=bench.device_name,
                    wait=wait,
                )
                for spec, payload in zip(specs, payloads, strict=True)
            ]
            scratch.clear()
    held = [a.values["validation_accuracy"] for a in artifacts if a is not None and "diverged" not in a.values]
    diverged = len(artifacts) - len(held)
    best = max((value for value in held if value is not None), default=None)
    said = "trained" if best is None else f"validation {'up to ' * (len(held) > 1)}{100 * best:.1f} %"
    return said + (f"; {diverged} diverged" if diverged else "")


def _compute(task: HeadTask, bench: Bench, scratch: Scratch, advance: Advance) -> list[Payload]:
    run = task.runs[0]
    if run.target.episodes is not None:
        return [_drawn(run, bench)]
    parts, held = bench.training(run)
    record: dict[str, Any] = {}
    solved: Callable[[], list[Found]]
    if is_streamed(run, training_rows(run, parts), bench):
        trunk_hash, record["features"] = trunk_and_backend(run, parts, bench)
        record["streamed"] = True
        solved = partial(solve_streamed, task.runs, parts, held, bench, scratch, advance)
    else:
        x, labels, trunk_hash, record["features"] = training_features(run, parts, bench)
        validation = None if held is None else (head_features(run, held, bench), torch.from_numpy(held.labels))
        solved = partial(solve, task.runs, x, labels, validation, bench, scratch, advance)
    try:
        found = solved()
    except Diverged as error:  # the features themselves are broken: a result of every run
        found = [error for _ in task.runs]
    payloads = []
    for member, result in zip(task.runs, found, strict=True):
        if isinstance(result, Diverged):  # known, and not to be found out again at every start
            payloads.append(Payload({"diverged": str(result)}))
            continue
        try:
            tensors = {f"head/{name}": value for name, value in result.state.items()}
            payload = fit_payload(member, bench, result, tensors, parts, held, (trunk_hash, trunk_hash))
        except Diverged as error:
            payload = Payload({"diverged": str(error)})
        payloads.append(Payload(payload.values, payload.tensors, record))
    return payloads


def _drawn(run: Run, bench: Bench) -> Payload:
    """Of few-shot episodes, what is settled before any test image is met: which images they learn from."""
    episodes = bench.episodes(run)
    parts, held = bench.training(run)
    curve = [{"epoch": 1.0}]
    found = Fit({}, curve, 1, ())
    tensors = {"ways": torch.from_numpy(episodes.ways), "support": torch.from_numpy(episodes.support)}
    return fit_payload(run, bench, found, tensors, parts, held, ("", ""))
