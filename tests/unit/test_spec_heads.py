"""Laws of heads, sweeps, views and episodes in the study file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.errors import StudyError, UnknownName
from regraft.spec import Head, Study
from regraft.spec.sweeps import swept_from
from regraft.study.plan import plan

BASE: dict[str, Any] = {
    "study": "heads",
    "seeds": [0],
    "sources": {"net": {"network": "resnet18"}},
    "targets": {"digits": {"data": "digits"}, "shots": {"data": "digits", "episodes": {"ways": 3}}},
    "recipes": {"one": {"epochs": 2}, "sweep": {"optimizer": "ridge", "weight_decay": [0.1, 1, 1e-5]}},
    "rows": [{"name": "a", "source": "net", "method": "frozen", "target": "digits", "recipe": ["one", "sweep"]}],
}


def with_row(**row: Any) -> dict[str, Any]:
    return {**BASE, "rows": [{**BASE["rows"][0], **row}]}


def with_recipe(**recipe: Any) -> dict[str, Any]:
    return {**BASE, "recipes": {**BASE["recipes"], "sweep": recipe}}


def test_a_list_is_one_recipe_for_each_number() -> None:
    study = Study.from_dict(BASE)
    names = ["one", "sweep weight_decay=0.1", "sweep weight_decay=1", "sweep weight_decay=1e-05"]
    assert list(study.recipes) == names
    assert list(study.row("a").recipe) == names
    assert [run.recipe.weight_decay for run in plan(study)][1:] == [0.1, 1.0, 1e-5]


def test_two_lists_are_every_combination() -> None:
    study = Study.from_dict(with_recipe(lr=[0.1, 0.2], weight_decay=[0.0, 1e-4, 1e-3]))
    assert len(study.recipes) == 1 + 6
    assert "sweep lr=0.1 weight_decay=0.001" in study.recipes


def test_a_swept_study_survives_the_round_trip(tmp_path: Path) -> None:
    study = Study.from_dict({**BASE, "grid": {"source": "net", "target": "digits", "recipe": "sweep"}})
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    assert Study.from_yaml(tmp_path / "study.yaml") == study


@pytest.mark.parametrize("values", [[], ["a"], [[1]], [True], [0.1, "b"], list(range(1, 2000)), [float("nan")]])
def test_a_list_that_is_no_sweep_is_refused_at_its_field(values: list[object]) -> None:
    with pytest.raises(StudyError, match=r"recipes\.sweep.*lr"):
        Study.from_dict(with_recipe(lr=values))


def test_numbers_that_print_alike_stay_apart() -> None:
    assert len(Study.from_dict(with_recipe(lr=[0.1, 0.1000000001])).recipes) == 3


def test_the_parts_of_a_sweep_are_known_by_the_name_it_has_in_the_file() -> None:
    study = Study.from_dict(with_recipe(lr=[0.1, 0.2], weight_decay=[0.0, 1e-4]))
    assert {swept_from(name) for name in study.recipes} == {"one", "sweep"}
    assert swept_from("lr=0.1") == "lr=0.1"  # somebody's own name
    assert swept_from("with lr=0.1 and more") == "with lr=0.1 and more"


def test_rows_made_in_python_name_the_recipes_of_a_sweep_themselves() -> None:
    row = Study.from_dict(BASE).rows[0]
    assert Study(**{**BASE, "rows": (row,)}).rows == (row,)
    with pytest.raises(UnknownName, match=r"rows\[0\]\.recipe: no recipe 'sweep'"):
        Study(**{**BASE, "rows": (row.model_copy(update={"recipe": ("sweep",)}),)})


@pytest.mark.parametrize("rows", ["a", 3, {"recipe": 3}, [{"recipe": 3}], [["a"]]])
def test_rows_that_are_none_are_refused_beside_a_sweep_as_without(rows: object) -> None:
    said = []
    recipes: dict[str, Any]
    for recipes in (BASE["recipes"], {"one": {}}):
        with pytest.raises(StudyError, match="rows") as raised:
            Study.from_dict({**BASE, "recipes": recipes, "rows": rows})
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"kind": "linear", "hidden": 8}, "`hidden` belongs to the mlp head"),
        ({"kind": "mlp", "neighbours": 3}, "`neighbours` belongs to the knn head"),
        ({"kind": "rest", "pool": "grid-2"}, "remove `pool`"),
        ({"kind": "linear", "pool": "grid-9"}, "pool"),
        ({"kind": "head2toe", "share": 0}, "share"),
    ],
)
def test_a_head_takes_its_own_fields_only(head: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        Study.from_dict(with_row(head=head))


def test_heads_are_named_by_what_is_not_usual() -> None:
    assert Head().label == "linear"
    assert Head(kind="linear", pool="grid-2").label == "linear grid-2"
    assert Head(kind="knn", neighbours=5).label == "knn 5"
    assert Head(kind="head2toe", share=0.2).label == "head2toe share=0.2"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"views": 3}, "say how with `augment`"),
        ({"augment": "flip", "views": -1}, "views"),
        ({"refit": True, "keep": "best"}, "use `keep: last`"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        Study.from_dict(with_recipe(**recipe))


def test_untrained_heads_of_a_grid_take_none_of_its_recipes() -> None:
    grid = {"source": "net", "method": "frozen", "head": ["linear", "prototype"], "target": "digits", "recipe": "one"}
    study = Study.from_dict({**BASE, "grid": grid})
    linear, prototype = study.all_rows()[1:]
    assert linear.recipe == ("one",)
    assert prototype.recipe == ()
    assert [run.recipe.optimizer for run in plan(study) if run.row == prototype.name] == ["none"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"recipe": []}, "name one recipe or several"),
        ({"head": "knn"}, "remove `recipe`"),
        ({"target": "shots"}, "few-shot episodes"),
    ],
)
def test_rows_without_a_choice_to_make_are_refused_one(row: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        Study.from_dict(with_row(**row))


def test_episodes_say_themselves_how_many_images_they_take() -> None:
    targets = {**BASE["targets"], "shots": {"data": "digits", "per_class": 3, "episodes": {"ways": 3}}}
    with pytest.raises(StudyError, match="remove per_class"):
        Study.from_dict({**BASE, "targets": targets})
    with pytest.raises(UnknownName, match="did you mean 'shots'"):
        Study.from_dict({**BASE, "targets": {"digits": {"data": "digits", "episodes": {"shot": 3}}}})


def test_a_refit_needs_validation_images() -> None:
    targets = {"digits": {"data": "digits", "validation": 0}}
    with pytest.raises(StudyError, match="trains again with the validation images"):
        Study.from_dict({**with_recipe(optimizer="ridge", refit=True), "targets": targets, "rows": [
            {**BASE["rows"][0], "recipe": "sweep"}]})  # fmt: skip


def test_an_episodic_row_is_no_source() -> None:
    data = {**BASE, "sources": {**BASE["sources"], "few": {"run": "few"}}, "rows": [
        {"name": "few", "source": "net", "method": "frozen", "head": "prototype", "target": "shots"},
        {"name": "b", "source": "few", "target": "digits", "recipe": "one"},
    ]}  # fmt: skip
    with pytest.raises(StudyError, match="trains no network"):
        plan(Study.from_dict(data))
