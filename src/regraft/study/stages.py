"""The steps of a study: science wrapped in the store. Each computes one item, unless the store has it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.errors import Diverged, FrozenTrunkMoved
from regraft.learn.batches import Batches, FeatureBatches, ImageBatches
from regraft.learn.fit import Fit, evaluate, fit, predict
from regraft.learn.score import score
from regraft.learn.solve import logistic_regression
from regraft.networks import Grafted, graft, load_body, make_head
from regraft.spec import Run, Source
from regraft.spec.models import Augmentation
from regraft.study.bench import Bench, Part, own_names
from regraft.study.features import read_features, test_positions
from regraft.study.keys import cacheable
from regraft.study.store import Payload, Scratch

Advance = Callable[[float, str], None]


def obtain_data(run: Run, bench: Bench, advance: Advance, wait: bool) -> str:
    """Have the images of the run's target on this machine, verified."""
    with bench.store.locked("data-" + hashlib.sha256(run.target.data.encode()).hexdigest(), wait=wait):
        data = bench.whole(run)
    unreadable = f"; {len(data.unreadable)} unreadable files left out" if data.unreadable else ""
    return f"{len(data.train):,} training and {len(data.test):,} test images{unreadable}"


def obtain_weights(source: Source, bench: Bench, advance: Advance, wait: bool) -> str:
    """Have the source's weights on this machine, verified."""
    weights = bench.keys.weights(source)
    return f"{weights.origin}, sha256 {weights.digest[:12]}"


def obtain_fit(run: Run, bench: Bench, advance: Advance, wait: bool) -> str:
    """Train the run's network, or only its head on cached features."""
    train = _fit_head if cacheable(run) else _fit_network

    def compute(scratch: Scratch) -> Payload:
        try:
            return train(run, bench, scratch, advance)
        except Diverged as error:  # a result like any other: known, and not to be found out again at every start
            return Payload({"diverged": str(error)})

    artifact = bench.store.cached(bench.keys.fit(run), compute, device=bench.device_name, wait=wait)
    if "diverged" in artifact.values:
        return f"diverged: {artifact.values['diverged']}"
    held = artifact.values["validation_accuracy"]
    notes = "".join(f"; {note}" for note in artifact.values["notes"])
    return (f"validation {100 * held:.1f} %" if held is not None else "trained") + notes


def obtain_score(run: Run, bench: Bench, advance: Advance, wait: bool) -> str:
    """Score a chosen run on the test split: the only step that meets test labels."""

    def compute(_: Scratch) -> Payload:
        test = bench.test(run)
        logits = _test_logits(run, bench, advance)
        result = score(test, logits, run=bench.keys.fit_key(run))
        values = {
            "accuracy": result.accuracy,
            "test_images": int(result.n),
            "confusion": result.confusion.tolist(),
            "class_names": list(test.classes),
        }
        tensors = {
            "correct": torch.from_numpy(np.asarray(result.correct, dtype=np.uint8)),
            "predicted": logits.argmax(1).to(torch.int32),
            "positions": torch.from_numpy(np.asarray(test.indices, dtype=np.int64)),
        }
        return Payload(values, tensors)

    artifact = bench.store.cached(bench.keys.score(run), compute, device=bench.device_name, wait=wait)
    return f"test {100 * artifact.values['accuracy']:.1f} %"


# --- fits -------------------------------------------------------------------------------------------------------


def _fit_head(run: Run, bench: Bench, scratch: Scratch, advance: Advance) -> Payload:
    """A head on the cached features of a frozen trunk."""
    train, held = bench.parts(run)
    head = _head(run, bench).classify
    x, trunk_hash = read_features(run, train.split, train.positions, bench)
    batches = FeatureBatches(x, train.labels, device=bench.device)
    validation: Batches | None = None
    if held is not None:
        features, _ = read_features(run, held.split, held.positions, bench)
        validation = FeatureBatches(features, held.labels, device=bench.device)
    if run.recipe.optimizer == "lbfgs":
        found = _solve(run, head, batches, validation)
    else:
        found = fit(
            head, batches, validation, run.recipe,
            seed=run.seed, device=bench.device, checkpoint=scratch, advance=advance,
        )  # fmt: skip
    tensors = {f"head/{name}": value for name, value in found.state.items()}
    return _payload(run, bench, found, tensors, train, held, (trunk_hash, trunk_hash))


