"""What is known of a trained cell that looks broken: facts out of its stored fit and a handful of training images.

`analysis.causes` judges them. Test images and test labels play no part; nothing is fetched, trained or stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from regraft.errors import RegraftError
from regraft.spec import Head, Preprocessing, Recipe, Run
from regraft.spec.models import UNTRAINED
from regraft.spec.recipe import SOLVED
from regraft.spec.tuning import USUAL
from regraft.study.keys import Keys
from regraft.study.norm_fit import NO_FITS, Fits, Misfit, Other, is_norm, norm_fits
from regraft.study.plan import plan
from regraft.study.results import Cell, Results
from regraft.study.store import Artifact, Store, store_at

if TYPE_CHECKING:  # torch is imported when there is a fit to look into
    from torch import Tensor, nn

    from regraft.networks import Grafted
    from regraft.study.bench import Bench, Part, Setting

FEWEST, MOST = 16, 64  # training images that are looked at
WORK = 3e10  # FLOPs of one look, where more than the fewest images would take more


@dataclass(frozen=True)
class Probe:
    """What was measured on a handful of training images."""

    images: int
    pixel_std: float  # of the pictures, in [0, 1] units
    content: float  # share of their area inside the frame in which all of them are black
    mean: float  # of the prepared batch
    std: float
    spread: float  # of the trunk's output between images, as a share of its mean length
    side: int | None  # of the last maps up to the cut, in positions; None: the network has none
    head_moved: float | None  # |trained - start| / |start| of its parameters; None: it was not stepped
    trunk_moved: float | None  # None: frozen
    stored_accuracy: float | None  # on these images, BatchNorm by its running statistics
    batch_accuracy: float | None  # the same network, BatchNorm by the statistics of these images
    first_norm: Misfit | None  # of the source's first BatchNorm, prepared as recorded; None: random weights, no norm
    better: Other | None  # of FAMILIES, and what is published for the network, the one that fits it best
    sizes: Mapping[int, float]  # image size -> Misfit.total, mean over all norms of the source


@dataclass(frozen=True)
class Evidence:
    """Facts about one cell's fit."""

    weights: str  # of the network at the start of the chain of sources: random, pretrained or file
    method: str
    norms: str  # what becomes of the trunk's BatchNorms: source, target, affine or all
    head: str
    recipe: Recipe
    steps: int | None  # of the optimizer; None: the head was solved or read off
    recorded: Preprocessing
    published: Preprocessing | None  # of the library's weights for this network; None: it has none
    trunk_same: bool  # bit for bit, before and after training
    probe: Probe | None  # None: images or weights are no longer on this machine


def gather(results: Results, cells: Iterable[Cell], store: Store) -> dict[tuple[str, int], Evidence]:
    """Evidence for those of `cells` whose fit `store` has, by (row, seed)."""
    stored = [cell for cell in cells if store.has(cell.key)]
    if not stored:
        return {}
    runs = tuple(plan(results.study))
    keys = Keys(runs, store, offline=True)
    found, known = {}, _known(store.location, runs)
    for cell in stored:
        try:
            run = keys.final((cell.row, cell.seed))
            if keys.fit_key(run) == cell.key:
                if run not in known:
                    known[run] = _evidence(store.location, runs, run)
                found[cell.row, cell.seed] = known[run]
        except RegraftError:  # data or weights have gone since: the alarm is raised without this cell's evidence
            continue
    return found


@lru_cache(maxsize=1)  # table, answer and report of one study each ask; a process may see very many studies
def _known(root: str, runs: tuple[Run, ...]) -> dict[Run, Evidence]:
    return {}


def _evidence(root: str, runs: tuple[Run, ...], run: Run) -> Evidence:
    store = store_at(root)
    keys = Keys(runs, store, offline=True)
    fitted = keys.fitted(run)
    source = keys.root(run).source
    hashes = fitted.values["trunk_sha256"]
    recipe = run.recipe
    stepped = recipe.optimizer not in SOLVED and run.head.kind not in UNTRAINED
    steps = len(fitted.values["curve"]) * math.ceil(fitted.values["train_images"] / recipe.batch_size)
    return Evidence(
        weights=source.weights.partition(":")[0], method=run.method, norms=run.norms,
        head=run.head.kind, recipe=recipe,
        steps=steps if stepped else None, recorded=keys.preprocessing(run), published=_published(run, keys),
        trunk_same=hashes["before"] == hashes["after"], probe=_probe(root, runs, run, fitted),
    )  # fmt: skip


def _published(run: Run, keys: Keys) -> Preprocessing | None:
    """What the library's own weights for the network expect."""
    from regraft.errors import UnknownName, WeightsUnavailable
    from regraft.networks.published import published

    source = keys.root(run).source
    if source.stem != "imagenet" or source.network is None:
        return None
    kind, _, tag = source.weights.partition(":")
    try:
        return published(source.network, (tag or None) if kind == "pretrained" else None).preprocessing
    except (UnknownName, WeightsUnavailable):
        return None


# --- on training images -------------------------------------------------------------------------------------------


def _probe(root: str, runs: tuple[Run, ...], run: Run, fitted: Artifact) -> Probe | None:
    import torch

    from regraft.errors import DataError, StoreError, WeightsError
    from regraft.study.bench import Bench, Setting

    bench = Bench(Setting(root, runs, "cpu", torch.get_num_threads(), offline=True))
    try:
        with torch.no_grad():
            return _measured(run, bench, fitted)
    except (DataError, WeightsError, StoreError):
        return None


