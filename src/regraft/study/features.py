"""Tables of cached features: one for each (trunk, cut, data, split), filled shard by shard.

A table grows by what is missing. Any later study with the same trunk finds the rows that are there, and a kill
loses at most the shard under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regraft.errors import ArtifactDamaged, FrozenTrunkMoved
from regraft.learn.batches import ImageBatches
from regraft.learn.features import extract
from regraft.networks import Trunk, body_for_cuts, build, load_body
from regraft.spec import Run
from regraft.study.bench import Bench
from regraft.study.keys import cacheable
from regraft.study.store import Payload, Scratch, Store, key_of

SHARD = 2048  # images; a few seconds to half a minute of work on a CPU

Advance = Callable[[float, str], None]
Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureTask:
    """All cuts of one trunk over the images that any run needs of one split."""

    runs: tuple[Run, ...]  # one for each cut; they share trunk, data and preprocessing
    split: str
    positions: Positions  # (n,) sorted, in the whole split
    users: tuple[Run, ...] = ()  # all runs that need any of it


def feature_tasks(runs: Sequence[Run], bench: Bench) -> list[FeatureTask]:
    """What the cacheable runs need, each trunk and split once, less what the store already has."""
    needed: dict[str, dict[str, tuple[Run, Positions]]] = {}
    splits: dict[str, str] = {}
    users: dict[str, list[Run]] = {}
    for run in runs:
        if not cacheable(run):
            continue
        wanted: dict[str, list[Positions]] = {"test": [test_positions(run, bench)]}
        for part in bench.parts(run):
            if part is not None:
                wanted.setdefault(part.split, []).append(part.positions)
        for split, lists in wanted.items():
            table = key_of({**bench.keys.features(run, split), "cut": "any"})
            splits[table] = split
            users.setdefault(table, []).append(run)
            cuts = needed.setdefault(table, {})
            at = bench.keys.cut(run)
            before = cuts[at][1] if at in cuts else np.empty(0, np.int64)
            cuts[at] = (run, np.unique(np.concatenate([before, *lists])))
    tasks = []
    for table, cuts in needed.items():
        split = splits[table]
        lacking = {
            cut: (run, np.setdiff1d(wanted, covered(bench.store, _group(run, bench, split))))
            for cut, (run, wanted) in cuts.items()
        }
        lacking = {cut: pair for cut, pair in lacking.items() if len(pair[1])}
        if lacking:
            every = np.unique(np.concatenate([wanted for _, wanted in lacking.values()]))
            lacking_runs = tuple(run for run, _ in lacking.values())
            tasks.append(FeatureTask(lacking_runs, split, every, tuple(users[table])))
    return tasks


def test_positions(run: Run, bench: Bench) -> Positions:
    """Positions of the scored images in the whole test split."""
    return np.asarray(bench.test(run).indices)


def obtain_features(task: FeatureTask, bench: Bench, advance: Advance, wait: bool) -> str:
    """Extract and store what is missing of the task; every cut in one pass."""
    first = task.runs[0]
    table = key_of({**bench.keys.features(first, task.split), "cut": "any"})
    with bench.store.locked(f"features-{table}", wait=wait):
        todo = {
            run: np.setdiff1d(task.positions, covered(bench.store, _group(run, bench, task.split))) for run in task.runs
        }
        every = np.unique(np.concatenate(list(todo.values())))
        if len(every) == 0:
            return "there already"
        cuts = {run: bench.keys.cut(run) for run in task.runs}
        trunk = _trunk(first, list(cuts.values()), bench)
        before = trunk.state_hash()
        shards = [every[i : i + SHARD] for i in range(0, len(every), SHARD)]
        for i, positions in enumerate(shards):
            features = _pass(
                trunk, first, task.split, positions, bench,
                advance=lambda done, i=i: advance((i + done) / len(shards), ""),  # type: ignore[misc]
            )  # fmt: skip
            if trunk.state_hash() != before:
                raise FrozenTrunkMoved(f"{first.label}: the trunk changed while its features were extracted")
            for run, missing in todo.items():
                own = np.isin(positions, missing)
                if own.any():
                    rows = features[cuts[run]][torch.from_numpy(own)]
                    _store_shard(run, task.split, positions[own], rows, before, bench)
            advance((i + 1) / len(shards), f"{min((i + 1) * SHARD, len(every)):,} of {len(every):,} images")
    return f"{len(every):,} images, {len(task.runs)} cut{'s' * (len(task.runs) > 1)}"


def read_features(run: Run, split: str, positions: Positions, bench: Bench) -> tuple[Tensor, str]:
    """Features (n, d) in the order of `positions`, and the hash of the trunk that made them.

    What is missing or damaged is computed first."""
    for _ in range(2):
        found = _assemble(bench.store, _group(run, bench, split), positions)
        if found is not None:
            return found
        task = FeatureTask((run,), split, np.unique(positions))
        obtain_features(task, bench, lambda done, message: None, True)
    raise ArtifactDamaged(f"{run.label}: features were damaged again right after they were written")


def covered(store: Store, group: str) -> Positions:
    """Positions that a table has, sorted."""
    shards = [store.get(key) for key in store.linked(group)]
    lists = [np.asarray(s.values["positions"], dtype=np.int64) for s in shards if s is not None]
    return np.unique(np.concatenate([np.empty(0, np.int64), *lists]))


def _group(run: Run, bench: Bench, split: str) -> str:
    return key_of(bench.keys.features(run, split))


def _assemble(store: Store, group: str, positions: Positions) -> tuple[Tensor, str] | None:
    out: Tensor | None = None
    missing = np.ones(len(positions), dtype=bool)
    trunk = ""
    for key in store.linked(group):
        shard = store.get(key)
        if shard is None or not missing.any():
            continue
        have = np.asarray(shard.values["positions"], dtype=np.int64)
        use = missing & np.isin(positions, have)
        if not use.any():
            continue
        try:
            values = shard.tensors()["features"]
        except ArtifactDamaged as error:
            store.set_aside(key, str(error))
            continue
        if out is None:
            out = torch.empty(len(positions), values.shape[1])
        order = np.argsort(have)
        rows = order[np.searchsorted(have, positions[use], sorter=order)]
        out[torch.from_numpy(np.flatnonzero(use))] = values[torch.from_numpy(rows)]
        missing &= ~use
        trunk = str(shard.values["trunk_sha256"])
    return None if out is None or missing.any() else (out, trunk)


def _trunk(run: Run, cuts: Sequence[str], bench: Bench) -> Trunk:
    """The frozen trunk of `run`, giving all `cuts`, pooled, in one pass."""
    spec = bench.network(run)
    network = build(spec.network, stem=spec.stem, seed=run.seed, image_size=spec.image_size)
    body: nn.Module = body_for_cuts(network, cuts, pooled=True)
    if (state := bench.source_state(run)) is not None:
        load_body(body, state, origin=run.source_name)
    trunk = Trunk(body, frozen=True)
    trunk.to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return trunk


def _pass(
    trunk: Trunk, run: Run, split: str, positions: Positions, bench: Bench, *, advance: Callable[[float], None]
) -> dict[str, Tensor]:
    images = ImageBatches(
        bench.images(run, split)[positions],
        np.zeros(len(positions), np.int64),  # labels play no part
        bench.keys.preprocessing(run),
        device=bench.device,
    )
    return extract(trunk, images, advance=advance)


def _store_shard(run: Run, split: str, positions: Positions, rows: Tensor, trunk_hash: str, bench: Bench) -> None:
    table = bench.keys.features(run, split)
    spec: dict[str, Any] = {**table, "positions": positions.tolist()}
    values = {"positions": positions.tolist(), "trunk_sha256": trunk_hash, "width": int(rows.shape[1])}

    def payload(_: Scratch) -> Payload:
        return Payload(values, {"features": rows})

    artifact = bench.store.cached(spec, payload, device=bench.device_name)
    bench.store.link(key_of(table), artifact.key)
