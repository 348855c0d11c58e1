"""From a finished study to a predictor: a stored fit, its head, its preprocessing, calibrated on validation images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regraft.errors import RunError, StudyError, UnknownName, nearest
from regraft.learn.batches import FeatureBatches
from regraft.learn.predict import predict
from regraft.networks import Grafted, PooledHead, build, load_body
from regraft.networks.heads import RestHead
from regraft.predictor.calibrate import calibrate
from regraft.predictor.manifest import DRAWN, Cut, Manifest, measured
from regraft.predictor.network import Whole, answering, empty_trunk
from regraft.predictor.predict import Predictor
from regraft.spec import Run, Study
from regraft.study.bench import Bench, Part, Setting, own_names
from regraft.study.keys import cacheable
from regraft.study.models import grafted, image_batches
from regraft.study.plan import plan
from regraft.study.results import Cell, Results, read_results
from regraft.study.solve import classifier, head_features
from regraft.study.store import Store, default_store


def predictor_of(
    study: Study | Results,
    store: Store | None = None,
    *,
    row: str,
    seed: int | Literal["best"] = "best",
    device: str = "auto",
    backend: str = "auto",
    offline: bool = True,
) -> Predictor:
    """The trained network of a row as a predictor, with probabilities calibrated on its validation images.

    study: finished, or at least as far as the row; or its results. store: where it was computed; default, the results'
    own or the user's. seed: "best" is the one with the best accuracy on validation images (on a tie, or without any,
    the first); test accuracies play no part. Test labels are not read: the accuracy on test images is the stored score.
    Raises UnknownName for a row or seed that does not exist, RunError if it has no score yet, StudyError for few-shot
    episodes, which train a thousand heads and not one."""
    known = study if isinstance(study, Results) else None
    chosen_study = known.study if known is not None else study
    assert isinstance(chosen_study, Study)
    store = store or (known.store if known is not None else None) or default_store()
    setting = Setting(store.location, tuple(plan(chosen_study)), device, torch.get_num_threads(), offline)
    bench = Bench(setting)
    cell = _best_cell(read_results(chosen_study, store, keys=bench.keys), row, seed)
    run = bench.keys.final((cell.row, cell.seed))
    if run.target.episodes is not None:
        raise StudyError(f"row {row!r} is scored on few-shot episodes, each with a head of its own; name another row")
    return predictor_of_run(run, cell, bench, device=device, backend=backend)


def predictor_of_run(run: Run, cell: Cell, bench: Bench, *, device: str = "auto", backend: str = "auto") -> Predictor:
    """The same of a run whose fit is in the bench's store.

    cell: what was measured of it; its accuracies and numbers of images go into the file."""
    manifest, trained = manifest_of(run, cell, bench), Trained.of(run, bench)
    network = answering(manifest, trained.trunk(manifest), trained.classify)
    return Predictor(manifest, network, device=device, backend=backend)


def _best_cell(results: Results, row: str, seed: int | Literal["best"]) -> Cell:
    names = list(dict.fromkeys(one.name for one in results.study.all_rows()))
    if row not in names:
        raise UnknownName(f"the study {results.study.study!r} has no row {row!r}{nearest(row, names)} Rows: "
                          f"{', '.join(map(repr, names[:20]))}{', ...' if len(names) > 20 else ''}")  # fmt: skip
    cells = [cell for cell in results.cells if cell.row == row and seed in ("best", cell.seed)]
    if not cells:
        missing = [gap for gap in results.missing if gap.row == row and seed in ("best", gap.seed)]
        if not missing:
            seeds = [cell.seed for cell in results.cells if cell.row == row]
            raise UnknownName(f"row {row!r} has no seed {seed}; it has {', '.join(map(str, seeds))}")
        raise RunError(f"row {row!r} has no score: {missing[0].reason.rstrip('.')}. Run the study first: regraft run")
    return max(cells, key=lambda cell: (cell.validation_accuracy or 0.0, -cells.index(cell)))


# --- weights ------------------------------------------------------------------------------------------------------


class Trained:
    """A stored fit: what of its trunk is its own, and its head."""

    def __init__(self, run: Run, model: Grafted | None, state: Mapping[str, Tensor], classify: nn.Module) -> None:
        self.run, self.model, self.state, self.classify = run, model, state, classify

    @classmethod
    def of(cls, run: Run, bench: Bench) -> Trained:
        """Of a head on cached features: the source's tensors and the head. Else the whole network."""
        tensors = bench.store.tensors(bench.keys.fitted(run))
        head = {name.removeprefix("head/"): value for name, value in tensors.items() if name.startswith("head/")}
        if cacheable(run):
            state = bench.source_state(run)
            if state is None:
                spec = bench.network(run)
                state = build(spec.network, stem=spec.stem, seed=run.seed, image_size=spec.image_size).state_dict()
            return cls(run, None, state, classifier(run, bench, head).eval())
        model = grafted(run, bench).eval()
        if own := own_names(tensors):
            load_body(model.trunk.body, own, origin=run.row)
        model.head.load_state_dict(head)
        classify = model.head.classify if isinstance(model.head, PooledHead) else nn.Identity()
        return cls(run, model, model.trunk.body.state_dict(), classify)

    def trunk(self, manifest: Manifest) -> nn.Module:
        """Images -> {name: values}, with weights."""
        if self.model is not None and isinstance(self.model.head, RestHead):
            return Whole(self.model.trunk.body, self.model.head.rest)
        trunk = empty_trunk(manifest)
        own = {name: self.state[name].detach().to(value.dtype) for name, value in trunk.state_dict().items()}
        trunk.load_state_dict(own, assign=True)
        return trunk

    def logits(self, held: Part, bench: Bench) -> NDArray[np.float32]:
        """(n, k) for the images of a part of the training data."""
        if self.model is None:
            features = FeatureBatches(head_features(self.run, held, bench), held.labels, device=bench.device)
            return predict(self.classify.to(bench.device), features).numpy()
        self.model.to(bench.device)
        batches = image_batches(self.run, [held], bench)
        flip = self.run.recipe.test_flip
        return predict(self.model, batches, flip=flip, precision=bench.precision).numpy()


