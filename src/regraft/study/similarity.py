"""How alike the networks of two rows are, block by block; or one row's network before and after training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.errors import StudyError, UnknownName, nearest
from regraft.learn.batches import ImageBatches
from regraft.learn.similarity import Moved, Similarity, weight_change
from regraft.networks import body_for_cuts, build
from regraft.seeding import stream
from regraft.spec import Run, Study
from regraft.study.bench import Bench, Part, Setting, own_names
from regraft.study.models import image_batches
from regraft.study.plan import plan
from regraft.study.store import Store, default_store

BATCH = 256  # images of a batch of CKA
IMAGES = 1024


@dataclass(frozen=True)
class Alike:
    """CKA between the blocks of two networks, on the same training images."""

    names: tuple[str, str]  # of the two networks
    cuts: tuple[tuple[str, ...], tuple[str, ...]]
    matrix: Tensor  # (a, b) float64, 1: the same up to rotation and scale
    moved: tuple[Moved, ...]  # block by block, if it is one network before and after
    images: int


def similarity(
    study: Study,
    row: str,
    other: str | None = None,
    store: Store | None = None,
    *,
    seed: int | None = None,
    images: int = IMAGES,
    device: str = "auto",
    threads: int | None = None,
    offline: bool = False,
) -> Alike:
    """Minibatch CKA (`learn.similarity`) between every block of `row`'s trained network and of `other`'s; without
    `other`, of the network that `row` started from.

    images: training images of `row`, at most. Both networks see them as `row`'s weights expect.
    Raises UnknownName for a row, StudyError if the rows' images differ in size, NotTrained."""
    bench = Bench(Setting((store or default_store()).location, tuple(plan(study)), device, threads, offline))
    run = _final(bench, row, seed)
    second = run
    if other is not None:
        same_seed = (other, run.seed) in bench.keys.by_cell
        second = _final(bench, other, run.seed if same_seed else None)
    if bench.keys.preprocessing(run) != bench.keys.preprocessing(second):
        raise StudyError(
            f"rows {row!r} and {other!r} see images in different sizes or normalisations; name two rows whose sources "
            "expect the same"
        )
    states = _state(bench, run, after=True), _state(bench, second, after=other is not None)
    bodies = [_body(bench, one, state) for one, state in zip((run, second), states, strict=True)]
    shown = _shown(bench, run, images)
    together = Similarity()
    with torch.inference_mode():
        for positions in torch.arange(len(shown)).tensor_split(max(1, len(shown) // BATCH)):
            x = shown.take(positions, None)
            features = [list(body(x).values()) for body in bodies]
            together.add(*features)
    moved = () if other is not None else tuple(weight_change(states[1], states[0], blocks=bench.blocks(run)))
    names = (f"{row}, trained", f"{row}, at the start" if other is None else f"{other}, trained")
    cuts = tuple(bench.blocks(run)), tuple(bench.blocks(second))
    return Alike(names, cuts, together.matrix(), moved, len(shown))


def _final(bench: Bench, row: str, seed: int | None) -> Run:
    cells = [cell for cell in bench.keys.by_cell if cell[0] == row]
    if not cells:
        rows = {name for name, _ in bench.keys.by_cell}
        raise UnknownName(f"no row {row!r}{nearest(row, rows)} Rows: {', '.join(sorted(rows)[:20])}.")
    seeds = [number for _, number in cells]
    if seed is not None and seed not in seeds:
        raise UnknownName(f"row {row!r} has no seed {seed}; it has {', '.join(map(str, seeds))}")
    return bench.keys.final((row, seeds[0] if seed is None else seed))


def _state(bench: Bench, run: Run, *, after: bool) -> dict[str, Tensor]:
    """The network's tensors by its own names, before or after the run."""
    spec = bench.network(run)
    own = own_names(bench.store.tensors(bench.keys.fitted(run))) if after else {}
    start = bench.source_state(run)
    if start is None:
        start = build(spec.network, stem=spec.stem, seed=run.seed, image_size=spec.image_size).state_dict()
    return {**start, **own}


def _body(bench: Bench, run: Run, state: dict[str, Tensor]) -> nn.Module:
    spec = bench.network(run)
    network = build(spec.network, stem=spec.stem, seed=run.seed, image_size=spec.image_size)
    stored = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in stored and stored[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return body_for_cuts(network, bench.blocks(run), pooled=True).eval().to(bench.device)


def _shown(bench: Bench, run: Run, images: int) -> ImageBatches:
    parts, _ = bench.training(run)
    part = parts[0]
    order = stream(run.seed, "similarity").permutation(len(part))[:images]
    return image_batches(run, [Part(part.split, part.positions[order], part.labels[order])], bench)
