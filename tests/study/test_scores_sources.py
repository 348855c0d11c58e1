"""Which sources can be asked for answers: those whose own classifier is known, and it is that one that answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from regraft.learn.transferability import answer_scores
from regraft.networks import build
from regraft.spec import Study
from regraft.study.bench import Bench, Setting
from regraft.study.models import image_batches
from regraft.study.plan import plan
from regraft.study.run import run_study
from regraft.study.scores import ScoreRow, scores_table
from regraft.study.store import Store
from tests.study.conftest import TINY

TARGETS = {
    "first": {"data": "digits", "classes": ["0", "1", "2"], "per_class": 5, "validation": 0, "test_images": 20},
    "few": {"data": "digits", "classes": ["5", "6", "7"], "per_class": 6, "validation": 0},
}
RECIPES = {"ridge": {"optimizer": "ridge"}, "steps": {"epochs": 1, "batch_size": 5, "lr": 0.01}}


def study_of(sources: dict[str, Any], *rows: dict[str, Any]) -> Study:
    fields = {"method": "frozen", "target": "few", "recipe": "ridge"}
    return Study.from_dict({
        "study": "asked", "seeds": [0], "sources": sources, "targets": TARGETS, "recipes": RECIPES,
        "rows": [{**fields, **row} for row in rows],
    })  # fmt: skip


def file_source(folder: Path, network: str, *, classes: int | None = None, size: int = 32) -> dict[str, Any]:
    file = folder / f"{network.replace('/', '-')}-{classes}.safetensors"
    save_file(build(network, classes=classes, stem="imagenet", seed=3, image_size=size).state_dict(), file)
    plain = {"image_size": size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    return {"network": network, "weights": f"file:{file}", "preprocessing": plain}


def asked(study: Study, store: Store) -> dict[str, ScoreRow]:
    return {row.row: row for row in scores_table(study, store, device="cpu", threads=1)}


def test_weights_of_a_file_answer_with_the_classifier_in_it(store: Store, tmp_path: Path) -> None:
    study = study_of({"file": file_source(tmp_path, TINY)}, {"name": "low", "source": "file", "cut": "layer1"})
    scores = asked(study, store)["low"].scores
    (run,) = plan(study)
    bench = Bench(Setting(str(store.root), (run,), "cpu", 1))
    part, _ = bench.parts(run)
    images = image_batches(run, [part], bench).take(torch.arange(len(part)), None)  # (n, 3, 32, 32)
    with torch.inference_mode():
        logits = build(TINY, stem="imagenet", seed=3, image_size=32).eval()(images)
    expected = answer_scores(logits.double().softmax(1), torch.from_numpy(part.labels))
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_a_source_without_a_classifier_of_its_classes_is_not_asked(store: Store, tmp_path: Path) -> None:
    """A file that was trained on other classes; one whose classifier takes maps, not a vector."""
    sources = {
        "other classes": file_source(tmp_path, TINY, classes=7), "maps": file_source(tmp_path, "squeezenet1_1", size=48)
    }  # fmt: skip
    found = asked(study_of(sources, *({"name": name, "source": name} for name in sources)), store)
    for row in found.values():
        assert math.isnan(row.scores["LEEP"])
        assert math.isnan(row.scores["NCE"])
        assert math.isfinite(row.scores["LogME"])
    assert set(found) == set(sources)


def test_a_source_that_grew_the_rest_of_the_network_anew_answers_with_that(store: Store) -> None:
    sources = {"random": {"network": TINY, "image_size": 32}, "grown": {"run": "grows"}}
    grows = {
        "name": "grows", "source": "random", "method": "finetune", "cut": "layer3", "head": "rest", "target": "first",
        "recipe": "steps",
    }  # fmt: skip
    study = study_of(sources, grows, {"name": "heir", "source": "grown", "cut": "layer2"})
    assert run_study(study, store, threads=1, device="cpu").missing == []
    scores = asked(study, store)["heir"].scores
    assert -math.log(3) - 1e-9 <= scores["NCE"] <= 0  # what three answers can tell of three classes
    assert math.isfinite(scores["LEEP"])


def test_scores_that_are_there_are_not_computed_again_beside_new_ones(store: Store) -> None:
    sources = {"random": {"network": TINY, "image_size": 32}}
    low, high = ({"name": cut, "source": "random", "cut": cut} for cut in ("layer1", "layer3"))
    first = asked(study_of(sources, low), store)
    before = {path: path.stat().st_mtime_ns for path in store.root.glob("objects/*/*/*")}
    both = asked(study_of(sources, low, high), store)
    assert repr(both["layer1"]) == repr(first["layer1"])  # NaN is equal to nothing
    after = {path: path.stat().st_mtime_ns for path in store.root.glob("objects/*/*/*")}
    assert before.items() <= after.items()
    stages = [store.read(key).spec["stage"] for key in store.keys()]
    assert stages.count("transferability") == 2
