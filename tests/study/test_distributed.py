"""Laws of one training over two processes: as one process trains, and no remains when one of them dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import Diverged, RunError
from regraft.learn.distributed import Team
from regraft.spec import Run, Study
from regraft.study.bench import Bench, Setting
from regraft.study.devices import devices_for, train_on_devices
from regraft.study.fits import _train, train_alone
from regraft.study.plan import plan
from regraft.study.store import Payload, Scratch, Store
from tests.study.conftest import small_study

RECIPES: dict[str, Any] = {
    "plain": {"epochs": 3, "batch_size": 25, "lr": 0.005, "augment": "crop-flip", "keep": "best"},
    "wild": {"epochs": 2, "batch_size": 25, "lr": 1000.0},
}


def bench_of(tmp_path: Path, devices: int, method: str = "finetune") -> tuple[Bench, dict[str, Run]]:
    rows = [
        {"name": name, "source": "random", "target": "more", "recipe": name, "method": method, "seeds": [0]}
        for name in RECIPES
    ]
    targets = {"more": {"data": "digits", "per_class": 15, "validation": 0.2}}
    sources = {"random": {"network": "timm/test_resnet", "weights": "random", "image_size": 32}}
    study = Study.from_dict(small_study(sources=sources, targets=targets, recipes=RECIPES, rows=rows, grid=[]))
    runs = {run.row: run for run in plan(study)}
    store = Store(tmp_path / "store")
    return Bench(Setting(str(store.root), tuple(runs.values()), "cpu", 2, devices=devices)), runs


def quiet(done: float, message: str) -> None:
    return


def trained(tmp_path: Path, name: str, devices: int, **more: Any) -> Payload:
    bench, runs = bench_of(tmp_path, devices, **more)
    return train_alone(runs[name], bench, Scratch(tmp_path / f"scratch{devices}"), quiet)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "frozen"])
def test_two_processes_train_as_one_up_to_rounding(tmp_path: Path, method: str) -> None:
    """`tests/unit/test_distributed_fit.py` has the strict law, in float64."""
    one, two = (trained(tmp_path, "plain", devices, method=method) for devices in (1, 2))
    assert two.record["mechanism"]["mechanism"] == "eager on 2 devices"
    for before, after in zip(one.values["curve"], two.values["curve"], strict=True):
        assert before.keys() == after.keys()
        for key in ("train_loss", "validation_loss"):
            assert after[key] == pytest.approx(before[key], abs=0.01), key
    for key in one.values.keys() - {"curve", "trunk_sha256"}:
        if isinstance(one.values[key], float):
            assert two.values[key] == pytest.approx(one.values[key], abs=0.05), key
        else:
            assert two.values[key] == one.values[key], key
    assert {k: v.shape for k, v in two.tensors.items()} == {k: v.shape for k, v in one.tensors.items()}


@pytest.mark.slow
def test_what_diverges_on_one_diverges_on_two(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="loss became"):
        trained(tmp_path, "wild", 2)


def one_dies(run: Run, bench: Bench, scratch: Any, advance: Callable[[float, str], None], team: Team) -> Payload:
    if team.rank == 1:
        os._exit(1)
    return _train(run, bench, scratch, advance, team)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_training_at_once(tmp_path: Path) -> None:
    bench, runs = bench_of(tmp_path, 2)
    with pytest.raises(RunError, match="device processes died"):
        train_on_devices(runs["plain"], bench, Scratch(tmp_path / "scratch"), quiet, one_dies, 2)


def test_only_trainings_that_can_be_shared_take_more_devices(tmp_path: Path) -> None:
    _, runs = bench_of(tmp_path, 1)
    run = runs["plain"]
    assert devices_for(run, 120, 8) == 8
    assert devices_for(run, 26, 8) == 6, "batches of 13 images, two to a device at least"
    assert devices_for(run.model_copy(update={"method": "gradual"}), 120, 8) == 1
    assert devices_for(run, 3, 8) == 1


def test_the_number_of_devices_is_in_no_key(tmp_path: Path) -> None:
    bench, runs = bench_of(tmp_path, 2)
    other = Bench(replace(bench.setting, devices=1))
    assert bench.keys.fit_key(runs["plain"]) == other.keys.fit_key(runs["plain"])
