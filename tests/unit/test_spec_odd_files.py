"""Odd study files: each is refused with a StudyError that says where and what, at once; none crashes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from regraft.errors import StudyCycle, StudyError, UnknownName
from regraft.spec import Grid, Row, Source, Study, Target
from tests.unit.test_spec import SMALL, changed

HUGE = 10**5000
GRID = {"source": "scratch", "target": ["digits", "few"], "recipe": "short"}
UNPRINTABLE = {
    "surrogate": "a\ud800",
    "newline": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "escape": "a\x1b[31mb",
    "null": "a\0b",
    "next line": "a\x85b",
    "line separator": "a\u2028b",
}


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(StudyError) as caught:
        Study.from_dict(data)
    str(caught.value).encode()  # can be printed
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


# --- names of grids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "at least 1 character"),
        (" ", "blank"),
        ("{source:>300}", "a field stands alone in its braces, as {source}"),
        ("{source:>999999999}", "a field stands alone"),
        ("{source:{target}}", "a field stands alone"),
        ("{source!r}", "a field stands alone"),
        ("{source[a]}", "no field 'source[a]'"),
        ("{source.upper}", "no field 'source.upper'"),
        ("{source.__class__}", "no field"),
        ("{}", "no field ''"),
        ("{0}", "no field '0'"),
        ("{recipe}", "fields: source, cut, method, head, target"),
        ("{source", "cannot fill '{source'"),
        ("}", "cannot fill '}'"),
        ("x" * 201 + "{target}", "at most 200 characters"),
        ("{source}" * 40 + "{target}", "at most 200 characters"),
    ],
)
def test_a_grid_name_holds_plain_fields_only(name: str, said: str) -> None:
    started = time.process_time()
    message = refusal({**SMALL, "grid": [{**GRID, "name": "{target}"}, {**GRID, "name": name}]})
    assert message.startswith("study: grid[1].name: ")
    assert said in message
    assert time.process_time() - started < 1


def test_doubled_braces_in_a_grid_name_stand_for_themselves() -> None:
    study = Study.from_dict({**SMALL, "grid": {**GRID, "name": "{{{target}}}"}})
    assert [row.name for row in study.all_rows()][2:] == ["{digits}", "{few}"]


# --- text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*UNPRINTABLE.values(), " "], ids=[*UNPRINTABLE, "blank"])
@pytest.mark.parametrize(
    "path",
    [
        "study", "rows.0.name", "rows.0.source", "rows.0.target", "rows.0.cut", "rows.1.recipe.0", "rows.0.recipe",
        "sources.scratch.network", "sources.scratch.weights", "sources.trained.run", "targets.few.data",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_seen_is_refused_with_its_path(path: str, text: str) -> None:
    where = path.replace(".0", "[0]").replace(".1", "[1]")
    assert refusal(changed(path, text)).startswith(f"study: {where}")


@pytest.mark.parametrize("text", [*UNPRINTABLE.values(), " "], ids=[*UNPRINTABLE, "blank"])
@pytest.mark.parametrize("table", ["sources", "targets", "recipes"])
def test_a_part_whose_name_cannot_be_seen_is_refused(table: str, text: str) -> None:
    data = changed(f"{table}.{text}", next(iter(SMALL[table].values())))
    assert refusal(data).startswith(f"study: {table}.")


@pytest.mark.parametrize("text", [*UNPRINTABLE.values(), " "], ids=[*UNPRINTABLE, "blank"])
def test_a_class_whose_name_cannot_be_seen_is_refused(text: str) -> None:
    assert refusal(changed("targets.few.classes", ["a", text])).startswith("study: targets.few.classes[1]: ")


@pytest.mark.parametrize("field", ["question", "cost", "rows.0.note"])
def test_sentences_may_have_lines_but_nothing_that_steers_a_terminal(field: str, tmp_path: Path) -> None:
    study = Study.from_dict(changed(field, "one\n\ttwo\n"))
    path = tmp_path / "again.yaml"
    path.write_text(study.to_yaml(), "utf-8")
    assert Study.from_yaml(path) == study
    for text in ("\ud83d\ude00", "\x1b[31m", "\0", "\r"):
        assert "cannot be printed" in refusal(changed(field, text))


@pytest.mark.parametrize("place", ["", "rows.0.", "recipes.short.", "sources.scratch."])
@pytest.mark.parametrize("field", ["\ud800", "\x1b[31m", "x" * 10_000, "self", "cls", "\n"])
def test_an_odd_field_is_refused_printably(place: str, field: str) -> None:
    refusal(changed(f"{place}{field}", 1))


@pytest.mark.parametrize("path", ["rows.0.method", "rows.0.head", "recipes.short.keep", "recipes.short.lr"])
def test_an_odd_word_is_refused_printably(path: str) -> None:
    for word in ("\ud800", "\x1b[31m", "x" * 10_000):
        assert path.rpartition(".")[2] in refusal(changed(path, word))


def test_ordinary_names_in_any_script_are_taken(tmp_path: Path) -> None:
    data = changed("rows.0.name", "école 学校 🏫, 50 % (a/b): “x”")
    data["sources"]["trained"]["run"] = data["rows"][0]["name"]
    path = tmp_path / "names.yaml"
    path.write_text(Study.from_dict(data).to_yaml(), "utf-8")
    assert Study.from_yaml(path).rows[0].name == data["rows"][0]["name"]


# --- numbers, lists ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["seeds", "seeds.0", "rows.0.seeds", "rows.0.name", "recipes.short.epochs", "recipes.short.lr", "study",
     "targets.few.per_class", "targets.few.classes", "sources.scratch", "rows", "question", "rows.0.original"],
)  # fmt: skip
def test_a_number_of_5000_digits_is_refused(path: str) -> None:
    for value in (HUGE, [HUGE], {"a": HUGE}, -HUGE):
        assert path.split(".")[0] in refusal(changed(path, value))


def test_a_field_that_is_a_number_of_5000_digits_is_refused() -> None:
    with pytest.raises(UnknownName, match="unknown field a value of type int that is too large to show"):
        Study.from_dict({HUGE: 1})
    data = changed("rows.0", {**SMALL["rows"][0], HUGE: 1})
    assert "rows[0]" in refusal(data)


def test_a_single_seed_stands_for_a_list_of_one() -> None:
    study = Study.from_dict({**changed("rows.0.seeds", 5), "seeds": 0, "grid": {**GRID, "seeds": 7}})
    assert study.seeds == (0,)
    assert study.rows[0].seeds == (5,)
    assert study.grid[0].seeds == (7,)
    assert study.rows[1].seeds is None


def test_a_single_grid_stands_for_a_list_of_one_in_python_too() -> None:
    grid = Grid(source=("scratch",), target=("digits",), recipe=("short",))
    assert Study(**{**SMALL, "grid": grid}) == Study(**{**SMALL, "grid": [grid]})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seeds", [3, 3]),
        ("rows.0.seeds", [1, 2, 1]),
        ("rows.1.recipe", ["short", "short"]),
        ("grid.seeds", [1, 1]),
        ("grid.recipe", ["short", "long", "short"]),
        ("grid.source", ["scratch", "scratch"]),
        ("grid.target", ["few", "few"]),
        ("targets.few.classes", ["1", "1"]),
        ("targets.few.classes", [1, "1"]),
    ],
)
def test_what_is_listed_twice_is_refused(path: str, value: list[object]) -> None:
    data = changed(path, value) if path[:4] != "grid" else {**SMALL, "grid": {**GRID, path[5:]: value}}
    where = path.replace("rows.0", "rows[0]").replace("rows.1", "rows[1]").replace("grid", "grid[0]")
    assert refusal(data).startswith(f"study: {where}: these must differ from each other, got [")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("rows.0.seeds", ["x"], "rows[0].seeds[0]: Input should be a valid integer"),
        ("rows.0.recipe", [3], "rows[0].recipe[0]: Input should be a valid string, got 3. In YAML, put it in quotes."),
        ("seeds", [-1], "seeds[0]: Input should be greater than or equal to 0, got -1."),
        ("targets.few.classes", [True, 1.5], "targets.few.classes[0]: a class name is text, got True"),
    ],
)
def test_a_wrong_item_is_not_also_called_a_list_that_is_too_short(path: str, value: object, said: str) -> None:
    message = refusal(changed(path, value))
    assert said in message
    assert "at least" not in message


def test_a_list_that_is_too_short_is_still_called_so() -> None:
    for path, value in (("seeds", []), ("targets.few.classes", ["a"])):
        assert "at least" in refusal(changed(path, value))


def test_numbers_are_class_names_and_other_unquoted_words_are_not(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(yaml.safe_dump(changed("targets.few.classes", [5, "6", 77])))
    study = Study.from_yaml(path)
    assert study.targets["few"].classes == ("5", "6", "77")
    path.write_text(study.to_yaml())
    assert Study.from_yaml(path) == study
    for word in ("yes", "1.5", "2024-01-01", "null", ".nan"):
        path.write_text(yaml.safe_dump(SMALL).replace("per_class: 10", f"classes: [a, {word}]"))
        with pytest.raises(StudyError, match=r"targets.few.classes\[1\]: a class name is text, got .*in quotes"):
            Study.from_yaml(path)


def test_names_are_text_of_a_length_that_can_be_a_path_s() -> None:
    assert "bytes (a `!!binary`) are no text" in refusal(changed("rows.0.name", b"name"))
    assert "longer than 4,096 characters: 'xxx" in refusal(changed("rows.0.name", "x" * 4097))
    assert "longer than 100,000 characters" in refusal(changed("question", "x" * 100_001))
    assert "'\\x07', which cannot be printed" in refusal(changed("rows.0.name", "a\a"))


# --- text that is no study -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question: !!timestamp foo\n", "not readable as YAML"),
        ('question: !!timestamp ""\n', "not readable as YAML"),
        ("question: !!bool foo\n", "not readable as YAML"),
        ('question: !!int ""\n', "not readable as YAML"),
        ("question: !!int foo\n", "not readable as YAML"),
        ('question: !!float ""\n', ""),
        ("question: 0000-00-00\n", "not readable as YAML"),
        (f"question: {'1:' * 400}1.5\n", "not readable as YAML"),
        (f"seeds: [{'9' * 5000}]\n", "not readable as YAML"),
        (f"seeds: [0x{'f' * 5000}]\n", "seeds[0]: "),
        (f"? 0x{'f' * 5000}\n: 1\n", "unknown field"),
        ("question: !!binary foo\n", ""),
        ("question: !!set {a, b}\n", "question"),
        ("recipes: {r: {<<: {lr: 1}}}\n", "line 1: merge keys (<<) are not used in study files"),
        ("<<: {study: x}\n", "line 1: merge keys"),
        ("? [a, b]\n: c\n", "not valid YAML"),
        ("self: 1\n", "self: unknown field"),
        ("=: 1\n", "=: unknown field"),
        ("rows: [{1: 2}]\n", "rows[0]"),
        ("sources: [a]\n", "sources"),
        ("sources: {a: b}\n", "sources.a"),
        ("grid: 3\n", "grid"),
        ("grid: [[[]]]\n", "grid[0]"),
    ],
)
def test_text_with_yamls_oddities_is_refused_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        Study.from_yaml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


# --- chains and choices --------------------------------------------------------------------------------------


def chain(n: int, first: str) -> dict[str, Any]:
    """n rows, each with the one before as its source; the first has `first`."""
    rows = [
        {"name": f"r{i}", "source": f"from r{i - 1}" if i else first, "target": "digits", "recipe": "short"}
        for i in range(n)
    ]
    sources = {"scratch": {"network": "resnet18"}, **{f"from r{i}": {"run": f"r{i}"} for i in range(n)}}
    return {**SMALL, "sources": sources, "rows": rows[::-1]}


def test_a_chain_of_2000_sources_is_refused_in_a_second() -> None:
    data = chain(2000, "scratch")
    start = time.process_time()
    with pytest.raises(StudyError, match="at most 50"):
        Study.from_dict(data)
    assert time.process_time() - start < 1.0
    assert len(Study.from_dict(chain(50, "scratch")).all_rows()) >= 50


def test_a_cycle_at_the_end_of_a_chain_is_refused_with_the_cycle_alone() -> None:
    with pytest.raises(StudyCycle) as caught:
        Study.from_dict(chain(30, "from r1"))
    assert "sources.from r1.run: a cycle: 'r1' <- 'r0' <- 'r1'." in str(caught.value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"data": "digits", "validation": 0}, "(validation: 0). Use a recipe with `keep: last`, or set validation"),
        ({"data": "digits", "per_class": 1}, "(per_class: 1, which trains). Use a recipe with `keep: last`, or raise"),
    ],
)
def test_the_best_epoch_needs_validation_images(target: dict[str, Any], said: str) -> None:
    data = changed("recipes.short.keep", "best")
    data["targets"]["digits"] = target
    message = refusal(data)
    assert "rows[0].recipe: 'short' keeps the best epoch on validation, but target 'digits' keeps no images" in message
    assert said in message
    data["recipes"]["short"]["keep"] = "last"
    Study.from_dict(data)


def test_a_folder_may_bring_the_validation_images_that_one_label_per_class_leaves_none_for() -> None:
    assert Target(data="folder:x", per_class=1).holds_out
    assert not Target(data="digits", per_class=1).holds_out
    assert not Target(data="folder:x", validation=0).holds_out


def test_parts_built_in_python_meet_the_same_checks() -> None:
    with pytest.raises(ValueError, match="cannot be printed"):
        Row(name="a\nb", source="s", target="t", recipe=("r",))
    with pytest.raises(ValueError, match="cannot be printed"):
        Source(network="res\ud800net")
    with pytest.raises(ValueError, match="must differ"):
        Target(data="digits", classes=("a", "a"))


@pytest.mark.parametrize(("theirs", "ours"), [("learning_rate", "lr"), ("bs", "batch_size"), ("scheduler", "schedule")])
def test_names_of_other_tools_are_translated(theirs: str, ours: str) -> None:
    data = chain(1, "scratch")
    data["recipes"] = {"short": {theirs: 1}}
    with pytest.raises(StudyError, match=f"here it is '{ours}'"):
        Study.from_dict(data)
