"""Tables for other programs: complete, and hostile names are only text in each of them."""

from __future__ import annotations

import builtins
import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from regraft.analysis.between import between
from regraft.errors import RegraftError, UnknownName
from regraft.show import export
from regraft.study.results import CSV_FIELDS
from tests.unit.show_example import HOSTILE, grid_of_cuts, hostile, seven_rows


def test_csv_has_every_row_with_its_numbers_and_reads_back_exactly() -> None:
    results = seven_rows()
    read = list(csv.DictReader(io.StringIO(export.table(results, "csv").decode())))
    assert [row["row"] for row in read] == [row.name for row in results.study.all_rows()]
    scores = {c.row: [] for c in results.cells}  # type: dict[str, list[float]]
    for one in results.cells:
        scores[one.row].append(one.accuracy)
    for row in read[:-1]:
        assert [float(score) for score in row["scores"].split()] == scores[row["row"]]
        assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert read[-1]["mean"] == ""
    assert "no way to get the weights" in read[-1]["missing"]


def test_csv_of_cells_is_that_of_the_results(tmp_path: Path) -> None:
    results = grid_of_cuts()
    assert export.table(results, "csv", cells=True) == results.to_csv(tmp_path / "results.csv").read_bytes()


def test_latex_has_no_command_but_its_own() -> None:
    for cells in (False, True):
        text = export.table(hostile(), "latex", cells=cells).decode()
        own = {"begin", "end", "toprule", "midrule", "bottomrule", "textgreater", "textless", "textbackslash", "ldots"}
        assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= own | {"usepackage"}
        heads, *lines = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(lines) == (6 if cells else 4)
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(re.findall(r"(?<!\\)&", heads))}


@pytest.mark.parametrize("character", ["&", "%", "$", "#", "_", "{", "}", "~", "^", "\\"])
def test_every_special_character_of_latex_is_escaped(character: str) -> None:
    told = export.latex_text(f"a{character}b")
    assert re.fullmatch(r"a(\\[&%$#_{}]|\\text\w+\{\})b", told)


def test_markdown_cells_are_neither_markup_nor_html() -> None:
    text = export.table(hostile(), "markdown").decode()
    assert "<img" not in text
    assert "</script" not in text
    lines = text.splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert export.markdown_text("a|b\n*c* [d](e) `f`") == r"a\|b \*c\* \[d\](e) \`f\`"


def test_columns_that_say_nothing_are_left_out_of_tables_for_people() -> None:
    assert "original" in export.table(seven_rows(), "markdown").decode()
    assert "original" not in export.table(grid_of_cuts(), "markdown").decode()


def test_the_format_is_told_by_the_ending_and_another_is_refused(tmp_path: Path) -> None:
    path = export.write_table(seven_rows(), tmp_path / "table.tex")
    assert path.read_text("utf-8").splitlines()[2] == "\\toprule"
    with pytest.raises(UnknownName, match="--format"):
        export.write_table(seven_rows(), tmp_path / "table.txt")
    with pytest.raises(UnknownName, match="did you mean 'markdown'"):
        export.table(seven_rows(), "markdwn")


def test_parquet_without_its_package_explains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(RegraftError, match=r"pip install 'regraft\[parquet\]'"):
        export.table(seven_rows(), "parquet")


@pytest.mark.slow
def test_parquet_reads_back_as_it_was(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    results = seven_rows()
    read = parquet.read_table(export.write_table(results, tmp_path / "rows.parquet")).to_pylist()
    assert read == export.summary_rows(results)
    cells = parquet.read_table(export.write_table(results, tmp_path / "cells.parquet", cells=True)).to_pylist()
    assert cells == results.rows
    assert list(cells[0]) == list(CSV_FIELDS)


def test_a_comparison_is_written_as_page_and_markdown_with_names_as_text(tmp_path: Path) -> None:
    found = between(hostile(), hostile())
    page = export.write_between(found, tmp_path / "compare.html").read_text("utf-8")
    assert "<img" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "&lt;/script&gt;" in page
    text = export.write_between(found, tmp_path / "compare.md").read_text("utf-8")
    assert HOSTILE not in text
    assert "3 rows matched: 3 equal" in text
    with pytest.raises(UnknownName, match=r"\.pdf"):
        export.write_between(found, tmp_path / "compare.pdf")


def test_a_comparison_as_data_has_every_number_of_the_lines() -> None:
    found = between(seven_rows(), seven_rows())
    data = export.between_dict(found)
    assert [row["first"] for row in data["rows"]] == [match.first for match in found.matches]
    assert {row["verdict"] for row in data["rows"]} == {"equal"}
    assert len(export.between_lines(found)) == 7
