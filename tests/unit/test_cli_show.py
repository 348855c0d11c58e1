"""`regraft figure`, `compare`, `table` and `track` on the results of a study that was made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from regraft import cli_show
from regraft.errors import RegraftError, StoreError, StudyError
from regraft.show import gallery
from tests.unit.show_example import grid_of_cuts, seven_rows

app = typer.Typer()
cli_show.add_to(app)


@app.callback()
def options() -> None:
    """So that commands keep their names."""


@pytest.fixture
def results(tmp_path: Path) -> str:
    return str(seven_rows().to_json(tmp_path / "results.json"))


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    if isinstance(done.exception, RegraftError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_figure_is_drawn_into_the_file(results: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert str(file) in run("figure", "rows", results, "-o", str(file), "--size", "column", "--dark").replace("\n", "")
    assert json.loads(file.read_text("utf-8"))["description"].startswith("Test accuracy of 7 rows")


def test_the_list_names_every_figure_and_what_those_without_need(results: str) -> None:
    told = run("figure", "--list", results)
    assert [line.partition(":")[0] for line in told.splitlines()] == list(gallery.FIGURES)
    assert "transfer: nothing to draw: it needs" in told


def test_a_study_must_be_named(results: str) -> None:
    with pytest.raises(StudyError, match="name the figure and the study"):
        run("figure", "rows")
    with pytest.raises(StudyError, match="other-store"):
        run("compare", results)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"study": 3, "cells": 4}', '{"study": {}, "cells": [{}]}'])
def test_a_file_that_is_no_results_is_said_to_be_none(content: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(content, "utf-8")
    with pytest.raises(StudyError):
        run("table", str(file))
    with pytest.raises(StudyError, match="No such file"):
        run("table", str(tmp_path / "none.json"))


def test_what_is_wrong_in_the_study_of_a_results_file_is_said_as_of_any_study(results: str) -> None:
    content = json.loads(Path(results).read_text("utf-8"))
    content["study"]["rows"][0]["metod"] = "frozen"
    Path(results).write_text(json.dumps(content), "utf-8")
    with pytest.raises(StudyError, match=r"rows\[0\]\.metod: unknown field; did you mean 'method'\?") as raised:
        run("table", results)
    assert "no results.json" not in str(raised.value)


def test_a_study_is_compared_with_itself_and_is_equal(results: str, tmp_path: Path) -> None:
    told = run("compare", results, results)
    assert "7 rows matched: 7 equal" in told
    data = json.loads(run("compare", results, results, "--json"))
    assert {row["verdict"] for row in data["rows"]} == {"equal"}
    page = tmp_path / "compare.html"
    run("compare", results, results, "--by", "source, cut,method,target", "-o", str(page))
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_one_study_in_two_stores_is_compared(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no scored row of quickstart"):
        run("compare", "quickstart", "--store", str(tmp_path / "a"), "--other-store", str(tmp_path / "b"))


def test_a_table_is_printed_or_written(results: str, tmp_path: Path) -> None:
    assert run("table", results, "--format", "latex").splitlines()[2] == "\\toprule"
    assert run("table", results, "--cells").startswith("row,seed,accuracy")
    file = tmp_path / "table.md"
    run("table", results, "-o", str(file))
    assert file.read_text("utf-8").startswith("| row | accuracy")
    with pytest.raises(StudyError, match="--out"):
        run("table", results, "--format", "parquet")


@pytest.mark.parametrize("words", [("figure", "rows"), ("table",), ("compare",)])
def test_a_place_that_cannot_be_written_is_named(results: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / ("out.md" if words[0] != "figure" else "out.json"))
    with pytest.raises(StoreError, match="cannot write"):
        run(*words, results, *([results] if words[0] == "compare" else []), "--out", out)


def test_a_uri_is_mlflows_alone(results: str) -> None:
    with pytest.raises(StudyError, match="--uri is of mlflow"):
        run("track", results, "--to", "tensorboard", "--uri", "file:///nowhere")


def test_a_name_of_another_study_s_figure_is_refused(tmp_path: Path) -> None:
    file = grid_of_cuts().to_json(tmp_path / "cuts.json")
    with pytest.raises(StudyError, match="has nothing to draw for the figure 'transfer'"):
        run("figure", "transfer", str(file))


def test_runs_are_tracked_once_and_it_is_said_where(results: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ("track", results, "--to", "tensorboard", "--folder", str(tmp_path / "board"))
    assert run(*words).replace("\n", "") == f"21 runs written to {tmp_path / 'board'}"
    assert len(list((tmp_path / "board").rglob("events.out.*"))) == 21
    assert run(*words).replace("\n", "") == f"0 runs written to {tmp_path / 'board'}, 21 were there already"
