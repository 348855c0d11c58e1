"""Laws of scores beside measured accuracies: training images only, known before any head, adding nothing to a study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.analysis.adviser import adviser_table
from regraft.learn.transferability import feature_scores
from regraft.spec import Study
from regraft.study.bench import Bench, Setting
from regraft.study.features import read_features
from regraft.study.plan import plan
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.scores import ScoreRow, scores_table
from regraft.study.store import Store
from tests.study.conftest import TINY

CUTS = ["layer1", "layer3", "layer4"]
FIVES = ["5", "6", "7", "8", "9"]


def study_of(**changes: Any) -> Study:
    """Three cuts of a network that was trained on the digits 0-4, and of a random one, for 5-9."""
    return Study.from_dict(
        {
            "study": "scores",
            "seeds": [0, 1],
            "sources": {
                "random": {"network": TINY, "weights": "random", "image_size": 32},
                "trained": {"run": "source"},
            },
            "targets": {
                "first": {"data": "digits", "classes": ["0", "1", "2", "3", "4"], "per_class": 40, "validation": 0},
                "few": {"data": "digits", "classes": FIVES, "per_class": 10, "validation": 0.2, "test_images": 150},
            },
            "recipes": {
                "fast": {"epochs": 6, "batch_size": 20, "lr": 0.05, "keep": "last"},
                "ridge": {"optimizer": "ridge", "weight_decay": 0.1},
            },
            "rows": [{"name": "source", "source": "random", "target": "first", "recipe": "fast", "seeds": [0]}],
            "grid": {
                "source": ["trained", "random"], "cut": CUTS, "method": "frozen", "target": "few", "recipe": "ridge",
            },
            **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("scores") / "store")


@pytest.fixture(scope="module")
def results(store: Store) -> Results:
    return run_study(study_of(), store, threads=1, device="cpu")


def table(store: Store, study: Study | None = None, **options: Any) -> list[ScoreRow]:
    return scores_table(study or study_of(), store, device="cpu", threads=1, **options)


def values(row: ScoreRow) -> list[float]:
    """Scores without those that are not to be had (NaN is equal to nothing), or come from a trained head."""
    return [value for name, value in row.scores.items() if not math.isnan(value) and name != "validation"]


def test_every_frozen_row_and_seed_has_scores_beside_its_accuracy(results: Results, store: Store) -> None:
    rows = table(store)
    measured = {(cell.row, cell.seed): cell for cell in results.cells}
    assert len(rows) == 2 * len(CUTS) * 2
    for row in rows:
        cell = measured[row.row, row.seed]
        assert (row.accuracy, row.cut, row.images) == (cell.accuracy, cell.cut, cell.train_images)
        assert row.scores["validation"] == cell.validation_accuracy
        assert row.scores["depth"] == pytest.approx(cell.depth, abs=1e-6)
        assert all(map(math.isfinite, values(row)))
        assert {"LogME", "H-score", "TransRate", "ridge probe", "size", "width"} < row.scores.keys()
        for name in ("LEEP", "NCE"):
            score = row.scores[name]
            assert score <= 0 if row.source == "trained" else math.isnan(score)
    depths = [row.scores["depth"] for row in rows if row.seed == 0 and row.source == "trained"]
    assert depths == sorted(depths)


def test_scores_are_those_of_the_training_part(results: Results, store: Store) -> None:
    runs = [run for run in plan(study_of()) if run.method == "frozen"]
    bench = Bench(Setting(str(store.root), tuple(plan(study_of())), "cpu", 1))
    rows = {(row.row, row.seed): row for row in table(store)}
    for run in runs[:3]:
        part, held = bench.parts(run)
        assert held is not None
        assert not np.isin(part.positions, held.positions).any()
        x, _, _ = read_features(run, ("train", 0), part.positions, bench)
        expected = feature_scores(x, torch.from_numpy(part.labels))
        assert {name: rows[run.cell].scores[name] for name in expected} == pytest.approx(expected)


def test_scores_are_known_before_any_head_and_without_any_test_image(
    results: Results, store: Store, tmp_path: Path
) -> None:
    """Features may be computed by another back end, hence the tolerance."""
    fresh = Store(tmp_path / "fresh")
    random = study_of(grid={"source": "random", "cut": CUTS, "method": "frozen", "target": "few", "recipe": "ridge"})
    before = table(fresh, random)
    stages = {(a.spec["stage"], a.spec.get("split", "")) for a in map(fresh.read, fresh.keys())}
    assert stages == {("features", "train")}
    assert all(row.accuracy is None and math.isnan(row.scores["validation"]) for row in before)
    after = {(row.row, row.seed): row for row in table(store)}
    for row in before:
        assert values(row) == pytest.approx(values(after[row.row, row.seed]), rel=1e-3)


def test_rows_of_a_source_that_is_not_trained_are_left_out(tmp_path: Path) -> None:
    rows = table(Store(tmp_path / "empty"))
    assert {row.source for row in rows} == {"random"}


def test_asking_for_scores_changes_no_result(results: Results, store: Store) -> None:
    table(store)
    assert run_study(study_of(), store, threads=1, device="cpu").rows == results.rows


def test_answers_can_be_left_out_and_images_limited(results: Results, store: Store) -> None:
    rows = table(store, answers=False, images=20)
    assert all(row.images == 20 and math.isnan(row.scores["LEEP"]) and math.isnan(row.scores["NCE"]) for row in rows)
    again = table(store, answers=False, images=20)
    assert [values(row) for row in rows] == [values(row) for row in again]


def test_a_source_answers_with_the_head_it_was_trained_with(results: Results, store: Store) -> None:
    """On its own classes the answers settle more of the labels than on others."""
    own = study_of(
        grid={"source": "trained", "cut": "layer4", "method": "frozen", "target": "first", "recipe": "ridge"},
        seeds=[0],
    )
    (known,) = table(store, own)
    source = next(cell for cell in results.cells if cell.row == "source")
    assert source.accuracy > 0.5
    strange = [row.scores["NCE"] for row in table(store) if row.source == "trained"]
    assert known.scores["NCE"] > max(strange)
    assert known.scores["LEEP"] > -math.log(5)


def test_the_adviser_is_judged_on_these_rows(results: Results, store: Store) -> None:
    judged = adviser_table(table(store))
    names = [one.score for one in judged]
    assert {"LogME", "H-score", "TransRate", "ridge probe", "depth", "width", "(any candidate)"} <= set(names)
    assert not {"LEEP", "NCE"} & set(names)  # the same at every cut
    assert all(one.groups == 4 and one.regret.seeds == 2 for one in judged if one.score != "validation")
    by_source = [one.score for one in adviser_table(table(store), by="source")]
    assert "LogME" in by_source
    assert "LEEP" not in by_source  # a random source gives no answers


def test_features_of_training_parts_are_all_there_after_a_run(results: Results, store: Store) -> None:
    before = len(store.keys())
    table(store, answers=False)
    assert len(store.keys()) == before
