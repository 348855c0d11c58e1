"""Stored answers to test images: what they hold, where they are left out, and that reading them changes nothing."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.analysis.variance import disagreement, spreads
from regraft.data.home import home
from regraft.spec import Study
from regraft.study.answers import read_answers, score_key
from regraft.study.bench import Bench, Setting
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.results import Results, read_results
from regraft.study.run import run_study
from regraft.study.stages import logits_of_test
from regraft.study.store import Payload, Store
from tests.study.conftest import TINY
from tests.unit.test_startup import TELL, modules_after

FIELDS: dict[str, Any] = {
    "study": "answers",
    "seeds": [0, 1],
    "sources": {"random": {"network": TINY, "weights": "random", "image_size": 16}},
    "targets": {
        "few": {"data": "digits", "per_class": 10, "validation": 0.2, "test_images": 120},
        "shots": {"data": "digits", "episodes": {"ways": 3, "shots": 1, "count": 20}},
    },
    "recipes": {"solved": {"optimizer": "lbfgs", "epochs": 50, "weight_decay": 0.01}},
    "rows": [
        {"name": "probe", "source": "random", "cut": "layer2", "method": "frozen", "target": "few", "recipe": "solved"},
        {"name": "means", "source": "random", "cut": "layer2", "method": "frozen", "target": "few",
         "head": "prototype"},
        {"name": "shots", "source": "random", "cut": "layer2", "method": "frozen", "target": "shots",
         "head": "prototype"},
    ],
}  # fmt: skip
ANSWERED = [(row, seed) for row in ("probe", "means") for seed in (0, 1)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_study(Study.from_dict(FIELDS), Store(tmp_path_factory.mktemp("answers") / "store"), threads=1)


def place(results: Results) -> Store:
    assert results.store is not None
    return results.store


def copied(results: Results, folder: Path) -> Results:
    shutil.copytree(place(results).root, folder)
    return dataclasses.replace(results, store=Store(folder))


def files(store: Store) -> dict[str, bytes]:
    return {str(path.relative_to(store.root)): path.read_bytes() for path in store.root.glob("objects/**/*.*")}


def test_every_cell_but_episodes_has_the_answers_that_its_accuracy_and_confusions_count(finished: Results) -> None:
    found = read_answers(finished)
    assert list(found) == ANSWERED
    for cell in finished.cells:
        if cell.episodes is None:
            own = found[cell.row, cell.seed]
            assert len(own) == len(own.predicted) == len(own.correct) == cell.test_images == 120
            assert own.correct.mean() == pytest.approx(cell.accuracy, abs=1e-12)
            counts = np.bincount(own.predicted, minlength=cell.classes)
            assert counts.tolist() == np.sum(cell.confusion, axis=0).tolist()
            assert [str(part.dtype) for part in (own.positions, own.predicted, own.correct)] == [
                "int64",
                "int64",
                "bool",
            ]
            assert np.array_equal(own.positions, found["probe", 0].positions)  # the same images for every seed


def test_the_confidence_is_the_softmax_of_the_answer(finished: Results) -> None:
    runs = tuple(plan(finished.study))
    bench = Bench(Setting(str(place(finished).root), runs, "cpu", 1, offline=True))
    for cell, own in read_answers(finished).items():
        logits = logits_of_test(bench.keys.final(cell), bench, lambda done, message: None).double().numpy()
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        assert own.confidence is not None
        assert own.confidence.dtype == np.float32
        assert own.confidence == pytest.approx(share[np.arange(len(own)), own.predicted], abs=1e-6)
        assert np.array_equal(own.predicted, logits.argmax(1))


def test_answers_are_found_under_the_keys_of_the_plan(finished: Results) -> None:
    keys = Keys(plan(finished.study), place(finished), offline=True)
    for cell in finished.cells:
        target = finished.study.targets[cell.target]
        assert score_key(cell.key, target.test_images) == keys.score_key(keys.final((cell.row, cell.seed)))


def test_results_of_no_known_store_have_no_answers(finished: Results, tmp_path: Path) -> None:
    assert read_answers(Results.from_json(finished.to_json(tmp_path / "results.json"))) == {}
    assert read_answers(dataclasses.replace(finished, store=Store(tmp_path / "empty"))) == {}
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("file", ["data.safetensors", "values.json", "spec.json", "record.json"])
def test_a_damaged_score_is_left_out_and_left_where_it_is(finished: Results, file: str, tmp_path: Path) -> None:
    results = copied(finished, tmp_path / "store")
    first = results.cells[0]
    damaged = place(results).path(score_key(first.key, 120)) / file
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    before = files(place(results))
    assert list(read_answers(results)) == ANSWERED[1:]
    assert files(place(results)) == before
    damaged.unlink()
    assert list(read_answers(results)) == ANSWERED[1:]


def test_a_score_from_before_confidence_was_kept_counts_as_it_is(finished: Results, tmp_path: Path) -> None:
    results = copied(finished, tmp_path / "store")
    store, first = place(results), results.cells[0]
    key = score_key(first.key, 120)
    artifact = store.read(key)
    tensors = {name: value for name, value in artifact.tensors().items() if name != "confidence"}
    shutil.rmtree(store.path(key))
    assert store.cached(artifact.spec, lambda _: Payload(artifact.values, tensors)).key == key
    own, others = read_answers(results)[ANSWERED[0]], read_answers(finished)
    assert own.confidence is None
    assert np.array_equal(own.correct, others[ANSWERED[0]].correct)
    before = files(store)
    again = run_study(results.study, store, threads=1)  # an older score is not taken anew
    assert files(store) == before
    assert again.rows == finished.rows


def test_a_finished_study_run_again_is_the_same_to_the_last_bit(finished: Results, tmp_path: Path) -> None:
    before = files(place(finished))
    again = run_study(finished.study, place(finished), threads=1)
    assert files(place(finished)) == before
    first, second = (one.to_csv(tmp_path / name) for one, name in ((finished, "a.csv"), (again, "b.csv")))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_the_same_study_in_another_store_gives_the_same_answers(finished: Results, tmp_path: Path) -> None:
    other = read_answers(run_study(finished.study, Store(tmp_path / "store"), threads=1))
    for cell, own in read_answers(finished).items():
        assert np.array_equal(own.predicted, other[cell].predicted)
        first, second = own.confidence, other[cell].confidence
        assert first is not None
        assert second is not None
        assert np.array_equal(first, second)


def test_answers_are_read_without_torch(finished: Results, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(finished.study.to_yaml(), "utf-8")
    file, root = str(tmp_path / "study.yaml"), str(place(finished).root)
    code = f"""
from regraft.spec import Study
from regraft.study.answers import read_answers
from regraft.study.results import read_results
from regraft.study.store import Store
found = read_answers(read_results(Study.from_yaml({file!r}), Store({root!r})))
assert list(found) == {ANSWERED!r}, found
{TELL}
"""
    assert not {"torch", "torchvision", "timm"} & modules_after(code, home())


def test_the_spread_of_a_finished_study_has_its_test_part_measured(finished: Results, tmp_path: Path) -> None:
    found = {row.name: spread for row, spread in spreads(read_results(finished.study, place(finished)))}
    assert {name: spread.measured for name, spread in found.items()} == dict.fromkeys(("probe", "means", "shots"), True)
    answers = read_answers(finished)
    right = np.stack([answers["probe", seed].correct for seed in (0, 1)])
    assert found["probe"].test == pytest.approx(disagreement(right) / 2 / 120)
    assert found["probe"].test == pytest.approx(float((right[0] != right[1]).mean()) / 2 / 120)
    unknown = spreads(Results.from_json(finished.to_json(tmp_path / "results.json")))
    assert not any(spread.measured for row, spread in unknown if row.name != "shots")
