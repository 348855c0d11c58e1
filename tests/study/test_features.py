"""Laws of the feature tables: filled in parts, killed and gone on with, of one piece, read in any order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.errors import StudyError
from regraft.spec import Study
from regraft.study import features
from regraft.study.bench import Bench, Setting
from regraft.study.features import feature_tasks, needed_images, read_features, table_name
from regraft.study.plan import plan
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import TINY

# The third argument: kill this process, as kill -9 does, once so many shards are in the store.
PROGRAM = """
import json, os, signal, sys
import regraft.study.features as features
features.SHARD = 100
from regraft.spec import Study
from regraft.study.run import run_study
from regraft.study.store import Store
study, store, last = json.loads(sys.argv[1]), Store(sys.argv[2]), int(sys.argv[3])
stored, left = features.store_shard, [last]
def store_shard(*args):
    stored(*args)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
features.store_shard = store_shard
run_study(Study.from_dict(study), store, threads=1, device="cpu").to_csv(sys.argv[2] + ".csv")
"""


def frozen(per_class: int = 40, **row: Any) -> dict[str, Any]:
    return {
        "study": "frozen",
        "seeds": [0],
        "sources": {"net": {"network": TINY, "image_size": 32}},
        "targets": {"digits": {"data": "digits", "per_class": per_class, "test_images": 50}},
        "recipes": {"ridge": {"optimizer": "ridge", "weight_decay": 0.1}},
        "grid": {
            "source": "net", "cut": ["layer1", "layer2", "layer4"], "method": "frozen", "target": "digits",
            "recipe": "ridge", **row,
        },
    }  # fmt: skip


def run(study: dict[str, Any], store: Path, last: int) -> int:
    return subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(study), str(store), str(last)]).returncode


def shards(store: Path) -> dict[str, tuple[bytes, int]]:
    """Of every shard in the store its content and when it was written."""
    found = {}
    for artifact in map(Store(store).read, Store(store).keys()):
        if artifact.spec["stage"] == "features":
            file = artifact.path / "data.safetensors"
            found[artifact.key] = (file.read_bytes(), file.stat().st_mtime_ns)
    return found


def test_an_extraction_killed_between_shards_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert run(frozen(), tmp_path / "whole", -1) == 0
    whole = shards(tmp_path / "whole")
    assert len(whole) == 3 * (4 + 1)  # cuts x (400 training images in hundreds, 50 test images)
    # In the middle of a pass: one cut's shard of these images is there, the others' not.
    assert run(frozen(), tmp_path / "killed", 4) == -signal.SIGKILL
    kept = shards(tmp_path / "killed")
    assert len(kept) == 4
    assert run(frozen(), tmp_path / "killed", -1) == 0
    after = shards(tmp_path / "killed")
    assert all(after[key] == old for key, old in kept.items())
    assert Path(f"{tmp_path}/killed.csv").read_bytes() == Path(f"{tmp_path}/whole.csv").read_bytes()


def opened(study: dict[str, Any], store: Store) -> Bench:
    return Bench(Setting(str(store.root), tuple(plan(Study.from_dict(study))), "cpu", 1))


def backends(store: Store) -> set[str]:
    artifacts = map(store.read, store.keys())
    return {a.record["backend"] for a in artifacts if a.spec["stage"] == "features"}


def test_a_table_that_grows_stays_of_one_back_end(store: Store) -> None:
    run_study(Study.from_dict(frozen(10)), store, threads=1, backend="eager")
    assert backends(store) == {"eager"}
    before = len(store.keys())
    run_study(Study.from_dict(frozen(20)), store, threads=1)
    assert len(store.keys()) > before
    assert backends(store) == {"eager"}


def test_the_back_end_asked_for_is_used_and_recorded_and_changes_no_key(tmp_path: Path) -> None:
    keys = {}
    for name in ("eager", "fused"):
        store = Store(tmp_path / name)
        run_study(Study.from_dict(frozen(10)), store, threads=1, backend=name)
        assert backends(store) == {name}
        keys[name] = store.keys()
    assert keys["eager"] == keys["fused"]


def test_the_pass_with_most_images_comes_first_and_chooses_the_back_end(store: Store) -> None:
    study = Study.from_dict(frozen(40))
    tasks = feature_tasks(plan(study), opened(frozen(40), store))
    assert [(task.place[0], len(task.positions)) for task in tasks] == [("train", 400), ("test", 50)]


def test_an_unknown_back_end_is_refused(store: Store) -> None:
    with pytest.raises(StudyError, match="eager"):
        run_study(Study.from_dict(frozen(10)), store, threads=1, backend="egaer")


def test_rows_come_in_the_order_asked_for_across_shards(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 70)
    run_study(Study.from_dict(frozen()), store, threads=1)
    bench = opened(frozen(), store)
    run = plan(Study.from_dict(frozen()))[0]
    positions = needed_images(run, bench)["train", 0]
    whole, trunk, _ = read_features(run, ("train", 0), positions, bench)
    order = np.random.default_rng(0).permutation(len(positions))
    some, _, _ = read_features(run, ("train", 0), positions[order], bench)
    assert torch.equal(some, whole[torch.from_numpy(order)])
    assert len(bench.table(table_name(run, ("train", 0), bench.keys)).keys) == 6
    assert len(trunk) == 64


def test_a_damaged_shard_is_set_aside_and_extracted_again(store: Store) -> None:
    run_study(Study.from_dict(frozen(10)), store, threads=1)
    run = plan(Study.from_dict(frozen(10)))[0]
    bench = opened(frozen(10), store)
    positions = needed_images(run, bench)["train", 0]
    before, _, _ = read_features(run, ("train", 0), positions, bench)
    before = before.clone()
    (key,) = bench.table(table_name(run, ("train", 0), bench.keys)).keys
    file = store.path(key) / "data.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    after, _, _ = read_features(run, ("train", 0), positions, opened(frozen(10), store))
    assert torch.equal(after, before)
    assert len(list((store.root / "damaged").iterdir())) == 1


def test_augmented_views_are_shared_by_budgets_and_seeds(store: Store) -> None:
    def study(per_class: int, seeds: list[int]) -> dict[str, Any]:
        recipes = {"seen": {"optimizer": "ridge", "weight_decay": 0.1, "augment": "crop-flip", "views": 2}}
        return {**frozen(per_class, recipe="seen", cut="layer2"), "recipes": recipes, "seeds": seeds}

    run_study(Study.from_dict(study(140, [0])), store, threads=1)
    bench = opened(study(20, [0]), store)
    run = plan(Study.from_dict(study(20, [0])))[0]
    for place, positions in needed_images(run, bench).items():
        assert np.isin(positions, bench.table(table_name(run, place, bench.keys)).positions).all(), place
    places = {("test", 0), ("train", 0), ("train", 1), ("train", 2)}
    assert needed_images(run, bench).keys() == places
    views = [read_features(run, ("train", v), needed_images(run, bench)["train", 1][:50], bench)[0] for v in (1, 2)]
    assert not torch.equal(*views)
