"""A study's report as one HTML file that needs no network.

How it is kept safe with any name stands in `show/page.py`. Static figures are images (which run no script), JSON in
scripts holds no "<", and Vega evaluates its expressions by interpreter: no eval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from regraft.analysis.alarm import Alarm, alarms
from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.analysis.table import TableRow, rows_table
from regraft.analysis.variance import spreads
from regraft.analysis.worth import label_worths
from regraft.show import drawings, figures_base, page
from regraft.show.audit import audit_section
from regraft.show.gallery import FIGURES
from regraft.show.part import MOST_DRAWN, MOST_LISTED, left_out, part_of
from regraft.show.sections import (
    audit_tables,
    compared_table,
    figure_table,
    spreads_table,
    study_table,
    worth_note,
)
from regraft.show.sections_classes import SHOWN_TARGETS, best_cells, confusion
from regraft.show.sections_costs import NO_POWER, provenance, rows_costs, spent, stages_table, study_file
from regraft.show.sections_errors import worst_mistakes
from regraft.show.text import script_json
from regraft.study.results import Results

# Drawn as tables with bars, of every target, in a section of their own
TOLD_ELSEWHERE = ("confusion", "classes")
OF_ALL_ROWS = ("differences", "worth")  # choose themselves what they draw; their numbers rest on all rows
# Anchors of the page's sections, and how the contents name them
PARTS = {
    "answer": "Answer", "alarms": "Alarms", "missing": "Missing rows", "rows": "Rows", "drawings": "Figures",
    "comparisons": "Comparisons", "spread": "Seeds", "classes": "Classes", "errors": "Worst errors", "cost": "Cost",
    "audit": "Audit", "provenance": "Provenance",
}  # fmt: skip


def write_report(results: Results, path: str | Path, *, command: str = "") -> Path:
    """Write the report of `results` to `path`, whole or not at all; returns the path.

    command: what a reader types to repeat the study.
    """
    return page.write_page(report_html(results, command=command), path)


def report_html(results: Results, *, command: str = "") -> str:
    """The report as HTML."""
    part = part_of(results)
    content = {**_numbers(results, part), **_drawings(results, part), **_sources(results, part, command)}
    shown = {
        "alarms": content["alarms"], "missing": content["missing"], "drawings": content["figures"],
        "comparisons": content["comparisons"], "spread": content["spreads"], "classes": content["confusions"],
        "errors": content["mistakes"],
    }  # fmt: skip
    scripts = [content["vega"], content["drawing"]] if content["figures"] else []
    return page.render(
        "report.html",
        scripts=(*scripts, page.source("page.js")),
        contents=[(anchor, title) for anchor, title in PARTS.items() if shown.get(anchor, True)],
        size=Markup(page.SIZE),
        page_script=Markup(page.source("page.js")),
        newline=Markup("\n"),
        **content,
    )


def _numbers(results: Results, part: Results) -> dict[str, Any]:
    """What the study found. Comparisons, label worths and the answer are of all rows; part: what is told of each."""
    rows, best, worths = rows_table(results), best_cells(results), label_worths(results)
    compared, apart = comparisons(results), spreads(part)
    pairs = compared.shown()
    listed = _named(rows, part_of(results, MOST_LISTED))
    missing = [row for row in rows if row.missing]
    return {
        "study": results.study.study,
        "question": results.study.question or f"What did the study {results.study.study} find?",
        "answer": answer(results),
        "alarms": _joined(alarms(part)),
        "missing": missing[:MOST_DRAWN],
        "more_missing": max(0, len(missing) - MOST_DRAWN),
        "rows": study_table(listed, results, worths),
        "rows_note": left_out(len(listed), len(rows), "rows are listed"),
        "part_note": left_out(
            len(_named(rows, part)), len(rows), "rows are drawn, looked into for alarms and told row by row"
        ),
        "single": any(row.n == 1 for row in rows),
        "worth_note": worth_note(worths),
        "comparisons": compared_table(pairs) if pairs else None,
        "comparisons_note": compared.note(len(pairs)),
        "spreads": spreads_table(apart) if apart else None,
        "confusions": [confusion(cell) for cell in best[:SHOWN_TARGETS]],
        "more_targets": len(best) > SHOWN_TARGETS,
        "mistakes": worst_mistakes(part),
    }


def _named(rows: list[TableRow], part: Results) -> list[TableRow]:
    """Those of `rows` that `part` has a cell of, scored or missing."""
    names = {cell.row for cell in part.cells} | {gap.row for gap in part.missing}
    return [row for row in rows if row.name in names]


def _drawings(results: Results, part: Results) -> dict[str, Any]:
    """Every figure drawn, as data to draw it anew, and as a table."""
    makers = {name: make for name, make in FIGURES.items() if name not in TOLD_ELSEWHERE}
    drawn = [make(results if name in OF_ALL_ROWS else part) for name, make in makers.items()]
    charts = [chart for chart in drawn if chart is not None]
    specs = [page.told_all(figures_base.spec(chart)) for chart in charts]
    themes = {"light": figures_base.theme(dark=False), "dark": figures_base.theme(dark=True)}
    return {
        "figures": [
            {**drawings.images(spec), "description": spec["description"], "table": figure_table(spec)} for spec in specs
        ],
        "figures_json": Markup(script_json({"specs": specs, **themes})),
        "vega": Markup(figures_base.javascript() if specs else ""),
        "drawing": Markup(page.source("drawing.js")),
    }


def _sources(results: Results, part: Results, command: str) -> dict[str, Any]:
    """What it took, and where it comes from."""
    taken, audited = spent(results), audit_section(part)
    names = {cell.row for cell in part.cells}
    return {
        "stages": stages_table(taken),
        "row_costs": rows_costs(one for one in taken if one.row in names),
        "cost_note": NO_POWER,
        "audit": None if audited is None else {**vars(audited), "tables": audit_tables(audited)},
        "provenance": provenance(results, command),
        "study_file": study_file(results),
        "keys": part.cells,
    }


def _joined(raised: list[Alarm]) -> list[dict[str, str]]:
    """Alarms; those of one row that say the same are joined."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for alarm in raised:
        seeds.setdefault((alarm.row, alarm.message), []).append(alarm.seed)
    return [
        {
            "row": row,
            "message": message,
            "seeds": ("seed " if len(numbers) == 1 else "seeds ") + ", ".join(map(str, numbers)),
        }
        for (row, message), numbers in seeds.items()
    ]
