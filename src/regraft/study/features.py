"""Tables of cached features: one for each (trunk, cut, pooling, data, split, view), filled shard by shard.

A table grows by what is missing. Any later study with the same trunk finds the rows that are there, and a kill
loses at most the shard under way.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import ArtifactDamaged, FrozenTrunkMoved
from regraft.learn.backend_table import absent
from regraft.learn.backends import Backend, choose_backend
from regraft.learn.batches import ImageBatches
from regraft.learn.features import extract
from regraft.networks import Trunk, build, build_around, feature_name, load_body, pooled_body
from regraft.spec import AS_IS, Run
from regraft.study.bench import Bench
from regraft.study.keys import Keys, cacheable
from regraft.study.store import Payload, Scratch, key_of
from regraft.study.tables import Positions

SHARD = 2048  # images; a few seconds to half a minute of work on a CPU
SAMPLE = 64  # images on which back ends are compared

Advance = Callable[[float, str], None]
Place = tuple[str, int]  # (split, view): 0 the images as they are, 1 and up augmented views


@dataclass(frozen=True)
class Column:
    """A table that a pass fills: the features at one cut."""

    run: Run  # one of those that need it; says trunk, data, preprocessing and pooling
    cut: str

    @property
    def name(self) -> str:
        """In what the trunk gives."""
        return feature_name(self.cut, self.run.head.pool)


@dataclass(frozen=True, eq=False)
class FeatureTask:
    """All cuts of one trunk over the images that any run needs of one split, or of one augmented view of it."""

    columns: tuple[Column, ...]  # they share trunk, data and preprocessing
    place: Place
    positions: Positions  # (n,) sorted, in the whole split
    users: tuple[Run, ...] = ()  # all runs that need any of it

    @property
    def run(self) -> Run:
        return self.columns[0].run


def feature_tasks(runs: Sequence[Run], bench: Bench) -> list[FeatureTask]:
    """What the cacheable runs need, each trunk, split and view once, less what the store already has."""
    needed: dict[str, dict[str, tuple[Column, Positions]]] = {}
    places: dict[str, Place] = {}
    users: dict[str, list[Run]] = {}
    for run in filter(cacheable, runs):
        for place, wanted in needed_images(run, bench).items():
            name = pass_name(run, place, bench.keys)
            places[name] = place
            users.setdefault(name, []).append(run)
            columns = needed.setdefault(name, {})
            for cut in bench.keys.cuts(run):
                column = Column(run, cut)
                before = columns[column.name][1] if column.name in columns else np.empty(0, np.int64)
                columns[column.name] = (column, np.union1d(before, wanted))
    tasks = []
    for name, columns in needed.items():
        lacking = [(column, _lacking(column, places[name], wanted, bench)) for column, wanted in columns.values()]
        lacking = [(column, positions) for column, positions in lacking if len(positions)]
        if lacking:
            every = np.unique(np.concatenate([positions for _, positions in lacking]))
            tasks.append(FeatureTask(tuple(c for c, _ in lacking), places[name], every, tuple(users[name])))
    # A back end is chosen by the first task of a trunk and serves the others: most images first, or a short test split
    # would choose what suits little work for all of the training images.
    return sorted(tasks, key=lambda task: -len(task.positions))


def needed_images(run: Run, bench: Bench) -> dict[Place, Positions]:
    """Of which images the run's head needs features, by split and view: positions in the whole split."""
    wanted: dict[Place, list[Positions]] = {("test", 0): [test_positions(run, bench)]}
    train, held = bench.parts(run)
    views = training_views(run)
    for view in views:
        wanted.setdefault((train.split, view), []).append(train.positions)
    if held is not None:
        for view in {0, *(views if run.recipe.refit else ())}:
            wanted.setdefault((held.split, view), []).append(held.positions)
    return {place: np.unique(np.concatenate(lists)) for place, lists in wanted.items()}


def training_views(run: Run) -> range:
    """Views of each training image that the head learns from."""
    return range(1, run.recipe.views + 1) if run.recipe.views else range(1)


def test_positions(run: Run, bench: Bench) -> Positions:
    """Positions of the scored images in the whole test split."""
    return np.asarray(bench.test(run).indices)


def pass_name(run: Run, place: Place, keys: Keys) -> str:
    """What one pass can fill together: the same trunk and images, at whatever cut and pooling."""
    split, view = place
    return key_of({**keys.features(run, split, view=view), "cut": "any", "pool": "any"})


def table_name(run: Run, place: Place, keys: Keys, cut: str | None = None) -> str:
    """Name of the table of features at a cut (default: the run's own) in the store."""
    split, view = place
    return key_of(keys.features(run, split, cut=cut, view=view))


