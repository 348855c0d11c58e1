"""What a report of very many rows shows: some rows, and says so; its statistics are of all."""

from __future__ import annotations

import dataclasses
import re

from regraft.analysis.answer import answer
from regraft.show import part, report
from regraft.show.part import left_out, part_of
from regraft.show.text import printable
from tests.unit.show_many import many_arms


def test_a_study_of_few_rows_is_shown_whole() -> None:
    results = many_arms()
    assert part_of(results) is results
    assert left_out(80, 80, "rows are drawn") == ""


def test_targets_are_shown_whole_or_not_at_all() -> None:
    results = many_arms()
    rows = results.study.all_rows()
    by_target: dict[str, set[str]] = {}
    for row in rows:
        by_target.setdefault(row.target, set()).add(row.name)
    for most in range(1, len(rows)):
        shown = {cell.row for cell in part_of(results, most).cells}
        assert len(shown) <= most
        cut = [target for target, names in by_target.items() if names & shown and not names <= shown]
        assert len(cut) <= (most < len(by_target[rows[0].target]))


def test_cells_without_a_score_go_with_their_rows() -> None:
    results = many_arms()
    half = dataclasses.replace(results, cells=results.cells[::2])
    shown = {cell.row for cell in part_of(half, 45).cells}
    assert shown < {cell.row for cell in half.cells}
    assert all(cell in half.cells for cell in part_of(half, 45).cells)


def test_a_report_of_many_rows_says_what_it_leaves_out(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    results = many_arms()
    whole = report.report_html(results)
    monkeypatch.setattr(report, "part_of", lambda results, most=0: part.part_of(results, 45))
    some = report.report_html(results)
    assert "rows are drawn" not in whole
    assert re.search(r"\b(\d+) of 80 rows are drawn", some)
    assert re.search(r"\b(\d+) of 80 rows are listed", some)
    assert len(some) < len(whole)
    for sentence in answer(results):  # of all rows
        assert printable(sentence)[:40] in some.replace("&#34;", '"')