def _solve(run: Run, head: nn.Module, train: Batches, validation: Batches | None) -> Fit:
    x, y = train.take(torch.arange(len(train)), None), train.labels
    classes = _classes(head)
    weight, bias, converged = logistic_regression(
        x, y, classes=classes, weight_decay=run.recipe.weight_decay, max_iterations=run.recipe.epochs
    )
    linear = next(m for m in head.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    head.to(train.labels.device)
    loss, accuracy = evaluate(head, train)
    entry = {"epoch": 1.0, "lr": 0.0, "train_loss": loss, "train_accuracy": accuracy}
    if validation is not None:
        entry["validation_loss"], entry["validation_accuracy"] = evaluate(head, validation)
    if not all(math.isfinite(value) for value in entry.values()):
        raise Diverged(f"{run.label}: the solved head gives losses that are not finite; raise weight_decay")
    notes = () if converged else (f"L-BFGS stopped after {run.recipe.epochs} iterations, short of its tolerance",)
    return Fit({k: v.cpu() for k, v in head.state_dict().items()}, [entry], 1, notes)


def _fit_network(run: Run, bench: Bench, scratch: Scratch, advance: Advance) -> Payload:
    """The whole network on images: fine-tuned, from scratch, or with a frozen trunk that must run live."""
    model = _grafted(run, bench)
    model.to(bench.device)
    train, held = bench.parts(run)
    before = model.trunk.state_hash()
    found = fit(
        model,
        _image_batches(run, train, bench, augmentation=run.recipe.augment),
        None if held is None else _image_batches(run, held, bench),
        run.recipe,
        seed=run.seed, device=bench.device, checkpoint=scratch, advance=advance,
    )  # fmt: skip
    model.load_state_dict(found.state)
    after = model.trunk.state_hash()
    if run.method == "frozen" and before != after:
        raise FrozenTrunkMoved(f"{run.label}: parameters or buffers of the frozen trunk changed in training")
    tensors = {f"head/{k}": v for k, v in model.head.state_dict().items()}
    if run.method != "frozen" or run.head.kind == "rest":
        tensors |= {f"network/{k}": v for k, v in model.trunk.body.state_dict().items()}
    return _payload(run, bench, found, tensors, train, held, (before, after))


def _payload(
    run: Run,
    bench: Bench,
    found: Fit,
    tensors: dict[str, Tensor],
    train: Part,
    held: Part | None,
    hashes: tuple[str, str],
) -> Payload:
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Diverged(f"{run.label}: {name} holds NaN or infinity after training; lower the learning rate")
    kept = found.kept
    values: dict[str, Any] = {
        "validation_accuracy": kept.get("validation_accuracy"),
        "validation_loss": kept.get("validation_loss"),
        "train_accuracy": kept["train_accuracy"],
        "epoch": found.epoch,
        "curve": found.curve,
        "train_images": len(train),
        "validation_images": 0 if held is None else len(held),
        "class_names": list(bench.dataset(run).classes),
        "depth": round(bench.point(run).depth, 6),
        "trunk_sha256": {"before": hashes[0], "after": hashes[1]},
        "notes": list(found.notes),
    }
    return Payload(values, tensors)


# --- networks ---------------------------------------------------------------------------------------------------


def _head(run: Run, bench: Bench) -> Any:
    classes = len(bench.dataset(run).classes)
    return make_head(run.head, bench.point(run), classes, spec=bench.network(run), seed=run.seed)


def _grafted(run: Run, bench: Bench) -> Grafted:
    spec = bench.network(run)
    return graft(
        spec.network, spec.stem, bench.source_state(run), run.cut, run.head, len(bench.dataset(run).classes),
        frozen=run.method == "frozen", seed=run.seed, image_size=bench.keys.preprocessing(run).image_size,
    )  # fmt: skip


def _image_batches(run: Run, part: Part, bench: Bench, *, augmentation: Augmentation = "none") -> ImageBatches:
    return ImageBatches(
        bench.images(run, part.split)[part.positions],
        part.labels,
        bench.keys.preprocessing(run),
        augmentation=augmentation,
        device=bench.device,
    )


def _test_logits(run: Run, bench: Bench, advance: Advance) -> Tensor:
    """Logits (n, classes) of the stored fit for the scored test images."""
    positions = test_positions(run, bench)
    tensors = bench.store.tensors(bench.keys.fitted(run))
    head_state = {k.removeprefix("head/"): v for k, v in tensors.items() if k.startswith("head/")}
    no_labels = np.zeros(len(positions), np.int64)
    if cacheable(run):
        head = _head(run, bench).classify
        head.load_state_dict(head_state)
        features, _ = read_features(run, "test", positions, bench)
        return predict(head.to(bench.device), FeatureBatches(features, no_labels, device=bench.device), advance)
    model = _grafted(run, bench)
    if own := own_names(tensors):
        load_body(model.trunk.body, own, origin=run.row)
    model.head.load_state_dict(head_state)
    model.to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = _image_batches(run, Part("test", positions, no_labels), bench)
    return predict(model, images, advance)


def _classes(head: nn.Module) -> int:
    return int([m for m in head.modules() if isinstance(m, nn.Linear)][-1].out_features)
