"""Broken study files are refused with a message, in bounded time and memory. In full: tests.harness.fuzz_studies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from regraft.errors import StudyError, UnknownName
from regraft.spec import Recipe, Row, Study, Target
from tests.harness import fuzz_studies
from tests.unit.test_spec import SMALL, changed

ONE = {"study": "x", "sources": {"s": {"network": "resnet18"}}, "targets": {"t": {"data": "digits"}}}


def read(tmp_path: Path, text: str) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(text, "utf-8")
    return Study.from_yaml(file)


@pytest.mark.parametrize("n", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_broken_study_is_planned_or_refused_with_a_message(n: int) -> None:
    pytest.importorskip("hypothesis")
    tried = fuzz_studies.run(n, seed=1)
    assert len(tried) == n
    assert [one for one in tried if one.outcome == "FAILED"] == []
    assert {"accepted", "StudyError"} <= {one.outcome for one in tried}


@pytest.mark.slow
def test_the_same_seed_tries_the_same_files() -> None:
    made = [[(one.made, one.outcome) for one in fuzz_studies.run(60, seed=2)] for _ in range(2)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("path", "value"),
    [("recipes.short.epochs", True), ("recipes.short.lr", True), ("targets.few.per_class", True), ("seeds", True),
     ("seeds", [0, True]), ("rows.0.seeds", [False]), ("rows.0.original", True), ("recipes.short.weight_decay", False)],
)  # fmt: skip
def test_yes_and_no_are_not_numbers(path: str, value: object) -> None:
    with pytest.raises(StudyError, match="yes, no, true, false, on and off are not taken here"):
        Study.from_dict(changed(path, value))


def test_yes_and_no_are_taken_where_they_answer_something() -> None:
    assert Recipe(refit=True).refit
    assert Target(data="digits", per_class=3, unlabelled=True).unlabelled


def test_bytes_are_no_way_around_the_check_of_a_name(tmp_path: Path) -> None:
    """`!!binary` gives bytes, which pydantic would decode: here to an escape sequence."""
    text = yaml.safe_dump(SMALL)
    for field in ("study", "question"):
        with pytest.raises(StudyError, match="no text"):
            read(tmp_path, f"{text}\n{field}: !!binary G1szMW0=\n" if field not in SMALL else
                 yaml.safe_dump({**SMALL, field: b"\x1b[31m"}))  # fmt: skip
    with pytest.raises(ValueError, match="no text"):
        Row(name=b"\x1b[31m", source="s", target="t", recipe=("r",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seeds": list(range(5000)), "rows": [{"name": f"r{i}", "source": "s", "target": "t", "recipe": "fast"}
                                               for i in range(1000)]}, "5,000,000 runs"),
        ({"grid": [{"source": "s", "target": "t", "recipe": "fast", "seeds": list(range(30_000))}] * 20},
         "600,000 runs"),
        ({"recipes": {f"r{i}": {"lr": [j / 99 for j in range(1, 32)], "weight_decay": [j / 99 for j in range(1, 32)]}
                      for i in range(2000)}, "rows": [{"name": "r", "source": "s", "target": "t", "recipe": "r0"}]},
         "recipes: more than 10,000"),
    ],
    ids=["rows x seeds", "grids x seeds", "lists of recipes"],
)  # fmt: skip
def test_a_few_lines_that_ask_for_millions_of_runs_are_refused_at_once(fields: dict[str, Any], said: str) -> None:
    started = time.process_time()
    with pytest.raises(StudyError, match=said):
        Study.from_dict({**ONE, **fields})
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "text",
    [
        "seeds: 1" + ":1" * 100_000,
        "rows: [" + "a," * 60_000 + "]",
        "a: !" + "x" * 100_000,
        "- " * 50_000,
        "[" * 100_000,
    ],
    ids=["base 60", "values", "tag", "block lists", "flow lists"],
)
def test_text_that_would_take_its_reader_long_is_refused_in_time(tmp_path: Path, text: str) -> None:
    started = time.process_time()
    with pytest.raises(StudyError) as caught:
        read(tmp_path, text)
    assert time.process_time() - started < 4  # a busy machine
    assert len(str(caught.value)) < 2000


def test_a_message_about_one_of_many_names_stays_short() -> None:
    sources = {f"n{i}" * 20: {"network": "resnet18"} for i in range(5000)}
    rows = [{"name": "r", "source": "y" * 4000, "target": "t", "recipe": "fast"}]
    with pytest.raises(UnknownName) as caught:
        Study.from_dict({**ONE, "sources": sources, "rows": rows})
    assert len(str(caught.value)) < 4000