def _measured(run: Run, bench: Bench, fitted: Artifact) -> Probe:
    import torch

    from regraft.networks import HEADS
    from regraft.study.models import grafted, image_batches

    own_head = run.head.kind in HEADS and run.target.episodes is None  # else its place is held by a linear one
    built = run if own_head else run.model_copy(update={"head": Head(pool=run.head.pool)})
    model = grafted(built, bench).eval()
    part = _handful(run, bench)
    pictures = torch.from_numpy(bench.images(run, part.split)[part.positions])  # (n, h, w, c) uint8
    inputs = image_batches(run, [part], bench).take(torch.arange(len(part)), None)  # (n, 3, s, s)
    head_moved, trunk_moved = _load_trained(model, own_head, run, bench, fitted)
    values, labels = model.trunk(inputs), torch.from_numpy(part.labels)
    stored = batch = None
    if own_head:
        stored = float((model.head(values).argmax(1) == labels).float().mean())
        batch = float((_by_batch(model, inputs).argmax(1) == labels).float().mean())
    fits = NO_FITS if bench.keys.root(run).source.weights == "random" else _fits(bench.setting, _like(run, bench))
    return Probe(
        images=len(part), pixel_std=float(pictures.float().std() / 255), content=_content(pictures),
        mean=float(inputs.mean()), std=float(inputs.std()), spread=_spread(values),
        side=_last_side(run, bench), head_moved=head_moved, trunk_moved=trunk_moved,
        stored_accuracy=stored, batch_accuracy=batch, first_norm=fits.first, better=fits.better, sizes=fits.sizes,
    )  # fmt: skip


def _handful(run: Run, bench: Bench) -> Part:
    """Training images spread evenly over those that the run learnt from."""
    import numpy as np

    from regraft.study.bench import Part

    train, _ = bench.parts(run)
    wanted = int(min(len(train), max(FEWEST, min(MOST, WORK / max(1, bench.point(run).flops)))))
    at = np.linspace(0, len(train) - 1, wanted).astype(np.int64)
    return Part(train.split, train.positions[at], train.labels[at])


def _last_side(run: Run, bench: Bench) -> int | None:
    from regraft.networks import describe

    spec, cut = bench.network(run), bench.point(run)
    points = describe(spec.network, spec.stem, bench.keys.preprocessing(run).image_size)
    sides = [p.shape[p.layout.index("h")] for p in points if p.layout in ("chw", "hwc") and p.depth <= cut.depth]
    return sides[-1] if sides else None


def _content(pictures: Tensor) -> float:
    """Share of the area inside the frame in which every one of the pictures (n, h, w, c) is black."""
    lit = pictures.amax(dim=(0, 3)) > 0  # (h, w)
    rows, columns = lit.any(1).nonzero(), lit.any(0).nonzero()
    if len(rows) == 0:
        return 0.0
    inner = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    return float(inner) / lit.numel()


def _spread(values: Tensor) -> float:
    """How far the trunk's values (n, ...) for single images lie from their mean, relative to its length."""
    values = values.flatten(1).double()  # (n, d)
    mean = values.mean(0)
    return float((values - mean).norm(dim=1).mean() / (mean.norm() + 1e-12))


def _by_batch(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits with BatchNorm as it is in training, by the statistics of `inputs`; all else as in evaluation."""
    norms = [module for module in model.modules() if is_norm(module)]
    for norm in norms:
        norm.train()
    logits: Tensor = model(inputs)  # the model is of this look alone: its running statistics may move
    for norm in norms:
        norm.eval()
    return logits


# --- trained against start --------------------------------------------------------------------------------------


def _load_trained(
    model: Grafted, own_head: bool, run: Run, bench: Bench, fitted: Artifact
) -> tuple[float | None, float | None]:
    """Give the model, which is as before training, its trained tensors; how far head and trunk moved by that."""
    from regraft.networks import load_body
    from regraft.study.bench import own_names

    tensors = bench.store.tensors(fitted)
    head_moved = trunk_moved = None
    if own_head:
        trained = {name.removeprefix("head/"): value for name, value in tensors.items() if name.startswith("head/")}
        if not trained.keys() <= model.head.state_dict().keys():  # trained on cached features: without its pooling
            trained = {f"classify.{name}": value for name, value in trained.items()}
        if run.recipe.optimizer not in SOLVED:
            head_moved = _moved(model.head, trained)
        model.head.load_state_dict(trained)
    if any(name.startswith("network/") for name in tensors):
        own = own_names(tensors)
        if run.method != "frozen":
            trunk_moved = _moved(model.trunk.body, own)
        load_body(model.trunk.body, own, origin=run.row)
    return head_moved, trunk_moved


def _moved(module: nn.Module, trained: Mapping[str, Tensor]) -> float:
    """|trained - start| / |start| over all parameters of `module`, which holds the start."""
    start = dict(module.named_parameters())
    gone = sum(float((trained[name].double() - value.double()).square().sum()) for name, value in start.items())
    length = sum(float(value.double().square().sum()) for value in start.values())
    return math.sqrt(gone / (length + 1e-24))


# --- the source's norms ----------------------------------------------------------------------------------------


def _like(run: Run, bench: Bench) -> Run:
    """The first run with the same trunk and images as far as this matters: it is measured for all of them."""
    if run.source.run is not None:
        return run
    place = (run.source_name, run.cut, run.target_name)
    return next(one for one in bench.keys.runs if (one.source_name, one.cut, one.target_name) == place)


@lru_cache(maxsize=64)
def _fits(setting: Setting, run: Run) -> Fits:
    import torch

    from regraft.study.bench import Bench
    from regraft.study.models import grafted

    bench = Bench(setting)
    body = grafted(
        run.model_copy(update={"head": Head(), "method": "frozen", "tuning": USUAL}), bench
    ).trunk.body.eval()
    part = _handful(run, bench)
    pictures = torch.from_numpy(bench.images(run, part.split)[part.positions])
    return norm_fits(body, pictures, bench.keys.preprocessing(run), _published(run, bench.keys))
