"""Studies that learn from images without labels: FixMatch and FlexMatch, through the whole engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.spec import Run, Study
from regraft.study.bench import Bench, Setting
from regraft.study.executors import Processes
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import TINY

LEARNED: dict[str, Any] = {"epochs": 2, "batch_size": 40, "lr": 0.03, "policy": "trivial", "cutout": 0.3}
CLASSES = ["5", "6", "7", "8", "9"]


def study(*rows: dict[str, Any], **recipes: dict[str, Any]) -> Study:
    few = {"data": "digits", "classes": CLASSES, "per_class": 5, "validation": 0.2}
    return Study.from_dict(
        {
            "study": "unlabelled",
            "seeds": [0],
            "sources": {"random": {"network": TINY, "weights": "random", "image_size": 16}},
            "targets": {"few": few, "more": {**few, "unlabelled": True}},
            "recipes": {name: {**LEARNED, **fields} for name, fields in recipes.items()},
            "rows": [{"source": "random", "target": "more", **row} for row in rows],
        }
    )


def fit_keys(asked: Study, store: Store) -> dict[str, str]:
    keys = Keys(plan(asked), store, offline=True)
    return {run.row: keys.fit_key(run) for run in keys.runs}


def test_guesses_have_keys_of_their_own(store: Store) -> None:
    ways: dict[str, dict[str, Any]] = {
        "fix": {"semi": "fixmatch"},
        "flex": {"semi": "flexmatch"},
        "bold": {"semi": "fixmatch", "threshold": 0.8},
        "many": {"semi": "fixmatch", "ratio": 3},
    }
    rows = [{"name": name, "recipe": name} for name in ways]
    plain = {"name": "plain", "target": "few", "recipe": "plain"}
    found = fit_keys(study(plain, *rows, plain={}, **ways), store)
    assert len(set(found.values())) == 5


def test_a_frozen_trunk_and_a_refit_learn_from_unlabelled_images_too(store: Store) -> None:
    results = run_study(both(), store, threads=1)
    assert not results.missing
    assert {cell.row: "guessed" in cell.curve[-1] for cell in results.cells} == {"frozen": True, "again": True}
    assert results.cells[1].curve[0]["guessed"] > 0  # at its start FlexMatch learns from every guess


@pytest.mark.slow
def test_processes_guess_what_serial_guesses(tmp_path: Path) -> None:
    serial = run_study(both(), Store(tmp_path / "a"), threads=1)
    shared = run_study(both(), Store(tmp_path / "b"), Processes(2), threads=1)
    assert serial.to_csv(tmp_path / "a.csv").read_text() == shared.to_csv(tmp_path / "b.csv").read_text()


def both() -> Study:
    return study(
        {"name": "frozen", "recipe": "fix", "method": "frozen"},
        {"name": "again", "recipe": "flex"},
        fix={"semi": "fixmatch", "ratio": 2},
        flex={"semi": "flexmatch", "ratio": 2, "ema": 0.5, "refit": True},
    )


def test_a_refit_guesses_about_the_same_images(store: Store) -> None:
    (run,) = plan(study({"name": "row", "recipe": "flex"}, flex={"semi": "flexmatch", "refit": True}))
    bench = Bench(Setting(str(store.root), (run,), "cpu", 1))
    again: Run = run.model_copy(update={"refit": True})
    assert np.array_equal(bench.unlabelled(run).positions, bench.unlabelled(again).positions)
    labelled = np.concatenate([part.positions for part in bench.training(again)[0]])
    assert not np.intersect1d(labelled, bench.unlabelled(again).positions).size


@pytest.mark.slow
def test_unlabelled_images_make_up_for_few_labels(store: Store) -> None:
    """Four labels a class, and with FlexMatch the other digits without: better than the labels alone, as a mean of
    three seeds. FixMatch is not held to it: after so few steps its lead is no larger than the seeds' spread."""
    few = {"data": "digits", "per_class": 4, "validation": 0.0}
    steps = {"epochs": 150, "batch_size": 40, "lr": 0.03, "ema": 0.95, "policy": "trivial", "cutout": 0.3}
    asked = Study.from_dict(
        {
            "study": "few-labels",
            "seeds": [0, 1, 2],
            "sources": {"random": {"network": TINY, "weights": "random", "image_size": 16}},
            "targets": {"few": few, "more": {**few, "unlabelled": True}},
            "recipes": {"labels": steps, "guesses": {**steps, "semi": "flexmatch", "ratio": 4}},
            "rows": [
                {"name": "labels", "source": "random", "target": "few", "recipe": "labels"},
                {"name": "guesses", "source": "random", "target": "more", "recipe": "guesses"},
            ],
        }
    )
    results = run_study(asked, store, threads=1)
    labels, guesses = (np.mean([c.accuracy for c in results.cells if c.row == row]) for row in ("labels", "guesses"))
    assert guesses > labels + 0.02
