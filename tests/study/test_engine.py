"""Laws of the engine, on a small real study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.errors import ImageTooSmall, StudyError, TooFewImages, UnknownCut, UnknownName
from regraft.spec import Study
from regraft.study.events import Event, PlanReady, StepDone, StepStarted, StudyDone
from regraft.study.executors import Processes
from regraft.study.keys import Keys
from regraft.study.plan import plan, waves
from regraft.study.planning import estimate
from regraft.study.results import Results, read_results
from regraft.study.run import run_study
from regraft.study.store import Store, key_of
from tests.study.conftest import small_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store, Results, list[Event]]:
    """The small study, run once for all tests of this module that only look at it."""
    study, store = Study.from_dict(small_study()), Store(tmp_path_factory.mktemp("study") / "store")
    events: list[Event] = []
    return study, store, run_study(study, store, report=events.append, threads=1), events


Finished = tuple[Study, Store, Results, list[Event]]


def test_every_cell_is_scored_once(finished: Finished) -> None:
    _, _, results, _ = finished
    assert results.missing == []
    assert len(results.cells) == 1 + 3 * 2 + 4 * 2
    assert results.scores_taken == len(results.cells)
    assert [c.row for c in results.cells[:2]] == ["source", "tuned"]
    assert all(0 <= c.accuracy <= 1 for c in results.cells)


def test_a_second_run_computes_nothing(finished: Finished, tmp_path: Path) -> None:
    study, store, results, _ = finished
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    events: list[Event] = []
    again = run_study(study, store, report=events.append)
    assert [type(e) for e in events] == [PlanReady, StudyDone]
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    assert csv(again, tmp_path / "a") == csv(results, tmp_path / "b")


def test_the_csv_names_what_determined_it_and_nothing_else(finished: Finished, tmp_path: Path) -> None:
    text = csv(finished[2], tmp_path)
    assert text.splitlines()[0].startswith("row,seed,accuracy,test_images,chance,validation_accuracy")
    assert "seconds" not in text
    assert len(text.splitlines()) == 1 + len(finished[2].cells)


def test_results_survive_json(finished: Finished, tmp_path: Path) -> None:
    finished[2].to_json(tmp_path / "results.json")
    back = Results.from_json(tmp_path / "results.json")
    assert back.rows == finished[2].rows
    assert back.cells[0].confusion == finished[2].cells[0].confusion


def test_a_frozen_trunk_sees_each_image_once(finished: Finished) -> None:
    """Two cuts and another row's third, two budgets, two seeds, two recipes: one pass over train, one over test."""
    _, store, _, events = finished
    passes = [e for e in events if isinstance(e, StepStarted) and e.stage == "features"]
    assert len(passes) == 2
    tables: dict[tuple[str, str], list[int]] = {}
    for key in store.keys():
        artifact = store.read(key)
        if artifact.spec["stage"] == "features":
            table = tables.setdefault((artifact.spec["cut"], artifact.spec["split"]), [])
            table += artifact.values["positions"]
    assert len(tables) == 3 * 2
    assert all(len(set(positions)) == len(positions) for positions in tables.values())


def test_frozen_trunks_are_bit_identical_after_training(finished: Finished) -> None:
    _, store, results, _ = finished
    for cell in results.cells:
        trunk = store.read(cell.key).values["trunk_sha256"]
        assert len(trunk["before"]) == 64
        assert (trunk["before"] == trunk["after"]) == (cell.method == "frozen")


def test_the_scored_recipe_is_the_best_on_validation(finished: Finished) -> None:
    study, store, results, _ = finished
    keys = Keys(plan(study), store, offline=True)
    for cell in results.cells:
        rivals = [keys.fitted(run).values["validation_accuracy"] for run in keys.by_cell[cell.row, cell.seed]]
        assert cell.validation_accuracy == max(rivals)


def test_predictions_agree_with_the_score(finished: Finished) -> None:
    study, store, results, _ = finished
    keys = Keys(plan(study), store, offline=True)
    for cell in results.cells[:3]:
        score = store.read(keys.score_key(keys.chosen((cell.row, cell.seed))))
        confusion = np.asarray(score.values["confusion"])
        assert np.trace(confusion) / confusion.sum() == pytest.approx(cell.accuracy)
        assert float(score.tensors()["correct"].double().mean()) == pytest.approx(cell.accuracy)


def test_processes_give_what_serial_gives(finished: Finished, tmp_path: Path) -> None:
    study, _, serial, _ = finished
    events: list[Event] = []
    other = Store(tmp_path / "other")
    results = run_study(study, other, Processes(2), report=events.append, threads=1)
    assert csv(results, tmp_path / "a") == csv(serial, tmp_path / "b")
    assert any(isinstance(e, StepDone) for e in events)


