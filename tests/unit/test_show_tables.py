"""Tables in the terminal and in notebooks: complete at every width, hostile names stay text."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from regraft.show.tables import plain_text, results_table
from regraft.study.html import html_table
from tests.unit.show_example import HOSTILE, grid_of_cuts, hostile, seven_rows


@pytest.mark.parametrize("width", [60, 80, 100, 130, 160, 220])
def test_lines_fit_the_width(width: int) -> None:
    for results in (seven_rows(), grid_of_cuts(), hostile()):
        assert max(cell_len(line) for line in plain_text(results, width).splitlines()) <= width


@pytest.mark.parametrize("width", [80, 160])
def test_every_row_shows_accuracy_interval_n_and_the_original(width: int) -> None:
    text = plain_text(seven_rows(), width)
    for row in seven_rows().study.all_rows():
        assert row.name in text
    line = next(line for line in text.splitlines() if line.startswith("1 rn50 scratch"))
    assert re.search(r"95\.2 % \[94\.5, 95\.9\] +3 +80\.0 %", line)


@pytest.mark.parametrize("width", [80, 160])
def test_missing_rows_and_alarms_are_told_below(width: int) -> None:
    text = " ".join(plain_text(seven_rows(), width).split())
    assert "missing: 8 ImageNet, all images: no way to get the weights here" in text
    assert "alarm: 5 rn50, 10 %, seed 1: accuracy 10.2 %" in text


def test_without_original_figures_there_is_no_such_column() -> None:
    assert "original" in plain_text(seven_rows())
    assert "original" not in plain_text(grid_of_cuts())


def test_single_seeds_are_said_to_have_no_interval() -> None:
    assert "n = 1: one seed" in plain_text(grid_of_cuts(seeds=(0,)))
    assert "n = 1: one seed" not in plain_text(grid_of_cuts())


def test_names_cannot_colour_or_reorder_the_terminal() -> None:
    text = plain_text(hostile(), 160)
    assert HOSTILE in text
    assert not set("\x1b\u202e\u202c") & set(text)


def test_names_are_not_read_as_markup() -> None:
    results = seven_rows()
    row = results.study.rows[0].model_copy(update={"note": "[red]not a colour[/red] [/]"})
    study = results.study.model_copy(update={"rows": (row, *results.study.rows[1:])})
    stream = io.StringIO()
    Console(file=stream, width=200).print(results_table(type(results)(study, results.cells, [], 0)))
    assert "[red]not a" in stream.getvalue()


def test_the_notebook_table_shows_every_row_with_its_seeds() -> None:
    html = html_table(seven_rows())
    assert html.count("<tr>") == 1 + len(seven_rows().study.all_rows())
    assert "95.2 %</td>" in html
    assert "95.2 %, 94.9 %, 95.5 %" in html
    assert "no score: no way to get the weights here" in html


def test_the_notebook_table_escapes_every_name() -> None:
    html = html_table(hostile())
    assert "<img" not in html
    assert "</script" not in html
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in html
