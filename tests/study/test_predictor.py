"""A predictor made of a stored fit answers as the study did, for every kind of head and method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from regraft import cli_predict
from regraft.analysis.stats import wilson_interval
from regraft.data import Dataset, load_dataset
from regraft.errors import RunError, StudyError, UnknownName
from regraft.predictor import Predictor, predictor_of
from regraft.spec import Study
from regraft.study.answers import read_answers
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import small_study

FROZEN = {"source": "random", "method": "frozen", "cut": "layer2", "target": "few"}
EVERY_KIND: list[dict[str, Any]] = [
    {"name": "tuned", "source": "trained", "target": "few", "recipe": "fast"},
    {"name": "low rank", "source": "trained", "method": "lora", "target": "few", "recipe": "fast"},
    {**FROZEN, "name": "ridge", "recipe": "ridge"},
    {**FROZEN, "name": "logistic", "recipe": ["weak", "strong"]},
    {**FROZEN, "name": "steps", "source": "trained", "recipe": "steps"},
    {**FROZEN, "name": "live", "recipe": "moved"},
    {**FROZEN, "name": "grid", "head": {"kind": "linear", "pool": "grid-2"}, "recipe": "weak"},
    {**FROZEN, "name": "mlp", "head": "mlp", "recipe": "steps"},
    {**FROZEN, "name": "prototype", "head": "prototype"},
    {**FROZEN, "name": "knn", "head": {"kind": "knn", "neighbours": 3, "pool": "average-max"}},
    {**FROZEN, "name": "head2toe", "head": {"kind": "head2toe", "share": 0.2}, "recipe": "weak"},
    {**FROZEN, "name": "rest", "head": "rest", "recipe": "moved"},
    {"name": "rest tuned", "source": "trained", "cut": "layer2", "head": "rest", "target": "few", "recipe": "fast"},
]


def study_of(*rows: dict[str, Any], seeds: tuple[int, ...] = (0,)) -> Study:
    plain = small_study()
    recipes = {
        **plain["recipes"],
        "ridge": {"optimizer": "ridge", "weight_decay": [0.01, 1.0], "refit": True},
        "moved": {"epochs": 2, "batch_size": 16, "lr": 0.05, "augment": "flip", "test_flip": True},
    }
    first = [row for row in plain["rows"] if row["name"] == "source"]
    return Study.from_dict({**plain, "seeds": seeds, "recipes": recipes, "rows": [*first, *rows], "grid": []})


def digits() -> Dataset:
    """The target of most rows; the same images as in the study."""
    return load_dataset("digits").with_classes(("5", "6", "7", "8", "9"))


def assert_same_answers(results: Results, row: str, folder: Path, *, exactly: bool) -> None:
    """Of the row's predictor, saved and loaded, on the test images, in comparison with what the store kept."""
    file = predictor_of(results, row=row, device="cpu").save(folder / "row.regraft")
    predictor = Predictor.load(file, device="cpu", backend="eager" if exactly else "auto")
    (cell,) = (cell for cell in results.cells if cell.row == row)
    found = predictor.predict(digits().test.images)
    same = found.indices == read_answers(results)[row, cell.seed].predicted
    assert same.all() if exactly else same.mean() >= 0.999
    assert predictor.classes == cell.class_names
    stated = predictor.manifest.metrics["test"]
    low, high = wilson_interval(round(cell.accuracy * cell.test_images), cell.test_images)
    assert (stated["accuracy"], stated["n"], stated["low"], stated["high"]) == (
        cell.accuracy, cell.test_images, low, high
    )  # fmt: skip


def test_a_predictor_answers_as_the_study_did(store: Store, tmp_path: Path) -> None:
    study = study_of(*(row for row in EVERY_KIND if row["name"] in ("tuned", "ridge")))
    results = run_study(study, store, backend="eager", device="cpu", threads=1)
    for row in ("tuned", "ridge"):
        assert_same_answers(results, row, tmp_path, exactly=True)
    check_what_is_stated(results, store)
    check_what_is_refused(results, store)
    check_the_command(results, store, tmp_path)


def check_the_command(results: Results, store: Store, folder: Path) -> None:
    app = typer.Typer()
    cli_predict.add_to(app)
    (folder / "study.yaml").write_text(results.study.to_yaml())
    words = ["bundle", str(folder / "study.yaml"), "--row", "ridge", "--store", str(store.root), "--offline"]
    out = folder / "mine.regraft"
    said = CliRunner().invoke(app, [*words, "--device", "cpu", "--out", str(out)], catch_exceptions=False).stdout
    predictor = Predictor.load(out, device="cpu", backend="eager")
    assert (predictor.manifest.metrics["seed"], len(predictor.classes)) == (0, 5)
    test = predictor.manifest.metrics["test"]
    assert f"Written to {out} (" in said
    assert f"ridge, seed 0, 5 classes, test accuracy {100 * test['accuracy']:.1f} % [" in said
    assert f"n = {test['n']}" in said