# --- what the file says -------------------------------------------------------------------------------------------


def manifest_of(run: Run, cell: Cell, bench: Bench) -> Manifest:
    keys, data = bench.keys, bench.dataset(run)
    network, stem = keys.network(run)
    points = [bench.point(run, cut) for cut in keys.cuts(run)]
    temperature, calibration = _calibration(run, bench)
    metrics: dict[str, Any] = {"test": measured(cell.accuracy, cell.test_images), "seed": cell.seed}
    if cell.validation_accuracy is not None:
        metrics["validation"] = measured(cell.validation_accuracy, cell.validation_images)
    if calibration:
        metrics["calibration"] = calibration
    licence, weights = _origin(run, bench)
    return Manifest(
        network=network, stem=stem, cuts=tuple(Cut(p.name, p.layout, p.shape) for p in points), head=run.head,
        preprocessing=keys.preprocessing(run), picture_size=data.image_size, grey=data.channels == 1,
        mirrored=run.recipe.test_flip, classes=data.classes, temperature=temperature, metrics=metrics, licence=licence,
        provenance={
            "weights": weights, "row": run.row, "seed": run.seed, "recipe": run.recipe_name, "method": run.how,
            "data": _named(run.target.data), "data_sha256": data.digest, "budget": run.target.budget,
            "train_images": cell.train_images, "validation_images": cell.validation_images, "fit": keys.fit_key(run),
            "depth": cell.depth, "refit": run.refit,
            "trained_with": {name: cell.cost[name] for name in ("versions", "device") if name in cell.cost},
        },
    )  # fmt: skip


def _calibration(run: Run, bench: Bench) -> tuple[float, dict[str, Any]]:
    """Temperature and what to state of it; 1 where no image was held out. After a refit the images that the choice was
    made on have been learnt: then the temperature is that of the chosen run before it."""
    _, held = bench.parts(run)
    if held is None or len(held) == 0:
        return 1.0, {}
    before = run.model_copy(update={"refit": False}) if run.refit else run
    temperature, told = calibrate(Trained.of(before, bench).logits(held, bench), held.labels)
    return temperature, {**told, "before_refit": run.refit}


def _origin(run: Run, bench: Bench) -> tuple[str, dict[str, Any]]:
    """(licence, {kind, sha256, origin}) of the weights at the start of the chain of sources."""
    source = bench.keys.root(run).source
    kind = source.weights.partition(":")[0]
    told: dict[str, Any] = {"kind": kind, "network": source.network}
    if run.source.run is not None:
        told["trained by row"] = run.source.run
    if kind == "random":
        return DRAWN, told
    weights = bench.keys.weights(source)
    origin = _named(source.weights) if kind == "file" else weights.origin
    return weights.licence, {**told, "sha256": weights.digest, "origin": origin}


def _named(place: str) -> str:
    """`folder:PATH` and `file:PATH` without the folders above: those are the person's own."""
    kind, _, path = place.partition(":")
    return f"{kind}:{Path(path).name}" if kind in ("folder", "file", "parquet", "webdataset") else place
