"""Presets in studies: made out from counts alone, kept in files as they were written, told by the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from regraft.data import dataset_info, load_dataset, split_budget
from regraft.errors import StudyError, UnknownName
from regraft.spec import Recipe, Run, Study, Target
from regraft.spec.recipes import PRESETS
from regraft.study.plan import plan
from regraft.study.presets import size_unknown, tasks, told, training_images
from regraft.study.results import Results

NETWORK = "timm/test_resnet"


def study(rows: list[dict[str, Any]] | None = None, **changes: Any) -> Study:
    """With a row `scratch` by the preset `strong`, or with these rows; a row `scratch` is the source `trained`."""
    rows = rows or [row("scratch")]
    chain = {"trained": {"run": "scratch"}} if rows[0]["name"] == "scratch" else {}
    return Study.from_dict(
        {
            "study": "made",
            "seeds": [0, 1],
            "sources": {
                "random": {"network": NETWORK, "image_size": 64},
                "pretrained": {"network": "resnet50", "weights": "pretrained"},
                **chain,
            },
            "targets": {
                "few": {"data": "cifar10", "per_class": 50},
                "all": {"data": "cifar10"},
                "digits": {"data": "digits", "per_class": 30},
                "fetched later": {"data": "flowers102"},
            },
            "rows": rows,
            **changes,
        }
    )


def row(name: str = "row", **fields: Any) -> dict[str, Any]:
    return {"name": name, "source": "random", "target": "few", "recipe": "strong", **fields}


def run_of(study: Study, name: str = "row") -> Run:
    return next(run for run in plan(study) if run.row == name)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_names_a_preset_that_no_one_defined(preset: str) -> None:
    found = run_of(study([row(recipe=preset)]))
    assert found.recipe_name == preset
    assert found.recipe == PRESETS[preset](images=450, image_size=32, network=NETWORK, method="scratch")


def test_a_recipe_of_the_study_with_that_name_comes_first() -> None:
    assert run_of(study([row()], recipes={"strong": {"epochs": 3}})).recipe == Recipe(epochs=3)


def test_grids_and_choices_take_presets() -> None:
    runs = plan(study(grid={"source": "random", "target": ["few", "all"], "recipe": ["fast", "strong"]}))
    assert {run.recipe.preset for run in runs} == {None}
    assert len({run.recipe for run in runs if run.row != "scratch"}) == 4


def test_an_unknown_recipe_is_refused_with_the_presets_among_those_known() -> None:
    with pytest.raises(
        UnknownName, match=r"no recipe 'stong'; did you mean 'strong'\? Known: fast, standard, strong\."
    ):
        study([row(recipe="stong")])
    with pytest.raises(StudyError, match=r"recipes\.mine: .*as \{preset: 'strong'\}"):
        study([row(recipe="mine")], recipes={"mine": "strong"})


@pytest.mark.parametrize(
    ("fields", "images", "network", "method"),
    [
        ({}, 450, NETWORK, "scratch"),
        ({"target": "all"}, 45_000, NETWORK, "scratch"),
        ({"source": "pretrained"}, 450, "resnet50", "finetune"),
        ({"source": "trained"}, 450, NETWORK, "finetune"),
        ({"source": "trained", "method": "frozen"}, 450, NETWORK, "frozen"),
        ({"source": "trained", "method": "frozen", "cut": "layer2", "head": "rest"}, 450, NETWORK, "scratch"),
        ({"method": "frozen"}, 450, NETWORK, "frozen"),
    ],
)
def test_the_task_is_read_off_the_row(fields: dict[str, Any], images: int, network: str, method: str) -> None:
    runs = plan(study([row("scratch"), row(**fields)]))
    (task,) = {tasks(runs)(run) for run in runs if run.row == "row"}
    assert task is not None
    assert (task.images, task.image_size, task.network, task.method) == (images, 32, network, method)


@pytest.mark.parametrize("validation", [0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("budget", [{}, {"fraction": 0.001}, {"fraction": 0.33}, {"per_class": 1}, {"per_class": 7},
                                    {"per_class": 10, "classes": ["3", "8"]}])  # fmt: skip
def test_the_number_of_training_images_is_that_of_the_split(budget: dict[str, Any], validation: float) -> None:
    target = Target(data="digits", validation=validation, **budget)
    data = load_dataset("digits")
    data = data.with_classes(target.classes) if target.classes else data
    train, _ = split_budget(
        data.train.labels, per_class=target.per_class, fraction=target.fraction, validation=validation, seed=1
    )
    assert training_images(target) == len(train)


def test_a_folder_s_own_validation_part_leaves_the_budget_whole(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 2), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((9, 9, 3), 10 * i, np.uint8)).save(tmp_path / part / name / f"{i}.png")
    assert training_images(Target(data=f"folder:{tmp_path}", validation=0.5)) == 8
    found = run_of(study([row()], targets={"few": {"data": f"folder:{tmp_path}"}}))
    assert found.recipe == PRESETS["strong"](images=8, image_size=64, network=NETWORK, method="scratch")


def test_digits_are_neither_mirrored_nor_cropped_unless_one_says_so() -> None:
    for method in ("finetune", "frozen"):
        found = run_of(study([row(target="digits", method=method)])).recipe
        assert (found.augment, found.views, found.test_flip) == ("none", 0, False)
    mine = {"mine": {"preset": "strong", "augment": "flip"}}
    assert run_of(study([row(target="digits", recipe="mine")], recipes=mine)).recipe.augment == "flip"


def test_episodes_have_no_augmented_views() -> None:
    targets = {"few": {"data": "cifar10", "episodes": {"ways": 5, "shots": 1}}}
    assert run_of(study([row(method="frozen")], targets=targets)).recipe.views == 0


def test_a_class_that_there_is_not_is_left_for_the_check_to_refuse() -> None:
    assert run_of(study([row()], targets={"few": {"data": "cifar10", "classes": ["cat", "dgo"]}})).recipe.preset is None


def test_sweeps_stand_beside_a_preset() -> None:
    runs = plan(study([row(recipe="mine")], recipes={"mine": {"preset": "standard", "lr": [0.1, 0.2], "epochs": 4}}))
    assert {(run.recipe_name, run.recipe.lr, run.recipe.epochs) for run in runs} == {
        ("mine lr=0.1", 0.1, 4),
        ("mine lr=0.2", 0.2, 4),
    }


def test_fields_that_do_not_go_together_are_refused_with_row_and_recipe() -> None:
    mine = study([row(recipe="mine", method="frozen")], recipes={"mine": {"preset": "fast", "views": 2}})
    with pytest.raises(StudyError, match=r"^row 'row': recipes\.mine: with the fields of preset 'fast': `views`"):
        plan(mine)


def test_a_set_of_unknown_size_keeps_its_preset_and_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))
    assert not dataset_info("flowers102").known
    rows = [row("later", target="fetched later"), row("gone", target="gone"), row()]
    targets = {**study().model_dump(include={"targets"})["targets"], "gone": {"data": f"folder:{tmp_path / 'gone'}"}}
    runs = {run.row: run for run in plan(study(rows, targets=targets))}
    assert {name: run.recipe.preset for name, run in runs.items()} == {"later": "strong", "gone": "strong", "row": None}
    assert "fetch it with `regraft data get flowers102`" in str(size_unknown(runs["later"]))


def test_files_keep_presets_and_what_was_given_beside_them(tmp_path: Path) -> None:
    recipes = {"mine": {"preset": "strong", "label_smoothing": 0.0, "lr": [0.1, 0.05]}}
    before = study([row("scratch"), row(recipe="mine")], recipes=recipes)
    file = tmp_path / "study.yaml"
    file.write_text(before.to_yaml(), "utf-8")
    recorded = Results(before, [], [], 0).to_json(tmp_path / "results.json")
    for after in (Study.from_yaml(file), Results.from_json(recorded).study):
        assert after == before
        assert plan(after) == plan(before)
    written = yaml.safe_load(before.to_yaml())["recipes"]["mine lr=0.1"]
    assert written == {"preset": "strong", "lr": 0.1, "label_smoothing": 0.0}


def test_the_schema_of_a_study_asks_for_no_recipes() -> None:
    schema = json.loads(json.dumps(Study.model_json_schema()))
    assert "recipes" not in schema["required"]
    assert "preset" in schema["$defs"]["Recipe"]["properties"]


def test_the_plan_tells_each_recipe_that_was_made_once() -> None:
    rows = [row("a"), row("b"), row("c", recipe="plain"), row("d", method="frozen", head="prototype", recipe=[])]
    made = study(rows, recipes={"plain": {"epochs": 2}})
    lines = told(made, plan(made))
    (line,) = [line for line in lines if "strong" in line]
    assert "for 'a' and 1 more (450 images of 32 px, timm/test_resnet from scratch)" in line
    assert "epochs 1667, batch_size 32, lr 0.025" in lines[lines.index(line) + 1]
    plain = study([row(recipe="plain")], recipes={"plain": {}})
    assert told(plain, plan(plain)) == []