def obtain_features(task: FeatureTask, bench: Bench, advance: Advance, wait: bool) -> str:
    """Extract and store what is missing of the task; every cut in one pass."""
    with bench.store.locked(f"features-{pass_name(task.run, task.place, bench.keys)}", wait=wait):
        todo = {column: _lacking(column, task.place, task.positions, bench) for column in task.columns}
        every = np.unique(np.concatenate(list(todo.values())))
        if len(every) == 0:
            return "there already"
        prefer = _preferred(task, bench)
        trunk, backend = bench.kept(
            f"{_trunk_name(task, bench)} {prefer}", lambda: prepared_trunk(task, every, prefer, bench)
        )
        before = trunk.state_hash()
        shards = [every[i : i + SHARD] for i in range(0, len(every), SHARD)]
        for i, positions in enumerate(shards):
            began = time.perf_counter()
            features = extract(
                trunk, _images(task, positions, bench), backend=backend,
                advance=lambda done, i=i: advance((i + done) / len(shards), ""),  # type: ignore[misc]
            )  # fmt: skip
            if trunk.state_hash() != before:
                raise FrozenTrunkMoved(f"{task.run.label}: the trunk changed while its features were extracted")
            record = {
                "backend": backend.name, "probe": backend.record,
                "seconds": round((time.perf_counter() - began) / len(task.columns), 3),
            }  # fmt: skip
            for column, missing in todo.items():
                own = np.isin(positions, missing)
                if own.any():
                    rows = features[column.name][torch.from_numpy(own)]
                    store_shard(column, task.place, positions[own], rows, before, record, bench)
            advance((i + 1) / len(shards), f"{min((i + 1) * SHARD, len(every)):,} of {len(every):,} images")
    cuts = f"{len(task.columns)} cut{'s' * (len(task.columns) > 1)}"
    return f"{len(every):,} images, {cuts}, {backend.name}"


def read_features(
    run: Run, place: Place, positions: Positions, bench: Bench, *, cut: str | None = None
) -> tuple[Tensor, str, str]:
    """Features (n, d) in the order of `positions`, the hash of the trunk that made them, and by which back end.

    cut: default, the run's own.  What is missing or damaged is computed first."""
    at = cut or bench.keys.cut(run)
    for _ in range(2):
        table = bench.table(table_name(run, place, bench.keys, at))
        found = table.rows(positions)
        if found is not None:
            return found, table.trunk, table.backend
        task = FeatureTask((Column(run, at),), place, np.unique(positions))
        obtain_features(task, bench, lambda done, message: None, True)
    raise ArtifactDamaged(f"{run.label}: features were damaged again right after they were written")


def _lacking(column: Column, place: Place, wanted: Positions, bench: Bench) -> Positions:
    have = bench.table(table_name(column.run, place, bench.keys, column.cut)).positions
    return np.setdiff1d(wanted, have)


def _trunk_name(task: FeatureTask, bench: Bench) -> str:
    """The same for tasks that the same trunk serves, in the same way: training and test images, augmented views."""
    table = bench.keys.features(task.run, "any")
    names = [column.name for column in task.columns]
    return key_of({**{k: table[k] for k in ("stage", "version", "trunk", "network", "stem")}, "columns": names,
                   "image_size": bench.network(task.run).image_size})  # fmt: skip


def _preferred(task: FeatureTask, bench: Bench) -> str:
    """The back end asked for; else that of the table's earlier shards, so that a table that grows is of one piece."""
    if bench.backend != "auto":
        return bench.backend
    earlier = bench.table(table_name(task.run, task.place, bench.keys, task.columns[0].cut)).backend
    return earlier if earlier and not absent(earlier, bench.device) else "auto"


def prepared_trunk(task: FeatureTask, every: Positions, prefer: str, bench: Bench) -> tuple[Trunk, Backend]:
    """The frozen trunk of the task, giving the features of all its columns in one pass, and the back end it runs on."""
    run = task.run
    spec = bench.network(run)
    state = bench.source_state(run)
    if state is None:
        network = build(spec.network, stem=spec.stem, seed=run.seed, image_size=spec.image_size)
    else:
        network = build_around(state, spec.network, stem=spec.stem, image_size=spec.image_size)
    wanted = [(column.cut, column.run.head.pool) for column in task.columns]
    body = pooled_body(network, wanted, laid_out={cut: bench.point(run, cut).layout for cut, _ in wanted})
    if state is not None:
        load_body(body, state, origin=run.source_name)
    trunk = Trunk(body, frozen=True)
    trunk.to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = _images(task, every[:SAMPLE], bench).take(torch.arange(min(SAMPLE, len(every))), None)
    flops = max(bench.point(run, column.cut).flops for column in task.columns)
    return trunk, choose_backend(trunk, sample, len(every), prefer=prefer, flops=flops)


def _images(task: FeatureTask, positions: Positions, bench: Bench) -> ImageBatches:
    split, view = task.place
    whole = bench.images(task.run, split)
    images = whole[positions]  # a copy
    if isinstance(whole, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        # Pages that were read count as this process's memory until they are given back: all of a large set, in the end.
        whole._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    return ImageBatches(
        images,
        np.zeros(len(positions), np.int64),  # labels play no part
        bench.keys.preprocessing(task.run),
        augmentation=task.run.recipe.augmentation if view else AS_IS,
        view=(view, positions) if view else None,
        device=bench.device,
    )


def store_shard(
    column: Column, place: Place, positions: Positions, rows: Tensor, trunk_hash: str, record: dict[str, Any],
    bench: Bench,
) -> None:  # fmt: skip
    split, view = place
    table = bench.keys.features(column.run, split, cut=column.cut, view=view)
    spec: dict[str, Any] = {**table, "positions": positions.tolist()}
    values = {"positions": positions.tolist(), "trunk_sha256": trunk_hash, "width": int(rows.shape[1])}

    def payload(_: Scratch) -> Payload:
        return Payload(values, {"features": rows}, record)

    artifact = bench.store.cached(spec, payload, device=bench.device_name)
    bench.store.link(key_of(table), artifact.key)
