"""A small HTML table of results for notebooks; `Results._repr_html_` uses it. Every name is escaped."""

from __future__ import annotations

from html import escape
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regraft.study.results import Cell, Results

_NAME = "text-align:left;max-width:28em;overflow-wrap:anywhere"


def html_table(results: Results) -> str:
    """One line per row of the study: accuracy of every seed, their mean and n, or why there is none.

    Intervals are in the report (regraft.show.report) and in `results_table`; here every seed is shown.
    """
    cells: dict[str, list[Cell]] = {}
    for cell in results.cells:
        cells.setdefault(cell.row, []).append(cell)
    reasons: dict[str, str] = {gap.row: gap.reason for gap in results.missing}
    with_original = any(row.original is not None for row in results.study.all_rows())
    heads = [
        "row",
        "accuracy, mean",
        "n seeds",
        "each seed",
        *(["original"] if with_original else []),
        "note",
    ]
    lines = ["<tr>" + "".join(f'<th style="{_NAME}">{head}</th>' for head in heads) + "</tr>"]
    for row in results.study.all_rows():
        own = sorted(cells.get(row.name, []), key=lambda cell: cell.seed)
        note = row.note if own else f"no score: {reasons.get(row.name, 'not computed')}"
        mean = _percent(fmean(cell.accuracy for cell in own)) if own else "–"
        values = [mean, str(len(own)), ", ".join(_percent(cell.accuracy) for cell in own) or "–"]
        if with_original:
            values.append("–" if row.original is None else _percent(row.original))
        numbers = "".join(f'<td style="text-align:right">{value}</td>' for value in values)
        lines.append(f"<tr>{_text_cell('th', row.name)}{numbers}{_text_cell('td', note)}</tr>")
    caption = escape(results.study.question or results.study.study)
    return f'<table><caption dir="auto">{caption}</caption>{"".join(lines)}</table>'


def _text_cell(tag: str, text: str) -> str:
    return f'<{tag} style="{_NAME}" dir="auto">{escape(text)}</{tag}>'


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
