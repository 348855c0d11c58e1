"""Laws of scores beside measured accuracies: training images only, known before any head, adding nothing to a study."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from regraft import cli_science
from regraft.analysis.adviser import advised_beside_measured, adviser_table
from regraft.errors import StudyError
from regraft.learn import score_names, transferability
from regraft.learn.transferability import feature_scores
from regraft.show.figures_base import svg
from regraft.show.figures_save import save_figure
from regraft.show.figures_science import advice_figure, advice_page, regret_figure
from regraft.spec import Study
from regraft.study.audit import audit
from regraft.study.bench import Bench, Setting
from regraft.study.features import read_features
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.scores import ScoreRow, score_keys, scores_table, stored_scores
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
    assert stages == {("features", "train"), ("transferability", "")}
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
    def features() -> int:
        return sum(store.read(key).spec["stage"] == "features" for key in store.keys())

    before = features()
    table(store, answers=False, images=30)
    assert features() == before


def test_scores_are_computed_once_and_read_from_then_on(
    results: Results, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = table(store)
    monkeypatch.setattr("regraft.study.scoring.obtain_scores", None)  # whoever calls it fails
    kept = stored_scores(results)
    assert kept is not None
    for again in (table(store), kept):
        assert repr(again) == repr(first)  # NaN is equal to nothing
    assert stored_scores(results, images=40) is None
    assert stored_scores(replace(results, store=None)) is None
    keys = score_keys(Keys(plan(study_of()), store, offline=True))
    assert len({key for key in keys if store.has(key)} & set(store.keys())) >= len(first)


def test_rows_that_differ_in_their_head_alone_share_their_scores(results: Results, store: Store) -> None:
    count = len(store.keys())
    heads = study_of(grid={
        "source": ["trained", "random"], "cut": CUTS, "method": "frozen", "target": "few", "head": "prototype",
    })  # fmt: skip
    scores = {(row.source, row.cut, row.seed): row.scores["LogME"] for row in table(store)}
    assert {(row.source, row.cut, row.seed): row.scores["LogME"] for row in table(store, heads)} == scores
    assert len(store.keys()) == count


def test_the_names_of_scores_are_those_of_the_functions_that_compute_them() -> None:
    names = ("LOGME", "H_SCORE", "TRANSRATE", "LEEP", "NCE", "PROBE")
    assert [getattr(score_names, name) for name in names] == [getattr(transferability, name) for name in names]


def test_figures_of_advice_are_drawn_from_stored_scores(results: Results, store: Store, tmp_path: Path) -> None:
    rows = table(store)
    advice, regret = advice_figure(results), regret_figure(results)
    assert advice is not None
    assert regret is not None
    told = advised_beside_measured(rows)
    assert {(one.target, one.candidate) for one in told} == {("few", cut) for cut in {row.cut for row in rows}}
    for of_source in ("random", "trained"):
        group = [one for one in told if one.among.startswith(of_source)]
        assert len(group) == len(CUTS)
        assert sum(one.picks for one in group) >= 2  # one or more in each of two seeds
    assert "(any candidate)" in svg(regret)
    page = advice_page(rows)
    assert page is not None
    assert save_figure(page, tmp_path / "advice.html").stat().st_size > 1000
    assert advice_figure(replace(results, store=Store(tmp_path / "empty"))) is None


def test_the_command_prints_scores_and_advice_and_draws_them(results: Results, store: Store, tmp_path: Path) -> None:
    app = typer.Typer()
    cli_science.add_to(app)
    file = tmp_path / "study.yaml"
    file.write_text(study_of().to_yaml())
    words = ["scores", str(file), "--store", str(store.root), "--offline", "--device", "cpu"]
    shown = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "advice.svg")])
    assert shown.exit_code == 0, shown.output
    assert "regret, points" in shown.output
    assert (tmp_path / "advice.svg").read_text().startswith("<svg")
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert len(told["rows"]) == len(table(store))
    assert {one["score"] for one in told["advice"]} == {one.score for one in adviser_table(table(store))}


def test_a_figure_of_advice_is_refused_where_there_is_one_cut_alone(
    results: Results, store: Store, tmp_path: Path
) -> None:
    app = typer.Typer()
    cli_science.add_to(app)
    file, out = tmp_path / "study.yaml", tmp_path / "advice.svg"
    one = {"source": "trained", "cut": CUTS[0], "method": "frozen", "target": "few", "recipe": "ridge"}
    file.write_text(study_of(grid=one).to_yaml())
    words = ["scores", str(file), "--store", str(store.root), "--offline", "--device", "cpu", "--out", str(out)]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, StudyError)
    assert str(refused.exception).startswith("no group of scored rows has two cuts to choose between")
    assert not out.exists()


@pytest.mark.slow
def test_what_is_stored_of_scores_and_audits_is_shown_without_torch(
    results: Results, store: Store, tmp_path: Path
) -> None:
    table(store)
    file = tmp_path / "study.yaml"
    file.write_text(study_of().to_yaml())
    code = f"""
import sys
from regraft.show.audit import audit_section
from regraft.show.figures_science import advice_figure
from regraft.spec import Study
from regraft.study.results import read_results
from regraft.study.store import Store
results = read_results(Study.from_yaml({str(file)!r}), Store({str(store.root)!r}))
assert advice_figure(results) is not None
assert (audit_section(results) is not None) == {{audited}}
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code.format(audited=False)], check=True)
    audit(study_of(), store, threads=1)
    subprocess.run([sys.executable, "-c", code.format(audited=True)], check=True)
