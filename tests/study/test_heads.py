"""Laws of heads on cached features: every kind, together and alone, cached and live, chosen and refitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from regraft.errors import StudyError, TooFewImages
from regraft.spec import Study
from regraft.study.bench import Bench, Setting
from regraft.study.events import Event, StepStarted
from regraft.study.fits import train_alone
from regraft.study.heads import HeadTask, _compute, together
from regraft.study.keys import Keys, cacheable
from regraft.study.plan import plan
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.solve import head_features
from regraft.study.store import Scratch, Store
from tests.study.conftest import small_study

TARGETS: dict[str, Any] = {
    "first": {"data": "digits", "classes": ["0", "1", "2", "3", "4"], "per_class": 30},
    "few": {"data": "digits", "classes": ["5", "6", "7", "8", "9"], "per_class": 20, "validation": 0.25},
    "shots": {
        "data": "digits", "classes": ["5", "6", "7", "8", "9"],
        "episodes": {"ways": 3, "shots": 3, "queries": 5, "count": 200},
    },
}  # fmt: skip
RECIPES: dict[str, Any] = {
    "fast": {"epochs": 3, "batch_size": 32, "lr": 0.05},
    "ridge": {"optimizer": "ridge", "weight_decay": [0.01, 0.1, 1.0]},
    "logistic": {"optimizer": "lbfgs", "epochs": 200, "weight_decay": [0.01, 0.1]},
    "one": {"optimizer": "ridge", "weight_decay": 0.1},
    "refit": {"optimizer": "ridge", "weight_decay": [0.01, 0.1], "refit": True},
    "steps": {"epochs": 25, "batch_size": 16, "lr": 0.1},
    "gentle": {"epochs": 5, "batch_size": 16, "lr": 0.02},
    "swept": {"epochs": 4, "batch_size": 16, "lr": [0.01, 0.1], "keep": "best"},
    "seen": {"epochs": 25, "batch_size": 16, "lr": 0.1, "augment": "crop-flip", "views": 3},
    "seen at once": {"optimizer": "ridge", "weight_decay": 0.1, "augment": "crop-flip", "views": 2},
}
FROZEN = {"source": "trained", "method": "frozen", "cut": "layer3", "target": "few"}
HEADS: list[dict[str, Any]] = [
    {"name": "ridge", "recipe": "ridge"},
    {"name": "logistic", "recipe": "logistic"},
    {"name": "refit", "recipe": "refit"},
    {"name": "swept", "recipe": "swept"},
    {"name": "mlp", "recipe": "steps", "head": "mlp"},
    {"name": "prototype", "head": "prototype"},
    {"name": "neighbours", "head": {"kind": "knn", "neighbours": 5}},
    {"name": "all cuts", "recipe": "logistic", "head": {"kind": "head2toe", "share": 0.3}},
    {"name": "grid", "recipe": "ridge", "head": {"kind": "linear", "pool": "grid-2"}, "cut": "layer1"},
    {"name": "maximum", "recipe": "ridge", "head": {"kind": "linear", "pool": "average-max"}},
    {"name": "augmented", "recipe": "seen"},
    {"name": "augmented mlp", "recipe": "seen", "head": "mlp"},
    {"name": "augmented ridge", "recipe": "seen at once"},
    {"name": "episodes", "recipe": "one", "target": "shots"},
    {"name": "prototype episodes", "head": "prototype", "target": "shots"},
]


def heads_study(rows: list[dict[str, Any]], **changes: Any) -> Study:
    source = {"name": "source", "source": "random", "target": "first", "recipe": "fast", "seeds": [0]}
    rows = [source, *({**FROZEN, **row} for row in rows)]
    return Study.from_dict(small_study(targets=TARGETS, recipes=RECIPES, rows=rows, grid=[], **changes))


def bench_of(study: Study, store: Store) -> Bench:
    return Bench(Setting(str(store.root), tuple(plan(study)), "cpu", 1))


def weights(found: Any) -> dict[str, torch.Tensor]:
    return {k.rpartition(".")[2].rpartition("/")[2]: v for k, v in found.tensors.items() if k.startswith("head/")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store, Results, list[Event]]:
    study, store = heads_study(HEADS), Store(tmp_path_factory.mktemp("heads") / "store")
    events: list[Event] = []
    return study, store, run_study(study, store, report=events.append, threads=1), events


Finished = tuple[Study, Store, Results, list[Event]]


@pytest.mark.parametrize("name", [row["name"] for row in HEADS])
def test_every_kind_of_head_learns(finished: Finished, name: str) -> None:
    _, _, results, _ = finished
    assert not results.missing, results.missing
    cells = [cell for cell in results.cells if cell.row == name]
    assert len(cells) == 2
    assert all(cell.accuracy > cell.chance + 0.2 for cell in cells), [cell.accuracy for cell in cells]


def test_recipes_of_a_cell_are_one_step(finished: Finished) -> None:
    study, _, _, events = finished
    runs = [run for run in plan(study) if cacheable(run)]
    fits = [e for e in events if isinstance(e, StepStarted) and e.stage == "fit"]
    refits = 2 * 3  # two seeds of the row that says so, of the prototypes and of the neighbours
    assert sum(e.fits for e in fits) == len(plan(study)) + refits
    assert len(fits) == 1 + 2 * len(HEADS) + refits < len(runs) + refits


def test_each_image_goes_through_the_trunk_once_for_all_heads(finished: Finished) -> None:
    _, store, _, events = finished
    passes = [e.label for e in events if isinstance(e, StepStarted) and e.stage == "features"]
    assert len(passes) == len(set(passes)) == 2 + 3  # train and test as they are, three augmented views
    seen: dict[str, list[int]] = {}
    for artifact in map(store.read, store.keys()):
        if artifact.spec["stage"] == "features":
            table = {k: v for k, v in artifact.spec.items() if k != "positions"}
            seen.setdefault(str(table), []).extend(artifact.values["positions"])
            assert artifact.record["backend"] in ("eager", "fused", "inductor", "onnxruntime")
    assert all(len(set(positions)) == len(positions) for positions in seen.values())


@pytest.mark.parametrize("name", ["ridge", "logistic", "swept", "all cuts"])
def test_solved_together_is_solved_alone(finished: Finished, name: str, tmp_path: Path) -> None:
    study, store, _, _ = finished
    bench = bench_of(study, store)
    runs = tuple(run for run in plan(study) if run.row == name and run.seed == 0)
    assert len(runs) > 1
    said = lambda done, message: None  # noqa: E731
    for run, one in zip(runs, _compute(HeadTask(runs), bench, Scratch(tmp_path / "a"), said), strict=True):
        (alone,) = _compute(HeadTask((run,)), bench, Scratch(tmp_path / "b"), said)
        assert one.values["validation_accuracy"] == alone.values["validation_accuracy"]
        for key, value in weights(one).items():
            assert torch.allclose(value, weights(alone)[key], atol=2e-3 * float(value.abs().max())), key


@pytest.mark.parametrize("pool", ["average", "average-max", "grid-2"])
def test_a_head_on_cached_features_is_the_head_on_the_live_trunk(finished: Finished, pool: str, tmp_path: Path) -> None:
    _, store, _, _ = finished
    row = {"name": "steps", "recipe": "gentle", "cut": "layer1", "head": {"kind": "linear", "pool": pool}}
    study = heads_study([row])
    bench = bench_of(study, store)
    run = next(r for r in plan(study) if r.row == "steps")
    said = lambda done, message: None  # noqa: E731
    (cached,) = _compute(HeadTask((run,)), bench, Scratch(tmp_path / "a"), said)
    live = train_alone(run, bench, Scratch(tmp_path / "b"), said)
    assert live.values["trunk_sha256"]["before"] == live.values["trunk_sha256"]["after"]
    for key, value in weights(live).items():
        assert torch.allclose(weights(cached)[key], value, atol=1e-3 * float(value.abs().max())), key


@pytest.mark.parametrize("row", ["refit", "prototype", "neighbours"])
def test_a_refit_learns_from_the_validation_images_too(finished: Finished, row: str) -> None:
    study, store, results, _ = finished
    keys = Keys(plan(study), store, offline=True)
    for cell in (cell for cell in results.cells if cell.row == row):
        chosen, final = keys.chosen((cell.row, cell.seed)), keys.final((cell.row, cell.seed))
        first, again = keys.fitted(chosen), keys.fitted(final)
        assert again.values["train_images"] == 100
        assert first.values["train_images"] == 75
        assert cell.validation_accuracy == first.values["validation_accuracy"]
        assert again.values["validation_accuracy"] is None
        assert cell.key == again.key != first.key


def test_a_refit_is_scikit_learns_ridge_on_all_labels(finished: Finished) -> None:
    study, store, _, _ = finished
    keys, bench = Keys(plan(study), store, offline=True), bench_of(study, store)
    final = keys.final(("refit", 0))
    train, held = bench.parts(final)
    assert held is not None
    x = torch.cat([head_features(final, part, bench) for part in (train, held)]).double().numpy()
    labels = np.concatenate([train.labels, held.labels])
    mean, scale = x.mean(0), x.std(0)
    scale[scale < 1e-8] = 1.0
    theirs = Ridge(alpha=len(x) * final.recipe.weight_decay).fit((x - mean) / scale, np.eye(5)[labels])
    ours = keys.fitted(final).tensors()
    assert np.allclose(ours["head/weight"].numpy(), theirs.coef_ / scale, atol=1e-4)


def test_episodes_carry_their_interval(finished: Finished) -> None:
    _, store, results, _ = finished
    for cell in (cell for cell in results.cells if cell.target == "shots"):
        assert cell.budget == "3-way 3-shot"
        assert cell.chance == pytest.approx(1 / 3)
        assert cell.episodes == 200
        accuracies = next(
            a.tensors()["accuracies"].numpy() for a in map(store.read, store.keys())
            if a.spec["stage"] == "score" and a.spec["fit"] == cell.key
        )  # fmt: skip
        assert float(np.mean(accuracies)) == pytest.approx(cell.accuracy)
        assert float(np.std(accuracies, ddof=1)) == pytest.approx(cell.episode_deviation)


def test_changing_what_a_head_does_not_read_changes_no_key(finished: Finished) -> None:
    study, store, _, _ = finished
    runs = plan(study)
    keys = Keys(runs, store, offline=True)
    run = next(r for r in runs if r.row == "ridge")
    same = run.model_copy(update={"recipe": run.recipe.model_copy(update={"lr": 9.0, "batch_size": 3})})
    other = run.model_copy(update={"recipe": run.recipe.model_copy(update={"weight_decay": 9.0})})
    pooled = run.model_copy(update={"head": run.head.model_copy(update={"pool": "average-max"})})
    assert keys.fit_key(same) == keys.fit_key(run)
    assert len({keys.fit_key(r) for r in (run, other, pooled)}) == 3


def test_groups_do_not_depend_on_what_the_store_has(finished: Finished) -> None:
    study = finished[0]
    tasks = together([run for run in plan(study) if cacheable(run)])
    assert sorted(len(task.runs) for task in tasks if task.runs[0].row == "ridge") == [3, 3]
    assert all(len({run.cell for run in task.runs}) == 1 for task in tasks)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"head": "prototype", "method": "finetune"}, "a prototype head is read off the features of a frozen trunk"),
        ({"head": "mlp", "recipe": "ridge"}, "ridge solves a linear head on a frozen trunk"),
        ({"recipe": "ridge", "method": "finetune"}, "ridge solves a linear head on a frozen trunk"),
        ({"recipe": "seen", "method": "finetune"}, "recipes.seen.views"),
        ({"recipe": "steps", "target": "shots"}, "few-shot episodes are answered by prototype heads"),
        ({"recipe": "ridge", "target": "shots"}, "few-shot episodes"),
        ({"head": {"kind": "linear", "pool": "grid-4"}, "cut": "penultimate", "recipe": "steps"}, "grid-4"),
        ({"head": {"kind": "knn", "neighbours": 500}}, "neighbours"),
        ({"head": "knn", "recipe": "steps"}, "a knn head is not trained; remove `recipe`"),
        ({"head": "linear"}, "a linear head is trained; name one recipe or several"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match="(?s)" + said.replace("(", r"\(")):
        run_study(heads_study([{"name": "odd", **row}]), Store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_more_ways_or_shots_than_there_are_is_refused(tmp_path: Path) -> None:
    for asked in ({"ways": 6}, {"shots": 900}):
        targets = {**TARGETS, "shots": {**TARGETS["shots"], "episodes": {"ways": 2, **asked}}}
        data = small_study(
            targets=targets, recipes=RECIPES, grid=[],
            rows=[{**FROZEN, "source": "random", "name": "odd", "head": "prototype", "target": "shots"}],
        )  # fmt: skip
        data["sources"].pop("trained")
        with pytest.raises(TooFewImages, match=f"episodes.{next(iter(asked))}"):
            run_study(Study.from_dict(data), Store(tmp_path))