def test_keys_follow_what_determines_a_result_and_nothing_else(store: Store) -> None:
    def keys_of(**changes: Any) -> dict[tuple[str, int, str], str]:
        runs = plan(Study.from_dict(small_study(**changes)))
        keys = Keys(runs, store, offline=True)
        return {
            (r.row, r.seed, r.recipe_name): keys.fit_key(r) for r in runs if r.row in ("source", "tuned", "scratch")
        }

    base = keys_of()
    assert keys_of(question="another", study="renamed") == base
    study = small_study()
    for field, value in {
        "lr": 0.04,
        "epochs": 4,
        "augment": "flip",
        "weight_decay": 0.0,
        "keep": "best",
    }.items():
        recipes = {**study["recipes"], "fast": {**study["recipes"]["fast"], field: value}}
        assert not set(keys_of(recipes=recipes).values()) & set(base.values()), field
    sources = {**study["sources"], "random": {**study["sources"]["random"], "image_size": 24}}
    assert not set(keys_of(sources=sources).values()) & set(base.values())
    targets = {**study["targets"], "few": {**study["targets"]["few"], "per_class": 11}}
    changed = keys_of(targets=targets)
    assert changed["source", 0, "fast"] == base["source", 0, "fast"]
    assert changed["tuned", 0, "fast"] != base["tuned", 0, "fast"]


def test_renamed_rows_and_sources_find_their_results(finished: Finished) -> None:
    """Names are for people: what a result is called is no part of its key."""
    _, store, results, _ = finished
    data = small_study()
    data["sources"]["chance"] = data["sources"].pop("random")
    for row in data["rows"]:
        row["source"] = "chance" if row["source"] == "random" else row["source"]
        row["name"] = row["name"].replace("scratch", "from scratch")
    again = read_results(Study.from_dict(data), store)
    assert [c.accuracy for c in again.cells] == [c.accuracy for c in results.cells]


def test_waves_put_a_source_before_its_heirs(study: Study) -> None:
    runs = plan(study)
    seen: set[str] = set()
    for wave in waves(runs):
        assert all(run.source.run is None or run.source.run in seen for run in wave)
        seen |= {run.row for run in wave}


def test_the_plan_counts_what_is_there(finished: Finished, tmp_path: Path) -> None:
    study, store, _, _ = finished
    fresh, done = estimate(study, Store(tmp_path)), estimate(study, store)
    steps = {s.stage: (s.count, s.cached) for s in done.steps}
    assert steps["fit"] == (23, 23)
    assert steps["score"] == (15, 15)
    assert done.flops == pytest.approx(0.0)
    assert fresh.images > 0
    assert fresh.images < fresh.images_unshared
    assert [s.cached for s in fresh.steps] == [0, 0, 0]
    assert any("source" in line for line in fresh.lines())


def test_a_damaged_feature_table_is_mended(finished: Finished, tmp_path: Path) -> None:
    import shutil

    study, store, results, _ = finished
    copy = Store(shutil.copytree(store.root, tmp_path / "copy"))
    for key in copy.keys():
        artifact = copy.read(key)
        stage = artifact.spec["stage"]
        if stage == "features":
            data = artifact.path / "data.safetensors"
            data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\1")
        elif artifact.spec.get("method") == "frozen" or stage == "score":
            shutil.rmtree(artifact.path)
    again = run_study(study, copy, threads=1)
    assert csv(again, tmp_path / "a") == csv(results, tmp_path / "b")
    assert list((copy.root / "damaged").iterdir())


def test_rows_without_data_are_missing_with_the_reason_and_the_others_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REGRAFT_DATA", raising=False)
    data = small_study(grid=[], rows=small_study()["rows"][:1])
    data["targets"]["away"] = {"data": "cifar10", "per_class": 5}
    data["rows"] += [
        {"name": "no data", "source": "random", "target": "away", "recipe": "fast", "seeds": [0]},
        {"name": "its heir", "source": "orphan", "target": "few", "recipe": "fast", "seeds": [0]},
    ]
    data["sources"]["orphan"] = {"run": "no data"}
    results = run_study(Study.from_dict(data), Store(tmp_path / "store"), threads=1, offline=True)
    assert [c.row for c in results.cells] == ["source"]
    reasons = {m.row: m.reason for m in results.missing}
    assert "cifar10" in reasons["no data"]
    assert "source" in reasons["its heir"]


