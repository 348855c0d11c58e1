"""How the arms of a study are told apart in every figure: colour says whose weights, dash and shape say how they learn.

The same source has the same colour, and the same method the same dash and shape, in all figures of a study. Random
weights are grey, as the control that they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt

from regraft.analysis.table import TableRow, rows_table
from regraft.show.figures_base import BLUE, GREEN, GREY, OCHRE, PURPLE, VERMILLION, Entries
from regraft.show.text import printable
from regraft.spec import Row, Study
from regraft.spec.sweeps import swept_from
from regraft.study.results import Results

TRAINED_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, OCHRE)
RANDOM_COLOURS = (GREY, OCHRE, PURPLE)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [1, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
FIRST_WAYS = ("fine-tuned", "frozen", "LP-FT")  # have the same look in every study
SOURCE_LIMIT, WAY_LIMIT = 60, 60  # characters


@dataclass(frozen=True)
class Arm:
    """By which a row is drawn."""

    source: str  # whose weights they were: of a head started from its source's, the source's own
    way: str  # method, head if it is not linear, recipe where rows differ in nothing else


def arms(results: Results) -> dict[str, Arm]:
    """By row name, in study order. Names are those that are shown."""
    rows = rows_table(results)
    said = {row.name: row for row in results.study.all_rows()}
    told = {row.name: _arm(results.study, said, row) for row in rows}
    alike: dict[tuple[object, ...], list[TableRow]] = {}
    for row in rows:
        alike.setdefault((told[row.name], row.cut, row.target), []).append(row)
    ambiguous = {told[group[0].name].way for group in alike.values() if len(group) > 1}
    found: dict[str, Arm] = {}
    taken: set[tuple[object, ...]] = set()
    for row in rows:
        arm = told[row.name]
        if arm.way in ambiguous:
            recipes = dict.fromkeys(map(swept_from, said[row.name].recipe))
            arm = Arm(arm.source, printable(f"{arm.way}, {'/'.join(recipes)}", WAY_LIMIT))
        if (arm, row.cut, row.target) in taken:  # rows that differ in their name alone, as far as a figure can say
            arm = Arm(arm.source, printable(row.name, WAY_LIMIT))
        taken.add((arm, row.cut, row.target))
        found[row.name] = arm
    return found


def _arm(study: Study, rows: Mapping[str, Row], row: TableRow) -> Arm:
    own, source = rows[row.name], row.source
    way = row.method.replace("finetune", "fine-tuned", 1)
    head, parent = row.head, study.sources[source].run
    if own.head.start == "source" and parent is not None:
        before = rows[parent]
        source, head = before.source, before.head.label
        if (before.method, own.method) == ("frozen", "finetune"):
            way = way.replace("fine-tuned", "LP-FT", 1)
    if head != "linear":
        way = f"{way}, {head} head"
    return Arm(printable(source, SOURCE_LIMIT), printable(way, WAY_LIMIT))


def source_colours(results: Results) -> dict[str, str]:
    """Colour of every source of the study, by the name that is shown."""
    random = {cell.source for cell in results.cells if cell.weights == "random"}
    found: dict[str, str] = {}
    counts = {True: 0, False: 0}
    for name in results.study.sources:
        colours = RANDOM_COLOURS if name in random else TRAINED_COLOURS
        found[printable(name, SOURCE_LIMIT)] = colours[counts[name in random] % len(colours)]
        counts[name in random] += 1
    return found


def way_looks(ways: list[str]) -> dict[str, tuple[list[int], str]]:
    """Dash and shape of every way; no two of the first 24 are the same."""
    order = [*FIRST_WAYS, *(way for way in dict.fromkeys(ways) if way not in FIRST_WAYS)]
    return {way: (DASHES[i % len(DASHES)], SHAPES[i % len(SHAPES)]) for i, way in enumerate(order)}


def arm_look(results: Results, entries: Entries) -> dict[str, Any]:
    """Encodings "color", "strokeDash" and "shape" of entries with a "source" and a "way"; two legends below."""
    colours = source_colours(results)
    drawn = {entry["source"] for entry in entries}
    sources = [source for source in colours if source in drawn]
    looks = way_looks([arm.way for arm in arms(results).values()])
    here = {entry["way"] for entry in entries}
    ways = [way for way in looks if way in here]
    below: dict[str, Any] = {"orient": "bottom", "direction": "vertical"}
    stroke = alt.Legend(title="source", symbolType="stroke", symbolStrokeWidth=4, symbolOpacity=1, **below)
    shape = alt.Legend(title="method", symbolSize=90, symbolOpacity=1, **below)
    dashes, shapes = [looks[way][0] for way in ways], [looks[way][1] for way in ways]
    return {
        "color": alt.Color(
            "source:N", scale=alt.Scale(domain=sources, range=[colours[s] for s in sources]), legend=stroke
        ),
        "strokeDash": alt.StrokeDash("way:N", scale=alt.Scale(domain=ways, range=dashes), legend=shape),
        "shape": alt.Shape("way:N", scale=alt.Scale(domain=ways, range=shapes), legend=shape),
    }
