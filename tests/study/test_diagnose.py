"""Facts about stored fits: what can be known is told, and what can no longer be looked at is left out, not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from regraft.analysis.alarm import alarms
from regraft.networks import build
from regraft.spec import Study
from regraft.study.diagnose import Evidence, gather
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import TINY

PLAIN = {"image_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
FEW = {"data": "digits", "classes": ["0", "1"], "per_class": 5, "test_images": 20}


def finished(store: Store, sources: dict[str, Any], *, target: dict[str, Any], **rows: dict[str, Any]) -> Results:
    frozen = {"method": "frozen", "target": "only", "recipe": "ridge"}
    study = {
        "study": "facts", "seeds": [0], "sources": sources, "targets": {"only": target},
        "recipes": {"ridge": {"optimizer": "ridge"}, "steps": {"epochs": 1, "batch_size": 5, "lr": 0.01}},
        "rows": [{"name": name, **frozen, **row} for name, row in rows.items()],
    }  # fmt: skip
    results = run_study(Study.from_dict(study), store, threads=1, device="cpu")
    assert results.missing == []
    return results


def facts(results: Results, store: Store) -> dict[str, Evidence]:
    return {row: found for (row, _), found in gather(results, results.cells, store).items()}


def pictures(root: Path, *brightness: int) -> dict[str, Any]:
    """A folder of two classes; the pictures of the second are as bright as said, of the first black."""
    for split in ("train", "test"):
        for name, value in zip("ab", (0, *brightness), strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(root / split / name / f"{i}.png")
    return {"data": f"folder:{root}"}


def test_what_is_published_for_a_network_is_known_where_there_is_something(store: Store) -> None:
    sources = {
        "usual": {"network": TINY, "image_size": 16},
        "other stem": {"network": "resnet18", "stem": "cifar", "image_size": 8},
        "nobody's": {"network": "timm/mobilenetv2_035", "image_size": 32},
    }
    rows = {name: {"source": name} for name in sources} | {"other stem": {"source": "other stem", "cut": "layer1.0"}}
    found = facts(finished(store, sources, target=FEW, **rows), store)
    assert {name for name, evidence in found.items() if evidence.published is not None} == {"usual"}
    assert all(evidence.probe is not None and evidence.probe.first_norm is None for evidence in found.values())


def test_a_network_that_another_row_trained_is_measured_by_the_preprocessing_of_its_weights(
    store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(build(TINY, stem="imagenet", seed=0, image_size=16).state_dict(), file)
    sources = {
        "file": {"network": TINY, "weights": f"file:{file}", "preprocessing": PLAIN}, "trained": {"run": "first"}
    }  # fmt: skip
    first, heir = {"source": "file", "method": "finetune", "recipe": "steps"}, {"source": "trained"}
    found = facts(finished(store, sources, target=FEW, first=first, heir=heir), store)
    assert found["heir"].weights == found["first"].weights == "file"
    assert found["heir"].recorded.model_dump(mode="json").items() >= PLAIN.items()
    probes = found["first"].probe, found["heir"].probe
    assert probes[0] is not None
    assert probes[1] is not None
    assert probes[1].first_norm is not None
    assert probes[0].first_norm != probes[1].first_norm  # of the networks that each began with
    assert probes[1].trunk_moved is None


def test_pictures_that_are_black_have_no_content(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    target = pictures(tmp_path / "black", 0)
    results = finished(store, {"random": {"network": TINY, "image_size": 16}}, target=target, row={"source": "random"})
    probe = facts(results, store)["row"].probe
    assert probe is not None
    assert (probe.content, probe.pixel_std, probe.spread) == (0, 0, 0)
    (alarm, *_) = alarms(results, store)
    assert "images" in [cause.name for cause in alarm.causes]


def test_a_fit_whose_tensors_are_damaged_is_told_of_without_a_look_inside(store: Store) -> None:
    results = finished(store, {"random": {"network": TINY, "image_size": 16}}, target=FEW, row={"source": "random"})
    data = store.path(results.cells[0].key) / "data.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    evidence = facts(results, store)["row"]
    assert evidence.probe is None
    assert (evidence.method, evidence.head, evidence.steps) == ("frozen", "linear", None)


def test_nothing_is_told_of_a_cell_whose_pictures_have_gone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    target = pictures(tmp_path / "pictures", 200)
    results = finished(store, {"random": {"network": TINY, "image_size": 16}}, target=target, row={"source": "random"})
    (tmp_path / "pictures").rename(tmp_path / "unplugged")
    assert facts(results, store) == {}
    assert gather(results, [], store) == {}