REFUSED: list[tuple[dict[str, Any], type[StudyError], str]] = [
    ({"cut": "layer9"}, UnknownCut, "regraft cuts"),
    ({"target": "huge"}, TooFewImages, "at most"),
    ({"recipe": "weak"}, StudyError, "lbfgs"),
    ({"target": "odd"}, UnknownName, "no class 'seven'"),
    ({"source": "unknown"}, UnknownName, "no network 'resnet19'; did you mean"),
    ({"source": "large"}, ImageTooSmall, "image_size"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_what_would_fail_later_is_refused_before_anything_starts(
    change: dict[str, Any], error: type[StudyError], words: str, store: Store
) -> None:
    row = {"name": "a", "source": "random", "target": "few", "recipe": "fast", **change}
    data = small_study(grid=[], rows=[row])
    data["sources"].pop("trained")
    data["sources"]["unknown"] = {"network": "resnet19", "image_size": 32}
    data["sources"]["large"] = {"network": "vgg11", "image_size": 8}
    data["targets"]["huge"] = {"data": "digits", "per_class": 500}
    data["targets"]["odd"] = {"data": "digits", "classes": ["seven", "5"]}
    with pytest.raises(error, match=words):
        run_study(Study.from_dict(data), store)
    assert store.keys() == []


def test_a_cut_beyond_what_the_source_kept_is_refused(store: Store) -> None:
    data = small_study(grid=[])
    data["rows"][0]["cut"] = "layer2"
    data["rows"][1]["cut"] = "layer3"
    with pytest.raises(UnknownCut, match="layer3"):
        run_study(Study.from_dict(data), store)


def test_the_rest_of_the_network_is_grafted_and_can_be_cut_again(store: Store) -> None:
    data = small_study(grid=[])
    data["rows"] = [
        {**data["rows"][0], "name": "source", "cut": "layer1", "head": "rest"},
        {"name": "heir", "source": "trained", "cut": "layer3", "method": "frozen", "head": "rest", "target": "few",
         "recipe": "fast", "seeds": [0]},
        {"name": "mlp", "source": "trained", "cut": "layer3", "method": "frozen", "target": "few",
         "head": {"kind": "mlp", "hidden": 8}, "recipe": "steps", "seeds": [0]},
    ]  # fmt: skip
    results = run_study(Study.from_dict(data), store, threads=1)
    assert [c.row for c in results.cells] == ["source", "heir", "mlp"]
    assert results.missing == []


def test_a_damaged_score_is_scored_again(store: Store) -> None:
    study = Study.from_dict(small_study(grid=[], rows=small_study()["rows"][:1]))
    study_sources = small_study()["sources"]
    assert "random" in study_sources
    first = run_study(study, store, threads=1)
    keys = Keys(plan(study), store, offline=True)
    path = store.path(keys.score_key(plan(study)[0]))
    (path / "values.json").write_text("{}")
    again = run_study(study, store, threads=1)
    assert again.cells[0].accuracy == first.cells[0].accuracy
    assert key_of(keys.score(plan(study)[0])) in store.keys()


def csv(results: Results, folder: Path) -> str:
    return results.to_csv(folder / "results.csv").read_text()


def test_a_recipe_that_diverges_leaves_the_others_in_the_choice(store: Store) -> None:
    data = small_study(grid=[], rows=[{**small_study()["rows"][0], "recipe": ["wild", "fast"]}])
    data["rows"].append({**data["rows"][0], "name": "all wild", "recipe": ["wild"]})
    data["sources"].pop("trained")
    data["recipes"]["wild"] = {"epochs": 30, "batch_size": 8, "lr": 1000, "weight_decay": 100, "schedule": "constant"}
    results = run_study(Study.from_dict(data), store, threads=1)
    assert [(c.row, c.recipe) for c in results.cells] == [("source", "fast")]
    assert "learning rate" in results.missing[0].reason
    events: list[Event] = []
    run_study(Study.from_dict(data), store, threads=1, report=events.append)
    assert not [e for e in events if isinstance(e, StepStarted) and e.stage == "fit"], "found out a second time"


def test_equal_trunk_specs_are_equal_trunks(store: Store) -> None:
    """A frozen parent hands on its own source's trunk, with that source's seed."""
    data = small_study(grid=[])
    frozen = {"cut": "layer2", "method": "frozen", "target": "few", "recipe": "steps"}
    data["rows"] = [
        {"name": "source", "source": "random", "seeds": [0], **frozen},
        {"name": "heir", "source": "trained", "seeds": [0, 1, 2], **frozen},
    ]
    results = run_study(Study.from_dict(data), store, threads=1)
    assert results.missing == []
    specs = {str(store.read(cell.key).spec["trunk"]) for cell in results.cells}
    hashes = {store.read(cell.key).values["trunk_sha256"]["before"] for cell in results.cells}
    assert len(specs) == 1
    assert len(hashes) == 1


def test_choosing_on_images_that_the_source_was_trained_on_is_refused() -> None:
    data = small_study(grid=[])
    data["rows"] = [
        {"name": "source", "source": "random", "target": "few", "recipe": "fast", "seeds": [0]},
        {"name": "heir", "source": "trained", "target": "few", "recipe": ["fast", "steps"], "seeds": [1]},
    ]
    with pytest.raises(StudyError, match="validation images"):
        plan(Study.from_dict(data))


@pytest.mark.parametrize(
    ("source", "heir", "said"),
    [
        ({"seeds": [0, 1]}, {"seeds": [1, 2]},
         r"^row 'heir': seeds \[2\] have no source: row 'source' runs with seeds \[0, 1\]\. Give both rows the same"),
        ({"recipe": "again", "seeds": [0]}, {"recipe": ["fast", "steps"], "seeds": [0]},
         r"^row 'heir': its source 'source' is refitted with its validation images.* Leave `refit` out"),
    ],
)  # fmt: skip
def test_an_heir_needs_a_source_of_its_seed_that_has_not_seen_its_validation_images(
    source: dict[str, Any], heir: dict[str, Any], said: str
) -> None:
    data = small_study(grid=[])
    data["recipes"]["again"] = {**data["recipes"]["fast"], "refit": True}
    data["rows"] = [
        {"name": "source", "source": "random", "target": "few", "recipe": "fast", **source},
        {"name": "heir", "source": "trained", "target": "few", "recipe": "fast", **heir},
    ]
    with pytest.raises(StudyError, match=said):
        plan(Study.from_dict(data))


def test_a_folder_that_is_away_costs_its_own_rows_only(store: Store, tmp_path: Path) -> None:
    data = small_study(grid=[], rows=small_study()["rows"][:1])
    data["sources"].pop("trained")
    data["targets"]["usb"] = {"data": f"folder:{tmp_path / 'unplugged'}"}
    data["rows"].append({"name": "away", "source": "random", "target": "usb", "recipe": "fast"})
    study = Study.from_dict(data)
    assert estimate(study, store).seconds is None
    results = run_study(study, store, threads=1)
    assert [c.row for c in results.cells] == ["source"]
    assert {m.row for m in results.missing} == {"away"}
    assert "unplugged" in results.missing[0].reason


def test_more_test_images_than_the_classes_have_cost_their_own_row_only(store: Store) -> None:
    data = small_study(grid=[], rows=small_study()["rows"][:1])
    data["sources"].pop("trained")
    data["targets"]["two"] = {"data": "digits", "classes": ["0", "1"], "test_images": 200}
    data["rows"].append({"name": "greedy", "source": "random", "target": "two", "recipe": "fast"})
    results = run_study(Study.from_dict(data), store, threads=1)
    assert [c.row for c in results.cells] == ["source"]
    assert "test" in results.missing[0].reason


def test_recipes_to_choose_from_need_a_validation_image(store: Store) -> None:
    data = small_study(grid=[])
    data["targets"]["few"] = {"data": "digits", "fraction": 0.001}
    data["rows"] = [{"name": "a", "source": "random", "target": "few", "recipe": ["fast", "steps"]}]
    data["sources"].pop("trained")
    with pytest.raises(TooFewImages, match="validation"):
        run_study(Study.from_dict(data), store)


def test_a_damaged_source_is_trained_again_at_the_next_start(store: Store) -> None:
    data = small_study(grid=[], rows=small_study()["rows"][:2])
    study = Study.from_dict(data)
    first = run_study(study, store, threads=1)
    source = store.read(first.cells[0].key).path / "data.safetensors"
    source.write_bytes(source.read_bytes()[:-1] + b"\1")
    for cell in first.cells[1:]:
        store.set_aside(cell.key, "to be trained again")
    run_study(study, store, threads=1)  # notices the damage and sets the source aside
    again = run_study(study, store, threads=1)
    assert again.missing == []
    assert [c.accuracy for c in again.cells] == [c.accuracy for c in first.cells]


def test_what_is_not_its_turn_yet_says_so_in_few_words(store: Store) -> None:
    rows = small_study()["rows"]
    rows[0]["recipe"] = ["fast", "steps"]  # which of them the source will be is not known yet
    results = read_results(Study.from_dict(small_study(grid=[], rows=rows)), store)
    reasons = {m.row: m.reason for m in results.missing}
    assert reasons["scratch"] == "not trained yet"
    assert reasons["tuned"] == "waits for 'source'"
