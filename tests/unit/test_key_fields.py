"""Which fields of a head, a recipe or a method change the key of a fit, and which are never read."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.spec import Head, Recipe
from regraft.spec.tuning import Tuning
from tests.unit.test_keys import Plan, of

__all__ = ["of"]  # the fixture

# A value of each field that is not its default.
CHANGED_RECIPE: dict[str, Any] = {
    "epochs": 4, "batch_size": 7, "lr": 0.3, "momentum": 0.5, "weight_decay": 0.25, "schedule": "constant",
    "warmup": 0.5, "label_smoothing": 0.1, "augment": "flip", "policy": "color", "cutout": 0.5, "mixup": 0.2,
    "cutmix": 0.3, "views": 2, "ema": 0.9, "sam": 0.05, "semi": "fixmatch", "threshold": 0.8, "ratio": 3,
    "test_flip": True, "keep": "best", "patience": 5, "refit": True,
}  # fmt: skip
CHANGED_HEAD: dict[str, Any] = {
    "pool": "grid-2", "hidden": 9, "dropout": 0.5, "neighbours": 3, "share": 0.5, "lasso": 0.1, "start": "source",
}  # fmt: skip
STEPS = set(CHANGED_RECIPE) - {"threshold", "ratio", "refit"}  # a refit is told of the run, not of its recipe
IMAGES = {"augment", "policy", "cutout", "views"}
READ_BY = {
    "sgd": STEPS, "sgdw": STEPS, "adamw": STEPS - {"momentum"}, "lbfgs": {"epochs", "weight_decay"} | IMAGES,
    "ridge": {"weight_decay"} | IMAGES, "none": set(),
}  # fmt: skip
HEADS_READ = {
    "linear": {"pool"}, "mlp": {"pool", "hidden", "dropout"}, "rest": set(), "prototype": {"pool"},
    "knn": {"pool", "neighbours"}, "head2toe": {"pool", "share", "lasso"},
}  # fmt: skip


def recipe_spec(of: Plan, **fields: Any) -> dict[str, Any]:
    run = of.run("source")
    found: dict[str, Any] = of.keys.fit(run.model_copy(update={"recipe": run.recipe.model_copy(update=fields)}))
    return found


def test_every_field_is_tried() -> None:
    assert set(CHANGED_RECIPE) == set(Recipe.model_fields) - {"optimizer", "preset"}
    assert set(CHANGED_HEAD) == set(Head.model_fields) - {"kind"}


@pytest.mark.parametrize("optimizer", READ_BY)
def test_the_fields_that_an_optimizer_reads_are_in_the_spec_and_no_others(of: Plan, optimizer: str) -> None:
    usual = recipe_spec(of, optimizer=optimizer)
    assert usual["recipe"]["optimizer"] == optimizer
    for name, value in CHANGED_RECIPE.items():
        changed = recipe_spec(of, optimizer=optimizer, **{name: value})
        assert (changed["recipe"] != usual["recipe"]) == (name in READ_BY[optimizer]), name
        if name in READ_BY[optimizer]:
            assert changed["recipe"] == {**usual["recipe"], name: value}


@pytest.mark.parametrize("kind", HEADS_READ)
def test_the_fields_that_a_head_reads_are_in_the_spec_and_no_others(of: Plan, kind: str) -> None:
    run = of.run("source")

    def spec(**fields: Any) -> dict[str, Any]:
        found = of.keys.fit(run.model_copy(update={"head": run.head.model_copy(update={"kind": kind, **fields})}))
        return found["head"]  # type: ignore[no-any-return]

    assert spec()["kind"] == kind
    for name, value in CHANGED_HEAD.items():
        if name != "start":
            expected = {**spec(), name: value} if name in HEADS_READ[kind] else spec()
            assert spec(**{name: value}) == expected, name


def test_details_of_learning_from_unlabelled_images_count_where_it_is_done_and_are_named_where_unusual(
    of: Plan,
) -> None:
    usual = recipe_spec(of, semi="flexmatch")
    assert usual["recipe"] == {**recipe_spec(of)["recipe"], "semi": "flexmatch"}
    assert usual["data"] == {**recipe_spec(of)["data"], "unlabelled": True}
    for name, value in (("threshold", 0.8), ("ratio", 3)):
        assert recipe_spec(of, semi="flexmatch", **{name: value})["recipe"] == {**usual["recipe"], name: value}


def tuned_spec(of: Plan, method: str, **fields: Any) -> Any:
    run = of.run("source").model_copy(update={"method": method, "tuning": Tuning(**fields)})
    found = of.keys.fit(run)
    assert found["method"] == method
    return found.get("tuning")


def test_the_details_of_a_method_are_in_the_spec_and_those_of_others_are_not(of: Plan) -> None:
    assert tuned_spec(of, "finetune", rank=3) is None
    assert tuned_spec(of, "lora", rank=3) == {"rank": 3}
    assert tuned_spec(of, "lora") == {"rank": 8}
    assert tuned_spec(of, "layerwise", decay=0.5, rank=3) == {"decay": 0.5}
    assert tuned_spec(of, "surgical", block="layer2") == {"block": "layer2"}


def test_what_becomes_of_norms_is_in_the_spec_where_it_is_not_the_usual(of: Plan) -> None:
    assert tuned_spec(of, "frozen", norms="source") is None
    assert tuned_spec(of, "frozen", norms="target") == {"norms": "target"}
    assert tuned_spec(of, "finetune", norms="all") is None
    assert tuned_spec(of, "lora", norms="source") == {"rank": 8, "norms": "source"}


@pytest.mark.parametrize("name", ["method", "cut", "seed", "refit", "image_size", "per_class", "classes", "validation"])
def test_changing_what_determines_a_fit_changes_its_key(of: Plan, name: str) -> None:
    run = of.run("source")
    values: dict[str, Any] = {
        "method": "frozen", "cut": "layer2", "seed": 5, "refit": True, "image_size": 40, "per_class": 5,
        "classes": ("1", "0"), "validation": 0.5,
    }  # fmt: skip
    update = {name: values[name]}
    if name == "image_size":
        update = {"source": run.source.model_copy(update=update)}
    elif name in type(run.target).model_fields:
        update = {"target": run.target.model_copy(update=update)}
    assert of.keys.fit_key(run.model_copy(update=update)) != of.keys.fit_key(run)


def test_names_and_the_limit_of_test_images_change_no_fit(of: Plan) -> None:
    run = of.run("source")
    limited = run.target.model_copy(update={"test_images": 3})
    for update in (
        {"row": "source", "recipe_name": "other"},
        {"target_name": "other"},
        {"source_name": "other"},
        {"target": limited},
    ):
        assert of.keys.fit_key(run.model_copy(update=update)) == of.keys.fit_key(run)
    assert of.keys.score(run.model_copy(update={"target": limited}))["test"] == {"images": 3}
