"""CKA between networks of a study: what training left alone, and what it changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import StudyError, UnknownName
from regraft.show.figures import spec
from regraft.show.figures_transfer import cka_map
from regraft.spec import Study
from regraft.study.run import run_study
from regraft.study.similarity import similarity
from regraft.study.store import Store
from tests.study.conftest import small_study


def tuned_study() -> Study:
    data = small_study(seeds=[0], recipes={"fast": {"epochs": 2, "batch_size": 20, "lr": 0.05}})
    del data["grid"]
    row = {"source": "trained", "target": "few", "recipe": "fast"}
    data["sources"]["larger"] = {"network": "timm/test_resnet", "weights": "random", "image_size": 48}
    first = {"name": "first frozen", **row, "method": "first-frozen", "tuning": {"first": "layer2"}}
    rows = [data["rows"][0], {"name": "tuned", **row}, first, {"name": "frozen", **row, "method": "frozen"}]
    return Study.from_dict({**data, "rows": [*rows, {"name": "larger", **row, "source": "larger"}]})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    assert not run_study(tuned_study(), store, threads=1).missing
    return store


def test_blocks_that_did_not_learn_are_alike_and_unmoved_and_the_others_drift(store: Store) -> None:
    frozen = similarity(tuned_study(), "frozen", store=store, threads=1)
    assert frozen.matrix.diagonal().tolist() == pytest.approx([1.0] * len(frozen.cuts[0]), abs=1e-6)
    assert all(not moved.weights for moved in frozen.moved)
    part = similarity(tuned_study(), "first frozen", store=store, threads=1)
    alike = dict(zip(part.cuts[0], part.matrix.diagonal().tolist(), strict=True))
    still = [cut for cut in part.cuts[0] if cut.startswith(("layer1", "layer2"))]
    later = [cut for cut in part.cuts[0] if cut.startswith(("layer3", "layer4"))]
    assert all(alike[cut] == pytest.approx(1.0, abs=1e-6) for cut in still)
    assert min(alike[cut] for cut in later) < 0.999


def test_two_rows_are_compared_block_by_block_and_drawn(store: Store) -> None:
    alike = similarity(tuned_study(), "tuned", "frozen", store, threads=1)
    assert alike.matrix.shape == (len(alike.cuts[0]), len(alike.cuts[1]))
    assert alike.moved == ()
    drawn = str(spec(cka_map(alike)))
    assert "tuned, trained" in drawn
    assert "frozen, trained" in drawn


def test_rows_that_cannot_be_compared_are_refused(store: Store) -> None:
    with pytest.raises(UnknownName, match="no row 'tunde'"):
        similarity(tuned_study(), "tunde", store=store)
    with pytest.raises(UnknownName, match="no seed 7"):
        similarity(tuned_study(), "tuned", seed=7, store=store)
    with pytest.raises(StudyError, match="different sizes"):
        similarity(tuned_study(), "tuned", "larger", store)


def test_the_commands_print_what_the_library_finds(store: Store, tmp_path: Path) -> None:
    file = f"{tmp_path}/study.yaml"
    with open(file, "w", encoding="utf-8") as opened:
        opened.write(tuned_study().to_yaml())
    said = CliRunner().invoke(app, ["similarity", file, "tuned", "--store", str(store.root), "--json"])
    assert said.exit_code == 0, said.output
    assert len(json.loads(said.output)["cka"]) == len(json.loads(said.output)["cuts"][0])
    words = [file, "first frozen", "--store", str(store.root), "--out", str(tmp_path / "map.svg")]
    lines = CliRunner().invoke(app, ["similarity", *words], catch_exceptions=False).stdout.splitlines()
    still = next(line for line in lines if line.startswith("layer1"))
    assert still.endswith("CKA 1.000, weights moved by 0.0 %")
    assert not next(line for line in lines if line.startswith("layer4")).endswith("moved by 0.0 %")
    assert (tmp_path / "map.svg").read_text("utf-8").startswith("<svg")
    both = CliRunner().invoke(app, ["similarity", file, "tuned", "frozen", "--store", str(store.root)])
    assert both.exit_code == 0, both.output
    assert "CKA" in both.stdout
    assert "moved" not in both.stdout
