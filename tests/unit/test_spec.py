"""Laws of the study file: what is wrong is refused, with its path and the nearest valid name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from regraft.errors import StudyCycle, StudyError, UnknownName
from regraft.spec import Episodes, Grid, Head, Preprocessing, Recipe, Row, Run, Source, Study, Target, presets

SMALL: dict[str, Any] = {
    "study": "small",
    "seeds": [0, 1],
    "sources": {"scratch": {"network": "resnet18", "stem": "cifar"}, "trained": {"run": "first"}},
    "targets": {"digits": {"data": "digits"}, "few": {"data": "digits", "per_class": 10}},
    "recipes": {"short": {"epochs": 2}, "long": {"epochs": 5}},
    "rows": [
        {"name": "first", "source": "scratch", "target": "digits", "recipe": "short"},
        {"name": "second", "source": "trained", "cut": "layer2.1", "method": "frozen", "target": "few",
         "recipe": ["short", "long"]},
    ],
}  # fmt: skip


def changed(path: str, value: object) -> dict[str, Any]:
    """SMALL with the field at `path` ("rows.1.source") set to `value`."""
    data = copy.deepcopy(SMALL)
    *parents, last = path.split(".")
    place: Any = data
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[int(last) if last.isdigit() else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("quesion", "?", ["quesion: unknown field; did you mean 'question'?"]),
        ("rows.1.metod", "frozen", ["rows[1].metod: unknown field; did you mean 'method'?", "recipe"]),
        ("recipes.short.learning_rate", 0.1, ["recipes.short.learning_rate: unknown field", "lr"]),
        ("targets.few.perclass", 3, ["targets.few.perclass", "did you mean 'per_class'?"]),
        ("sources.scratch.wieghts", "random", ["sources.scratch.wieghts", "did you mean 'weights'?"]),
        ("rows.0.head", {"kind": "mlp", "hiden": 3}, ["rows[0].head.hiden", "did you mean 'hidden'?"]),
        ("rows.0.source", "scrach", ["rows[0].source: no source 'scrach'; did you mean 'scratch'?"]),
        ("rows.1.target", "fw", ["rows[1].target: no target 'fw'; did you mean 'few'?"]),
        ("rows.1.recipe", ["short", "lnog"], ["rows[1].recipe: no recipe 'lnog'; did you mean 'long'?"]),
        ("sources.trained.run", "frist", ["sources.trained.run: no row 'frist'; did you mean 'first'?"]),
    ],
)
def test_an_unknown_name_is_refused_with_its_path_and_the_nearest_one(
    path: str, value: object, said: list[str]
) -> None:
    with pytest.raises(UnknownName) as caught:
        Study.from_dict(changed(path, value))
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("recipes.short.epochs", 0, "recipes.short.epochs"),
        ("recipes.short.epochs", "many", "got 'many'"),
        ("recipes.short.lr", float("nan"), "recipes.short.lr"),
        ("recipes.short.lr", float("inf"), "recipes.short.lr"),
        ("seeds", [], "seeds"),
        ("seeds", [3, 3], "seeds: these must differ from each other, got [3, 3]"),
        ("seeds", [-1], "seeds[0]"),
        ("targets.few.fraction", 0.1, "not both"),
        ("targets.few.validation", 0.9, "targets.few.validation"),
        ("sources.scratch.run", "second", "exactly one of `network`"),
        ("sources.trained.stem", "cifar", "remove stem"),
        ("sources.scratch.weights", "imagenet", "sources.scratch.weights"),
        ("sources.scratch.weights", "file:net.safetensors", "need `preprocessing`"),
        ("rows.0.method", "scratch", "`weights` are random"),
        ("rows.0.method", "linear-probe", "`method: frozen` with `head: linear`"),
        ("rows.1.name", "first", "already the name"),
        ("rows", [], "no rows"),
        ("study", "../elsewhere", "study"),
        ("targets.few.validation", 0, "no images for validation"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(path: str, value: object, said: str) -> None:
    data = changed(path, value)
    if path == "targets.few.validation" and value == 0:
        assert len(data["rows"][1]["recipe"]) == 2
    with pytest.raises(StudyError) as caught:
        Study.from_dict(data)
    assert said in str(caught.value)


def test_several_wrong_fields_are_reported_together() -> None:
    data = changed("recipes.short.epochs", 0)
    data["rows"][0]["nmae"] = "x"
    with pytest.raises(StudyError) as caught:
        Study.from_dict(data)
    assert "recipes.short.epochs" in str(caught.value)
    assert "rows[0].nmae" in str(caught.value)


def test_a_source_that_is_its_own_source_is_refused_with_the_chain() -> None:
    data = changed("rows.0.source", "trained")
    with pytest.raises(StudyCycle, match=r"'first' <- 'first'"):
        Study.from_dict(data)
    data = changed("rows.0.source", "other")
    data["sources"]["other"] = {"run": "second"}
    with pytest.raises(StudyCycle, match=r"'first' <- 'second' <- 'first'"):
        Study.from_dict(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study: a\nstudy: b\n", "line 2: key 'study' is given twice"),
        ("sources:\n  a: {network: x, network: y}\n", "key 'network' is given twice"),
        ("a: &x [1]\nb: *x\n", "line 2: anchors and aliases are not used"),
        ("study: [1,\n", "not valid YAML"),
        ("study: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("- a\n- b\n", "a study is a mapping of fields, got list"),
        ("", "a study is a mapping of fields, got NoneType"),
        ("1: x\n", "unknown field 1"),
        ("study: \x00\n", "not valid YAML"),
    ],
)
def test_text_that_is_not_a_study_is_refused_with_the_file_and_the_reason(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        Study.from_yaml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_deep_nesting_bytes_and_folders_are_refused_not_crashed_on(tmp_path: Path) -> None:
    deep = tmp_path / "deep.yaml"
    deep.write_text("[" * 3000 + "]" * 3000)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00study")
    for path in (deep, binary, tmp_path, tmp_path / "absent.yaml", "no\0name"):
        with pytest.raises(StudyError):
            Study.from_yaml(path)


def test_a_missing_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'quickstart'.*cifar-cpu"):
        Study.from_yaml("quickstrat")


def test_yaml_and_python_give_the_same_study(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    in_python = Study(
        study="small",
        seeds=(0, 1),
        sources={"scratch": Source(network="resnet18", stem="cifar"), "trained": Source(run="first")},
        targets={"digits": Target(data="digits"), "few": Target(data="digits", per_class=10)},
        recipes={"short": Recipe(epochs=2), "long": Recipe(epochs=5)},
        rows=(
            Row(name="first", source="scratch", target="digits", recipe=("short",)),
            Row(
                name="second", source="trained", cut="layer2.1", method="frozen", target="few",
                recipe=("short", "long"),
            ),
        ),
    )  # fmt: skip
    assert Study.from_yaml(path) == in_python == Study.from_dict(SMALL)


def test_python_meets_the_same_checks_as_yaml() -> None:
    with pytest.raises(UnknownName, match="did you mean 'question'"):
        Study(**{**SMALL, "quesion": "?"})


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_study_with_question_and_cost_and_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    study = Study.from_yaml(name)
    assert study.study == name
    assert study.question
    assert study.cost
    again = tmp_path / "again.yaml"
    again.write_text(study.to_yaml())
    assert Study.from_yaml(again) == study
    assert Study.from_yaml(again).all_rows() == study.all_rows()


def test_the_presets_that_the_documents_promise_exist() -> None:
    assert {"quickstart", "cifar-cpu", "cifar"} <= set(presets())


def test_a_study_cannot_be_changed() -> None:
    study = Study.from_dict(SMALL)
    for thing, field in ((study, "seeds"), (study.rows[0], "name"), (study.recipes["short"], "lr")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(thing, field, 1)


def test_a_grid_is_every_combination_in_order_with_its_names() -> None:
    data = changed("rows", [])
    data["sources"].pop("trained")
    data["grid"] = {
        "name": "{source} {cut} {method} {head} {target}",
        "source": "scratch", "cut": ["layer1.1", None], "method": ["frozen", "finetune"],
        "head": ["linear", {"kind": "mlp", "hidden": 8}], "target": ["digits", "few"], "recipe": "short",
    }  # fmt: skip
    rows = Study.from_dict(data).all_rows()
    assert len(rows) == 2 * 2 * 2 * 2
    assert rows[0].name == "scratch layer1.1 frozen linear digits"
    assert rows[-1].name == "scratch all finetune mlp hidden=8 few"
    assert rows[-1].head == Head(kind="mlp", hidden=8)
    assert len({row.name for row in rows}) == len(rows)


def test_a_grid_whose_names_collide_or_cannot_be_filled_is_refused() -> None:
    data = changed("rows", [])
    data["sources"].pop("trained")
    grid = {"source": "scratch", "target": ["digits", "few"], "recipe": "short"}
    for name, said in (
        ("{source}", "already the name"),
        ("{sauce}", r"fields: source, cut"),
        ("{", "cannot fill"),
    ):
        with pytest.raises(StudyError, match=said):
            Study.from_dict({**data, "grid": {**grid, "name": name}})


def test_rows_and_grid_stand_side_by_side() -> None:
    data = copy.deepcopy(SMALL)
    data["grid"] = [{"source": "trained", "cut": ["layer1.1", "layer3.1"], "target": "few", "recipe": "short"}]
    assert [row.name for row in Study.from_dict(data).all_rows()][:2] == ["first", "second"]
    assert len(Study.from_dict(data).all_rows()) == 4


def test_the_schema_names_every_field_and_forbids_others() -> None:
    schema = Study.model_json_schema()
    models = {"Study": schema, **schema["$defs"]}
    for model in (Study, Source, Target, Row, Grid, Head, Recipe, Preprocessing):
        assert set(models[model.__name__]["properties"]) == set(model.model_fields)
        assert models[model.__name__]["additionalProperties"] is False


def test_runs_of_one_cell_differ_only_in_their_recipe() -> None:
    study = Study.from_dict(SMALL)
    row = study.row("second")
    names = {"row": row.name, "source_name": row.source, "target_name": row.target, "cut": row.cut}
    parts = {"source": study.sources[row.source], "target": study.targets[row.target], "head": row.head}
    runs = [
        Run.model_validate(
            {
                **names,
                **parts,
                "method": row.method,
                "recipe_name": name,
                "recipe": study.recipes[name],
                "seed": 1,
            }
        )
        for name in row.recipe
    ]
    assert {run.cell for run in runs} == {("second", 1)}
    assert len({run.label for run in runs}) == len(runs)


def test_budgets_are_written_for_tables() -> None:
    assert Target(data="digits").budget == "all"
    assert Target(data="digits", fraction=0.1).budget == "10 %"
    assert Target(data="digits", per_class=50).budget == "50 per class"
    assert Target(data="digits", episodes=Episodes(ways=5, shots=1)).budget == "5-way 1-shot"
