"""The steps of a study: science wrapped in the store. Each computes one item, unless the store has it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from regraft.learn.batches import FeatureBatches
from regraft.learn.episodes import EpisodeHead, run_episodes
from regraft.learn.predict import predict
from regraft.learn.score import score
from regraft.networks import load_body
from regraft.spec import Run, Source
from regraft.study.bench import Bench, Part, own_names
from regraft.study.features import test_positions
from regraft.study.keys import cacheable
from regraft.study.models import grafted, image_batches
from regraft.study.solve import classifier, head_features
from regraft.study.store import Payload, Scratch
from regraft.study.streams import held_rows, is_streamed

EPISODE_HEADS: dict[str, EpisodeHead] = {"ridge": "ridge", "lbfgs": "logistic"}

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


def obtain_score(run: Run, bench: Bench, advance: Advance, wait: bool) -> str:
    """Score a chosen run on the test split: the only step that meets test labels."""

    def compute(_: Scratch) -> Payload:
        if run.target.episodes is not None:
            return _score_episodes(run, bench, advance)
        test = bench.test(run)
        logits = logits_of_test(run, bench, advance)
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
            "confidence": logits.float().softmax(1).amax(1),  # (n,) of the predicted class
            "positions": torch.from_numpy(np.asarray(test.indices, dtype=np.int64)),
        }
        return Payload(values, tensors)

    artifact = bench.store.cached(bench.keys.score(run), compute, device=bench.device_name, wait=wait)
    return f"test {100 * artifact.values['accuracy']:.1f} %"


def logits_of_test(run: Run, bench: Bench, advance: Advance) -> Tensor:
    """Logits (n, classes) of the stored fit for the scored test images."""
    positions = test_positions(run, bench)
    tensors = bench.store.tensors(bench.keys.fitted(run))
    head_state = {k.removeprefix("head/"): v for k, v in tensors.items() if k.startswith("head/")}
    scored = Part("test", positions, np.zeros(len(positions), np.int64))  # labels play no part
    if cacheable(run):
        head = classifier(run, bench, head_state).to(bench.device)
        if is_streamed(run, len(scored), bench):
            return predict(head, held_rows(run, [scored], bench, [0]).batches(bench.device), advance)
        features = head_features(run, scored, bench)
        return predict(head, FeatureBatches(features, scored.labels, device=bench.device), advance)
    model = grafted(run, bench)
    if own := own_names(tensors):
        load_body(model.trunk.body, own, origin=run.row)
    model.head.load_state_dict(head_state)
    model.to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return predict(
        model, image_batches(run, [scored], bench), advance, flip=run.recipe.test_flip, precision=bench.precision
    )


# --- few-shot episodes ------------------------------------------------------------------------------------------


def _score_episodes(run: Run, bench: Bench, advance: Advance) -> Payload:
    """Solve a head in every episode on its support images; let the test split compare its answers."""
    asked = run.target.episodes
    assert asked is not None
    test = bench.test(run)
    episodes = bench.episodes(run)
    train, _ = bench.parts(run)  # the union of all support images
    data = bench.dataset(run)
    x = head_features(run, train, bench)
    queries = head_features(run, Part("test", test_positions(run, bench), np.empty(0, np.int64)), bench)
    rows = np.searchsorted(train.positions, data.train_indices[episodes.support])
    kind: EpisodeHead = "prototype" if run.head.kind == "prototype" else EPISODE_HEADS[run.recipe.optimizer]
    result = run_episodes(
        x, replace(episodes, support=rows), test, queries, queries=asked.queries, head=kind,
        weight_decay=run.recipe.weight_decay, max_iterations=run.recipe.epochs, run=bench.keys.fit_key(run),
        seed=run.seed, advance=lambda done: advance(done, ""),
    )  # fmt: skip
    values = {
        "accuracy": result.accuracy,
        "test_images": len(test),
        "class_names": list(test.classes),
        "confusion": [],
        "episodes": {"count": asked.count, "ways": asked.ways, "deviation": result.std},
    }
    return Payload(values, {"accuracies": torch.from_numpy(np.asarray(result.accuracies, dtype=np.float64))})
