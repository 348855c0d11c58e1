"""What a study took, told from a store that has lost something since."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from regraft.show.sections_costs import Spent, provenance, spent
from regraft.spec import Study
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.store import Artifact, Store
from tests.study.conftest import small_study
from tests.unit.show_example import seven_rows


def study_of() -> Study:
    """A source, and two budgets of a frozen cut of it, all with two recipes tried."""
    data = small_study(seeds=[0])
    data["rows"] = [{**data["rows"][0], "target": "more", "recipe": ["fast", "steps"]}]
    data["grid"]["cut"] = "layer1"
    return Study.from_dict(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = run_study(study_of(), Store(tmp_path_factory.mktemp("costs")), threads=1, device="cpu")
    assert not results.missing
    return results


@pytest.fixture
def results(whole: Results, tmp_path: Path) -> Results:
    """The same, in a store that may be harmed."""
    assert whole.store is not None
    shutil.copytree(whole.store.root, tmp_path / "store")
    return replace(whole, store=Store(tmp_path / "store"))


def stage(found: list[Spent], name: str) -> list[Spent]:
    return [one for one in found if one.stage == name]


def kept(results: Results, name: str) -> list[Artifact]:
    assert results.store is not None
    return [one for one in map(results.store.read, results.store.keys()) if one.spec["stage"] == name]


def test_each_training_is_counted_once_and_features_once_for_all_that_read_them(results: Results) -> None:
    found = spent(results)
    assert len(stage(found, "training")) == 2
    assert len(stage(found, "heads")) == 4
    assert len(stage(found, "scoring")) == 3
    recorded = [float(one.record["seconds"]) for name in ("fit", "features") for one in kept(results, name)]
    assert sum(one.seconds for one in found if one.stage != "scoring") == pytest.approx(sum(recorded))
    positions = {one.spec["split"]: 0 for one in kept(results, "features")}
    for one in kept(results, "features"):
        positions[one.spec["split"]] += len(one.values["positions"])
    assert sum(one.images for one in stage(found, "features")) == sum(positions.values())


def test_features_that_are_damaged_are_not_counted(results: Results) -> None:
    before = stage(spent(results), "features")
    damaged = kept(results, "features")[0]
    (damaged.path / "values.json").write_text("{}")
    images = sum(one.images for one in stage(spent(results), "features"))
    assert images == sum(one.images for one in before) - len(damaged.values["positions"])


def test_without_the_source_the_scored_heads_are_told_and_no_other(results: Results) -> None:
    """Keys of the others hang on which of the source's recipes was chosen, which nobody can say any more."""
    (source,) = [cell for cell in results.cells if cell.row == "source"]
    assert results.store is not None
    shutil.rmtree(results.store.path(source.key))
    found = spent(results)
    scored = [cell.cost["seconds"] for cell in results.cells if cell is not source]
    assert [one.seconds for one in stage(found, "heads")] == scored
    assert not stage(found, "features")


def test_digests_are_told_of_the_fits_that_the_store_still_has(results: Results) -> None:
    assert results.store is not None
    told = dict(provenance(results, ""))["Data, SHA-256"]
    shutil.rmtree(results.store.path(results.cells[0].key))
    assert dict(provenance(results, ""))["Data, SHA-256"] == told, "the others name it"
    for cell in results.cells[1:]:
        shutil.rmtree(results.store.path(cell.key))
    assert "Data, SHA-256" not in dict(provenance(results, ""))


def test_a_training_that_the_study_does_not_name_counts_its_epochs_over_all_its_images() -> None:
    """Of a results.json whose recipes were called otherwise."""
    results = seven_rows()
    renamed = replace(results, cells=[replace(cell, recipe="once") for cell in results.cells])
    assert spent(renamed) == spent(results)