def check_what_is_stated(results: Results, store: Store) -> None:
    predictor = predictor_of(results.study, store, row="ridge", device="cpu")
    manifest = predictor.manifest
    assert manifest.grey
    assert (manifest.picture_size, manifest.preprocessing.image_size) == (8, 32)  # the digits are 8 px
    calibration = manifest.metrics["calibration"]
    assert calibration["before_refit"]
    assert calibration["part"] == "validation"
    assert calibration["images"] == manifest.metrics["validation"]["n"] == 10
    assert calibration["after"]["cross_entropy"] <= calibration["before"]["cross_entropy"] + 1e-6
    assert manifest.provenance["data_sha256"] == digits().digest
    assert manifest.licence.startswith("none: all weights were drawn at random")


def check_what_is_refused(results: Results, store: Store) -> None:
    with pytest.raises(UnknownName, match=r"no row 'rigde'; did you mean 'ridge'\?"):
        predictor_of(results, row="rigde")
    with pytest.raises(UnknownName, match="no seed 7; it has 0"):
        predictor_of(results, row="ridge", seed=7)
    with pytest.raises(RunError, match="not trained yet"):
        predictor_of(study_of(EVERY_KIND[0], EVERY_KIND[2], EVERY_KIND[3]), store, row="logistic")


@pytest.mark.slow
def test_every_kind_of_head_and_method_answers_as_the_study_did(store: Store, tmp_path: Path) -> None:
    results = run_study(study_of(*EVERY_KIND), store, backend="eager", device="cpu", threads=1)
    assert not results.missing
    for row in (row["name"] for row in EVERY_KIND):
        assert_same_answers(results, row, tmp_path, exactly=True)


@pytest.mark.slow
def test_the_folded_back_end_answers_as_the_study_did(store: Store, tmp_path: Path) -> None:
    results = run_study(study_of(*EVERY_KIND), store, device="cpu", threads=1)
    for row in (row["name"] for row in EVERY_KIND):
        assert_same_answers(results, row, tmp_path, exactly=False)


@pytest.mark.slow
def test_the_best_seed_on_validation_is_taken_and_a_seed_may_be_named(store: Store) -> None:
    row = {**FROZEN, "name": "logistic", "recipe": ["weak", "strong"]}
    results = run_study(study_of(row, seeds=(0, 1, 2)), store, device="cpu", threads=1)
    cells = [cell for cell in results.cells if cell.row == "logistic"]
    best = max(cells, key=lambda cell: (cell.validation_accuracy or 0, -cell.seed))
    assert predictor_of(results, row="logistic").manifest.metrics["seed"] == best.seed
    assert predictor_of(results, row="logistic", seed=2).manifest.metrics["seed"] == 2


@pytest.mark.slow
def test_the_temperature_is_fitted_on_validation_images_alone(store: Store) -> None:
    """It is the one of the validation logits, which the predictor gives for these very images."""
    from regraft.predictor.calibrate import fit_temperature
    from regraft.study.bench import Bench, Setting
    from regraft.study.plan import plan

    study = study_of({**FROZEN, "name": "logistic", "recipe": "weak"})
    results = run_study(study, store, backend="eager", device="cpu", threads=1)
    predictor = predictor_of(results, row="logistic", device="cpu", backend="eager")
    bench = Bench(Setting(str(store.root), tuple(plan(study)), "cpu", 1))
    (run,) = (run for run in bench.keys.runs if run.row == "logistic")
    _, held = bench.parts(run)
    assert held is not None
    logits = predictor.predict(bench.images(run, held.split)[held.positions]).logits
    assert predictor.manifest.temperature == pytest.approx(fit_temperature(logits, held.labels), rel=1e-3)
    (cell,) = (cell for cell in results.cells if cell.row == "logistic")
    assert np.mean(logits.argmax(1) == held.labels) == cell.validation_accuracy


@pytest.mark.slow
def test_episodes_and_rows_without_validation_are_told(store: Store) -> None:
    plain = small_study()
    shots = {"data": "digits", "episodes": {"ways": 3, "shots": 2, "queries": 3, "count": 5}}
    bare = {"data": "digits", "per_class": 5, "validation": 0}
    study = Study.from_dict(
        {
            **plain, "seeds": [0], "targets": {**plain["targets"], "shots": shots, "bare": bare}, "grid": [],
            "rows": [
                {"name": "shots", "source": "random", "method": "frozen", "head": "prototype", "target": "shots"},
                {"name": "bare", "source": "random", "method": "frozen", "target": "bare", "recipe": "weak"},
            ],
            "sources": {"random": plain["sources"]["random"]},
        }
    )  # fmt: skip
    results = run_study(study, store, device="cpu", threads=1)
    with pytest.raises(StudyError, match="few-shot episodes"):
        predictor_of(results, row="shots")
    made = predictor_of(results, row="bare").manifest
    assert made.temperature == 1.0
    assert "calibration" not in made.metrics
