"""Laws of `regraft prune`: what a named study may still need is never removed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from regraft.errors import StoreError
from regraft.networks import build
from regraft.spec import Run, Study
from regraft.study.keys import Keys, cacheable
from regraft.study.locks import Lock
from regraft.study.plan import plan
from regraft.study.prune import prune
from regraft.study.store import Artifact, Payload, Scratch, Store, key_of
from tests.study.conftest import TINY, small_study


def fill(study: Study, store: Store) -> dict[Run, str]:
    """Store something under every key of the study, as `run_study` would, without training; returns the fits' keys.

    Of several recipes the last one is the best on validation."""
    keys = Keys(plan(study), store, offline=True)
    fits: dict[Run, str] = {}
    for run in keys.runs:
        held = {"validation_accuracy": 0.01 * len(fits), "validation_loss": 1.0}
        fits[run] = put(store, keys.fit(run), held).key
        if cacheable(run):
            for split in ("train", "test"):
                table = keys.features(run, split)
                store.link(key_of(table), put(store, {**table, "positions": [0]}, {"positions": [0]}).key)
    for cell in keys.by_cell:
        put(store, keys.score(keys.chosen(cell)), {"accuracy": 0.5})
    return fits


def put(store: Store, spec: dict[str, Any], values: dict[str, Any]) -> Artifact:
    return store.cached(spec, lambda _: Payload(values, {"w": torch.ones(2)}))


def everything(store: Store) -> set[Path]:
    return set(store.root.rglob("*"))


def row(name: str, source: str, recipe: Any = "fast", **more: Any) -> dict[str, Any]:
    return {"name": name, "source": source, "target": "few", "recipe": recipe, "seeds": [0], **more}


def of_rows(*rows: dict[str, Any], targets: dict[str, Any] | None = None, **sources: Any) -> Study:
    data = small_study(grid=[], rows=list(rows))
    data["sources"] = {"random": data["sources"]["random"], **sources}
    data["targets"] |= targets or {}
    return Study.from_dict(data)


def with_rivals(**source_row: Any) -> Study:
    """A source with two recipes, and rows that cut it."""
    return of_rows(
        row("source", "random", ["fast", "steps"], **source_row),
        row("tuned", "trained"),
        row("probe", "trained", ["weak", "strong"], cut="layer1", method="frozen"),
        row("grandchild", "twice"),
        trained={"run": "source"},
        twice={"run": "tuned"},
    )


def test_what_a_named_study_needs_stays_and_the_rest_goes(store: Store) -> None:
    small, large = Study.from_dict(small_study(grid=[])), Study.from_dict(small_study())
    fill(small, store)
    needed = set(store.keys())
    fill(large, store)
    assert prune(store, [large], dry_run=True) == []
    doomed = set(store.keys()) - needed
    before = everything(store)
    listed = prune(store, [small], dry_run=True)
    assert {key for key, _, _ in listed} == doomed
    assert all(n_bytes > 0 for _, n_bytes, _ in listed)
    assert everything(store) == before
    assert prune(store, [small], dry_run=False) == listed
    assert set(store.keys()) == needed
    linked = {path.name for path in (store.root / "groups").glob("*/*")}
    assert linked <= needed, "no index entry of an artifact that is gone"
    assert linked


def test_several_named_studies_all_keep_their_own(store: Store) -> None:
    small, large = Study.from_dict(small_study(grid=[])), Study.from_dict(small_study())
    fill(large, store)
    before = store.keys()
    assert prune(store, [small, large], dry_run=False) == []
    assert store.keys() == before


@pytest.mark.parametrize("method", ["finetune", "frozen"])
def test_while_a_choice_of_recipe_is_open_the_heirs_of_each_stay(store: Store, method: str) -> None:
    """A lost fit (damaged, or of a recipe added later) opens the choice again; it may fall as before."""
    study = with_rivals(method=method)
    fits = fill(study, store)
    stranger = fill(of_rows(row("other", "random") | {"target": "more"}), store)
    lost = next(key for run, key in fits.items() if run.row == "source")
    shutil.rmtree(store.path(lost))
    before = set(store.keys())
    prune(store, [study], dry_run=False)
    assert before - set(store.keys()) >= set(stranger.values())
    assert set(fits.values()) - {lost} <= set(store.keys())
    assert len(before - set(store.keys())) == 2  # the stranger's fit and score, nothing else


def test_heirs_of_a_recipe_that_was_not_chosen_go(store: Store) -> None:
    study = with_rivals()
    fits = fill(study, store)
    keys = Keys(plan(study), store, offline=True)
    loser = next(run for run in fits if run.row == "source" and run != keys.chosen(run.cell))
    heir = put(store, {**keys.fit(next(run for run in fits if run.row == "tuned")), "trunk": {"fit": fits[loser]}}, {})
    assert [key for key, _, _ in prune(store, [study], dry_run=False)] == [heir.key]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        for n, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (16, 16), (100 * n + i,) * 3).save(folder / split / name / f"{i}.png")
    return folder


def test_a_study_whose_pictures_are_away_stops_prune(
    store: Store, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    own = {"data": f"folder:{pictures}", "per_class": 2}
    study = of_rows(row("own", "random") | {"target": "own"}, row("digits", "random"), targets={"own": own})
    fill(study, store)
    (store.root / "damaged" / "old").mkdir(parents=True)
    assert [name for name, _, _ in prune(store, [study], dry_run=True)] == ["old"]
    pictures.rename(tmp_path / "unplugged")
    before = everything(store)
    for dry_run in (True, False):
        with pytest.raises(StoreError, match=r"(?s)cannot tell what study 'small' needs: .*Nothing was removed"):
            prune(store, [with_rivals(), study], dry_run)
    assert everything(store) == before


def test_a_study_whose_weights_are_away_stops_prune(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(build(TINY, seed=0, image_size=32).state_dict(), file)
    preprocessing = {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    source = {"network": TINY, "weights": f"file:{file}", "preprocessing": preprocessing}
    study = of_rows(row("from file", "file"), file=source)
    fill(study, store)
    assert prune(store, [study], dry_run=False) == []
    file.unlink()
    with pytest.raises(StoreError, match=r"(?s)weights\.pt.*Nothing was removed"):
        prune(store, [study], dry_run=False)
    assert len(store.keys()) == 2


def test_checkpoints_stay_as_long_as_somebody_may_go_on_from_them(store: Store) -> None:
    study = Study.from_dict(small_study(grid=[]))
    keys = Keys(plan(study), store, offline=True)
    mine, finished, foreign, running, old = keys.fit_key(keys.runs[0]), "", "b" * 64, "c" * 64, "d" * 64
    finished = put(store, keys.fit(keys.runs[-1]), {}).key
    for key in (mine, finished, foreign, running, old):
        Scratch(store.root / "work" / key).save({}, {"w": torch.ones(1)})
    age(store.root / "work" / old, days=31)
    age(store.root / "work" / foreign, days=29)
    lock = Lock(store.root / "locks" / running, wait=False)
    lock.acquire()

    assert {name for name, _, _ in prune(store, [], dry_run=False)} == {finished, old}
    assert names(store.root / "work") == {mine, foreign, running}
    age(store.root / "work" / mine, days=100)
    assert {name for name, _, _ in prune(store, [study], dry_run=False)} == {foreign}
    assert names(store.root / "work") == {mine, running}
    lock.release()
    prune(store, [study], dry_run=False)
    assert names(store.root / "work") == {mine}


def test_with_no_study_named_only_what_is_broken_goes(store: Store) -> None:
    fill(Study.from_dict(small_study(grid=[])), store)
    before = store.keys()
    (store.root / "tmp" / "fresh").mkdir(parents=True)
    (store.root / "tmp" / "stale").mkdir()
    age(store.root / "tmp" / "stale", days=2)
    store.set_aside(before[0], "for the test")
    (store.root / "locks").mkdir(exist_ok=True)
    (store.root / "locks" / "left").touch()
    lock = Lock(store.root / "locks" / "held", wait=False)
    lock.acquire()
    assert [reason for _, _, reason in prune(store, [], dry_run=True)] == [
        "damaged", "left behind by a process that was stopped",
    ]  # fmt: skip
    assert names(store.root / "locks") == {"left", "held"}
    prune(store, [], dry_run=False)
    assert store.keys() == before[1:]
    assert names(store.root / "tmp") == {"fresh"}
    assert names(store.root / "locks") == {"held"}
    assert names(store.root / "damaged") == set()
    lock.release()


def test_an_index_group_that_has_long_been_empty_goes(store: Store) -> None:
    for group in ("new", "old"):
        store.link(group, "e" * 64)
    age(store.root / "groups" / "old", days=2)
    prune(store, [], dry_run=False)
    assert names(store.root / "groups") == {"new"}
    assert names(store.root / "groups" / "new") == set()


def age(path: Path, *, days: float) -> None:
    then = time.time() - 24 * 3600 * days
    os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
