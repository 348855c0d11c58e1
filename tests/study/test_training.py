"""Recipes of full strength, through the whole engine: stored under their own keys, the same by any executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.errors import StudyError, TooFewImages
from regraft.spec import Study
from regraft.study.executors import Processes
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import small_study

FAST: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 0.05}
YOUNGER: dict[str, dict[str, Any]] = {
    "policy": {"policy": "trivial"},
    "cutout": {"cutout": 0.25},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "ema": {"ema": 0.9},
    "sam": {"sam": 0.05},
    "sgdw": {"optimizer": "sgdw"},
    "mirrored": {"test_flip": True},
    "patience": {"keep": "best", "patience": 1},
}


def strong_study(**changes: Any) -> Study:
    data = small_study(
        seeds=[0],
        recipes={name: {**FAST, **fields} for name, fields in {"plain": {}, **YOUNGER}.items()},
        rows=[
            {"name": name, "source": "random", "target": "few", "recipe": name} for name in ("plain", *YOUNGER)
        ],
    )  # fmt: skip
    del data["grid"], data["sources"]["trained"]
    return Study.from_dict({**data, **changes})


def keys_by_row(study: Study, store: Store) -> dict[str, str]:
    keys = Keys(plan(study), store, offline=True)
    return {run.row: keys.fit_key(run) for run in keys.runs}


def test_every_part_of_a_recipe_has_its_own_key_and_none_when_it_is_off(store: Store) -> None:
    found = keys_by_row(strong_study(), store)
    assert len(set(found.values())) == len(found)
    off = {"policy": "none", "cutout": 0.0, "mixup": 0.0, "ema": 0.0, "sam": 0.0, "patience": 0, "threshold": 0.8}
    recipes = {name: {**FAST, **fields} for name, fields in {"plain": off, **YOUNGER}.items()}
    assert keys_by_row(strong_study(recipes=recipes), store) == found


@pytest.mark.slow
def test_every_part_of_a_recipe_trains_and_processes_give_what_serial_gives(tmp_path: Path) -> None:
    study = strong_study()
    serial = run_study(study, Store(tmp_path / "a"), threads=1)
    assert not serial.missing
    shared = run_study(study, Store(tmp_path / "b"), Processes(2), threads=1)
    assert serial.to_csv(tmp_path / "a.csv").read_text() == shared.to_csv(tmp_path / "b.csv").read_text()


def test_a_recipe_of_everything_trains_is_found_again_and_learns(store: Store) -> None:
    everything = {
        **FAST, "epochs": 12, "lr": 0.03, "warmup": 0.1, "label_smoothing": 0.1, "augment": "crop-flip",
        "policy": "trivial",
        "cutout": 0.2, "mixup": 0.1, "cutmix": 0.5, "ema": 0.9, "test_flip": True, "keep": "best", "patience": 12,
    }  # fmt: skip
    rows = [{"name": "all", "source": "random", "target": "more", "recipe": "all"}]
    study = strong_study(recipes={"all": everything}, rows=rows)
    results = run_study(study, store, threads=1)
    (cell,) = results.cells
    assert cell.curve[-1]["train_loss"] < cell.curve[0]["train_loss"]
    assert run_study(study, store, threads=1).cells == results.cells


UNLABELLED = {
    "few": {
        "data": "digits", "classes": ["5", "6", "7", "8", "9"], "per_class": 10, "validation": 0.2, "unlabelled": True
    }
}  # fmt: skip
GUESSING = {**FAST, "epochs": 2, "batch_size": 40, "semi": "fixmatch", "ratio": 2, "policy": "trivial", "cutout": 0.2}


def test_unlabelled_images_are_those_outside_the_budget_and_come_without_labels(store: Store) -> None:
    import numpy as np

    from regraft.study.bench import Bench, Setting

    rows = [{"name": "guesses", "source": "random", "target": "few", "recipe": "guessing"}]
    study = strong_study(targets=UNLABELLED, recipes={"guessing": GUESSING}, rows=rows)
    (run,) = plan(study)
    bench = Bench(Setting(str(store.root), (run,), "cpu", 1))
    train, held = bench.parts(run)
    rest = bench.unlabelled(run)
    assert held is not None
    together = np.concatenate([train.positions, held.positions, rest.positions])
    assert len(np.unique(together)) == len(together)
    assert sorted(together) == sorted(bench.dataset(run).train_indices)
    assert (rest.labels == -1).all()
    results = run_study(study, store, threads=1)
    assert not results.missing
    assert 0 <= results.cells[0].curve[-1]["guessed"] <= 1


@pytest.mark.parametrize(
    ("target", "recipe", "said"),
    [
        ({"unlabelled": True}, {}, "unlabelled"),
        ({}, {"semi": "fixmatch", "policy": "rand"}, "unlabelled"),
        ({"validation": 0.0}, {"keep": "best", "patience": 2}, "validation"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(
    target: dict[str, Any], recipe: dict[str, Any], said: str, store: Store
) -> None:
    few = {"data": "digits", "per_class": 10, **target}
    rows = [{"name": "row", "source": "random", "target": "few", "recipe": "odd"}]
    with pytest.raises(StudyError, match=said):
        run_study(strong_study(targets={"few": few}, recipes={"odd": {**FAST, **recipe}}, rows=rows), store)
    assert store.keys() == []


def test_a_budget_of_every_image_leaves_none_unlabelled(store: Store) -> None:
    with pytest.raises((StudyError, TooFewImages), match="outside the budget"):
        strong_study(targets={"few": {"data": "digits", "unlabelled": True}})


def lp_ft_study(**head: Any) -> Study:
    data = small_study(seeds=[0])
    data["sources"]["probed"] = {"run": "probe"}
    data["recipes"]["still"] = {"epochs": 1, "batch_size": 40, "lr": 1e-9}
    probe = {"name": "probe", "source": "random", "method": "frozen", "target": "few", "recipe": ["weak", "strong"]}
    tuned = {
        "name": "tuned",
        "source": "probed",
        "target": "few",
        "recipe": "still",
        "head": {"start": "source", **head},
    }
    del data["grid"]
    return Study.from_dict({**data, "rows": [data["rows"][0], probe, tuned]})


def test_a_head_that_starts_as_the_source_runs_head_is_that_head(store: Store) -> None:
    study = lp_ft_study()
    assert not run_study(study, store, threads=1).missing
    keys = Keys(plan(study), store, offline=True)
    probe = store.tensors(keys.fitted(keys.final(("probe", 0))))
    tuned = store.tensors(keys.fitted(keys.final(("tuned", 0))))
    torch.testing.assert_close(tuned["head/classify.weight"], probe["head/weight"], atol=1e-6, rtol=0)
    elsewhere = {run.row: keys.fit_key(run) for run in keys.runs}["tuned"]
    fresh = Keys(plan(lp_ft_study(start="random")), store, offline=True)
    assert elsewhere != {run.row: fresh.fit_key(run) for run in fresh.runs}["tuned"]


def test_a_head_that_does_not_fit_the_source_runs_is_refused(store: Store) -> None:
    with pytest.raises(StudyError, match=r"head\.start: source, but the head of row 'probe'"):
        run_study(lp_ft_study(kind="mlp"), store)
    study = strong_study(
        rows=[{"name": "row", "source": "random", "target": "few", "recipe": "plain", "head": {"start": "source"}}]
    )
    with pytest.raises(StudyError, match="is no run"):
        run_study(study, store)


def test_seeds_side_by_side_are_those_alone_up_to_rounding(tmp_path: Path) -> None:
    data = small_study(seeds=[0, 1, 2], recipes={"gentle": {"epochs": 2, "batch_size": 20, "lr": 0.01}})
    del data["grid"], data["sources"]["trained"]
    study = Study.from_dict(
        {**data, "rows": [{"name": "scratch", "source": "random", "target": "few", "recipe": "gentle"}]}
    )
    alone, joint = Store(tmp_path / "alone"), Store(tmp_path / "joint")
    one = run_study(study, alone, threads=1)
    both = run_study(study, joint, threads=1, mechanism="seeds")
    assert [cell.key for cell in both.cells] == [cell.key for cell in one.cells]
    for a, b in zip(one.cells, both.cells, strict=True):
        assert b.cost["mechanism"]["mechanism"] == "seeds"
        assert a.curve[-1]["train_loss"] == pytest.approx(b.curve[-1]["train_loss"], abs=1e-3)
    # On a CPU nobody but the user may ask for it: what trains must not depend on the clock.
    assert all(cell.cost["mechanism"]["mechanism"] == "eager" for cell in one.cells)


def seeds_study(seeds: list[int], recipe: dict[str, Any], **row: Any) -> Study:
    data = small_study(seeds=seeds, recipes={"own": recipe})
    del data["grid"], data["sources"]["trained"]
    few = {"data": "digits", "classes": ["5", "6"], "per_class": 10, "validation": 0, "test_images": 20}
    rows = [{"name": "row", "source": "random", "target": "few", "recipe": "own", **row}]
    return Study.from_dict({**data, "targets": {"few": few}, "rows": rows})


@pytest.mark.parametrize(
    ("epochs", "said"),
    [(7, "row [seed 0, own]: head/classify.weight holds NaN or infinity after training; lower the learning rate"),
     (8, "the training loss became nan in epoch 8 at learning rate up to 1000; try a tenth of it, or warmup: 0.1")],
)  # fmt: skip
def test_seeds_side_by_side_diverge_as_alone_and_are_not_tried_again(epochs: int, said: str, tmp_path: Path) -> None:
    """A head that grows a millionfold with each step, on a live frozen trunk: at last its loss is finite, it is not."""
    wild = {
        "epochs": epochs, "batch_size": 64, "lr": 1000, "weight_decay": 1000, "schedule": "constant", "momentum": 0.0,
        "augment": "flip",
    }  # fmt: skip
    study = seeds_study([0, 1], wild, method="frozen")
    reasons = []
    for mechanism in ("auto", "seeds"):
        store = Store(tmp_path / mechanism)
        reasons.append([one.reason for one in run_study(study, store, threads=1, mechanism=mechanism).missing])
        before = store.keys()
        run_study(study, store, threads=1, mechanism=mechanism)
        assert store.keys() == before
    assert reasons[0] == reasons[1]
    assert reasons[0][0] == said


def test_seeds_are_trained_one_by_one_where_they_cannot_go_side_by_side(tmp_path: Path) -> None:
    """One is there already; or a precision is asked for, which the joint steps do not know."""
    recipe = {"epochs": 1, "batch_size": 20, "lr": 0.01}
    alone = run_study(seeds_study([0, 1], recipe), Store(tmp_path / "alone"), threads=1)
    store = Store(tmp_path / "one there")
    run_study(seeds_study([0], recipe), store, threads=1)
    added = run_study(seeds_study([0, 1], recipe), store, threads=1, mechanism="seeds")
    whole = Store(tmp_path / "precision")
    exact = run_study(seeds_study([0, 1], recipe), whole, threads=1, mechanism="seeds", precision="float32")
    for found in (added, exact):
        assert [(cell.key, cell.accuracy, cell.curve) for cell in found.cells] == [
            (cell.key, cell.accuracy, cell.curve) for cell in alone.cells
        ]
        assert {cell.cost["mechanism"]["mechanism"] for cell in found.cells} == {"eager"}
