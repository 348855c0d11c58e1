"""What of a study with very many rows a report shows: statistics are over all rows, drawings and lists over some."""

from __future__ import annotations

import dataclasses

from regraft.study.results import Results

MOST_DRAWN = 150  # rows in figures, and in tables that take a line or more for each
MOST_LISTED = 1000  # rows in the table of rows


def part_of(results: Results, most: int = MOST_DRAWN) -> Results:
    """The results of whole targets, in the order of the study, as long as their rows are at most `most`; of a first
    target with more, its first rows. All of them if the study has no more rows than that.

    Targets stay whole because rows are compared, and lines drawn, within a target."""
    rows = results.study.all_rows()
    if len(rows) <= most:
        return results
    by_target: dict[str, list[str]] = {}
    for row in rows:
        by_target.setdefault(row.target, []).append(row.name)
    shown: set[str] = set()
    for names in by_target.values():
        if len(shown) + len(names) > most:
            shown.update(() if shown else names[:most])
            break
        shown.update(names)
    return dataclasses.replace(
        results,
        cells=[cell for cell in results.cells if cell.row in shown],
        missing=[gap for gap in results.missing if gap.row in shown],
    )


def left_out(shown: int, of: int, what: str) -> str:
    """'150 of 9,991 rows, those of the first targets in the study’s order; results.csv and results.json have all'.

    "" if nothing is left out."""
    if shown == of:
        return ""
    return (
        f"{shown:,} of {of:,} {what}, those of the first targets in the study’s order; results.csv and results.json "
        "have all"
    )
