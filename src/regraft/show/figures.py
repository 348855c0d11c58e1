"""Figures of a study's accuracies: results in, Altair chart out; None where a figure would say nothing.

Every seed is a point of its own, beside the mean over seeds and its 95 % t-interval. What figures are made of is in
`figures_base`, how arms are told apart in `figures_arms`; all figures by name are in `gallery`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import altair as alt

from regraft.analysis.table import TableRow, rows_table
from regraft.show.figures_arms import SOURCE_LIMIT, arm_look, arms, source_colours
from regraft.show.figures_base import (
    BLUE,
    COLOURS,
    DASHES,
    FAINTS,
    GREY,
    INKS,
    ROW_HEIGHT,
    VERMILLION,
    WIDTH,
    Chart,
    Entries,
    chart_of,
    images,
    interval,
    javascript,
    line_look,
    natural,
    percent_axis,
    spec,
    svg,
    theme,
    vega_lite_version,
)
from regraft.show.figures_rates import lr_curve
from regraft.show.figures_save import save_figure as save
from regraft.show.text import printable
from regraft.study.results import Cell, Results

__all__ = [
    "COLOURS", "DASHES", "FAINTS", "INKS", "WIDTH", "Chart", "Entries", "accuracy_by_budget", "accuracy_by_cut",
    "accuracy_by_row", "chart_of", "images", "javascript", "learning_curves", "line_look", "lr_curve", "natural",
    "percent_axis", "save", "spec", "svg", "theme", "vega_lite_version",
]  # fmt: skip

HALF_WIDTH, THIRD_WIDTH = 300, 190  # pixels, of a panel of several
BANDS, CROWD = 6, 8  # more arms than these have their intervals as bars; in a panel, a panel for each method
TOGETHER = 6  # rows in one panel of learning curves; more have a panel each


def accuracy_by_row(results: Results) -> Chart | None:
    """Every seed a point, the mean with its 95 % t-interval, chance, and the original study's figure."""
    rows = [row for row in rows_table(results) if row.summary]
    if not rows:
        return None
    kinds = ["each seed", "mean, 95 % t-interval", "original study", "chance"]
    marks = [{"row": i, **mark} for i, row in enumerate(rows) for mark in _row_marks(row, kinds)]
    present = [kind for kind in kinds if any(mark["kind"] == kind for mark in marks)]
    colours = dict(zip(kinds, (BLUE, BLUE, VERMILLION, GREY), strict=True))
    shapes = dict(zip(kinds, ("circle", "diamond", "cross", "stroke"), strict=True))
    legend = alt.Legend(orient="top", title=None, columns=2)
    scale: dict[str, Any] = {"domain": present, "range": [colours[kind] for kind in present]}
    y = alt.Y("row:O", axis=None)
    x = alt.X("value:Q", axis=percent_axis(), scale=alt.Scale(domain=[0, 100]))
    base = chart_of(marks)
    look = {
        "color": alt.Color("kind:N", scale=alt.Scale(**scale), legend=legend),
        "shape": alt.Shape("kind:N", scale=alt.Scale(domain=present, range=[shapes[k] for k in present]),
                           legend=legend),
        "angle": alt.condition(alt.datum.kind == "chance", alt.value(90), alt.value(0)),
        "tooltip": [
            alt.Tooltip("name:N", title="row"), alt.Tooltip("kind:N", title="mark"),
            alt.Tooltip("text:N", title="value"),
        ],
    }  # fmt: skip
    means = base.transform_filter(alt.datum.kind == kinds[1])
    bars = means.mark_rule(color=BLUE, strokeWidth=2, yOffset=8).encode(x="low:Q", x2="high:Q", y=y)
    # Hollow but for the seeds, which lie on top: no mark hides another's place.
    others = base.transform_filter(alt.datum.kind != kinds[0])
    hollow = others.mark_point(size=100, strokeWidth=1.8, opacity=1, yOffset=8).encode(x=x, y=y, **look)
    seeds = base.transform_filter(alt.datum.kind == kinds[0])
    filled = seeds.mark_point(filled=True, size=24, opacity=0.9, yOffset=8).encode(x=x, y=y, **look)
    labels = (
        chart_of([{"row": i, "name": printable(row.name)} for i, row in enumerate(rows)])
        .mark_text(align="left", dy=-10, limit=alt.ExprRef("width"), style="row-name")
        .encode(x=alt.value(0), y=y, text="name:N")
    )
    text = f"Test accuracy of {len(rows)} rows: seeds, mean with 95 % t-interval, chance, original figures."
    return alt.layer(bars, hollow, filled, labels).properties(
        width=WIDTH, height=ROW_HEIGHT * len(rows), title="Accuracy of every row", description=text
    )


def _row_marks(row: TableRow, kinds: list[str]) -> Entries:
    assert row.summary is not None
    seed, mean, original, chance = kinds
    marks: Entries = [
        {"kind": seed, "value": 100 * score, "text": f"{100 * score:.1f} % (seed {number})"}
        for number, score in row.scores.items()
        if math.isfinite(score)
    ]
    if row.n > 1 and math.isfinite(row.summary.mean):
        value = {"value": 100 * row.summary.mean, "text": row.summary.text()}
        marks.append({"kind": mean, **value, **interval(row.summary)})
    for kind, known in ((original, row.original), (chance, row.chance)):
        if known is not None:
            marks.append({"kind": kind, "value": 100 * known, "text": f"{100 * known:.1f} %"})
    return [{"name": printable(row.name), **mark} for mark in marks]


def accuracy_by_cut(results: Results) -> Chart | None:
    """Accuracy against the cut, from the image to the classifier: a panel for each target, a line for each arm."""
    images = {name: (target.data, target.classes) for name, target in results.study.targets.items()}

    def panel(row: TableRow) -> str:
        return printable(row.target if row.budget in row.target else f"{row.target} ({row.budget})", 60)

    entries = _arm_entries(results, lambda row: printable(row.cut), panel)
    if not entries:
        return None
    depths = {printable(cell.cut): cell.depth for cell in results.cells}
    order = sorted({entry["x"] for entry in entries}, key=lambda cut: (depths[cut] or 0.0, natural(cut)))
    axis = alt.Axis(title="cut: last layer of the trunk", labelAngle=-35, labelLimit=140, labelOverlap=False)
    x = alt.X("x:N", sort=order, scale=alt.Scale(type="point", padding=0.3), axis=axis)
    same_y = len({images[entry["target"]] for entry in entries}) == 1
    return _panels(results, entries, x, "Accuracy by cut", same_y=same_y)


def accuracy_by_budget(results: Results) -> Chart | None:
    """Accuracy against labelled images: a panel for each data set and cut, a line for each arm.

    x in images per class where every budget says so, else in training images, on a logarithmic scale. Training from
    scratch is drawn in every panel of its data, since what labels are worth is read off it."""
    study = results.study
    rows = {row.name: row for row in study.all_rows()}
    scored = [row for row in rows_table(results) if row.summary]
    data = _data_names(results)
    cuts = len({row.cut for row in scored}) > 1
    random = {cell.row for cell in results.cells if cell.weights == "random"}

    def panel(row: TableRow) -> str:
        return printable(data[row.target] + (f", cut at {row.cut}" if cuts else ""), 60)

    def per_class(row: TableRow) -> int | None:
        return study.targets[row.target].per_class

    entries = _arm_entries(results, per_class, panel)
    counted = bool(entries) and all(entry["x"] for entry in entries)
    if not counted:
        entries = _arm_entries(results, lambda row: row.train_images, panel)
    if not entries:
        return None
    for entry in entries:
        entry["data"] = data[entry["target"]]
    scratch = {name for name in random if rows[name].method == "finetune" and rows[name].cut is None}
    entries += _in_every_panel(entries, scratch)
    title = "labelled images per class" if counted else "training images"
    ticks = sorted({entry["x"] for entry in entries})
    axis = alt.Axis(values=ticks, format=",d", title=f"{title} (log scale)", labelOverlap="greedy", labelSeparation=6)
    x = alt.X("x:Q", scale=alt.Scale(type="log", nice=False, padding=16), axis=axis)
    return _panels(results, entries, x, f"Accuracy by number of {title}", same_y=True)


def _in_every_panel(entries: Entries, rows: set[str]) -> Entries:
    """Copies of the entries of `rows` for all other panels of the same data."""
    panels = {entry["panel"]: entry["data"] for entry in entries}
    return [
        {**entry, "panel": panel}
        for entry in entries if entry["name"] in rows
        for panel, data in panels.items() if data == entry["data"] and panel != entry["panel"]
    ]  # fmt: skip


def _data_names(results: Results) -> dict[str, str]:
    """What the images of every target are called: the data set, with its classes where targets differ in them."""
    targets = results.study.targets
    choices: dict[str, set[object]] = {}
    for target in targets.values():
        choices.setdefault(target.data, set()).add(target.classes)
    found = {}
    for name, target in targets.items():
        classes = f" ({', '.join(target.classes or ('all classes',))})" if len(choices[target.data]) > 1 else ""
        found[name] = printable(f"{target.data}{classes}", 50)
    return found


def _arm_entries(results: Results, x: Callable[[TableRow], Any], panel: Callable[[TableRow], str]) -> Entries:
    """Mean and seeds of every row, of the panels in which some arm has two values of `x` or more."""
    found: Entries = []
    spread: dict[str, dict[object, set[Any]]] = {}  # panel -> arm -> values of x
    told = arms(results)
    for row in rows_table(results):
        if row.summary is None or not math.isfinite(row.summary.mean):
            continue
        arm, at, where = told[row.name], x(row), panel(row)
        spread.setdefault(where, {}).setdefault(arm, set()).add(at)
        base = {"panel": where, "source": arm.source, "way": arm.way, "x": at, "row": printable(row.name, 120),
                "name": row.name, "target": row.target}  # fmt: skip
        mean = {"value": 100 * row.summary.mean, "text": row.summary.text(), **interval(row.summary)}
        found.append({**base, "kind": "mean", **mean})
        found += [
            {**base, "kind": "seed", "value": 100 * score, "text": f"{100 * score:.1f} % (seed {seed})"}
            for seed, score in row.scores.items()
        ]
    lines = {where for where, by_arm in spread.items() if any(len(values) > 1 for values in by_arm.values())}
    return [entry for entry in found if entry["panel"] in lines]


def _panels(results: Results, entries: Entries, x: alt.X, title: str, *, same_y: bool) -> Chart:
    """A line chart, or one for every panel, two beside each other."""
    _spread_out(entries, source_colours(results))
    panels = list(dict.fromkeys(entry["panel"] for entry in entries))
    for entry in entries:  # names are the user's, and are not shown
        entry.pop("name"), entry.pop("target"), entry.pop("data", None)
    text = f"{title}: every seed, and the mean over seeds with its 95 % t-interval."
    layers = _line_layers(results, entries, x)
    if len(panels) == 1:
        told = {"text": title, "subtitle": panels[0]}
        return layers.properties(width=WIDTH, height=340, title=told, description=text)
    chart: Chart = (
        layers.properties(width=HALF_WIDTH, height=240)
        .facet(facet=alt.Facet("panel:N", sort=panels, title=None, header=alt.Header(labelLimit=HALF_WIDTH)), columns=2)
        .resolve_scale(x="independent", y="shared" if same_y else "independent")
        .properties(title=title, description=text)
    )
    return chart


def _spread_out(entries: Entries, colours: dict[str, str]) -> None:
    """Of many arms in a panel the methods get panels of their own, and so do sources that would share a colour."""
    arms_in: dict[str, set[tuple[str, str]]] = {}
    sharing: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        arms_in.setdefault(entry["panel"], set()).add((entry["source"], entry["way"]))
        sharing.setdefault((entry["panel"], colours[entry["source"]]), set()).add(entry["source"])
    for entry in entries:
        panel, source = entry["panel"], entry["source"]
        if len(arms_in[panel]) > CROWD:
            entry["panel"] += f": {entry['way']}"
        if len(sharing[panel, colours[source]]) > 1:
            entry["panel"] += f": {source}"


def _line_layers(results: Results, entries: Entries, x: alt.X) -> alt.LayerChart | alt.FacetChart:
    """Intervals as bands (as bars where many arms would cover each other), lines of means, and points."""
    look = arm_look(results, entries)
    arms_here = {(entry["source"], entry["way"]) for entry in entries}
    y = alt.Y("value:Q", axis=percent_axis(), scale=alt.Scale(zero=False, nice=True))
    base = chart_of(entries).encode(x=x, color=look["color"], detail="way:N")
    means = base.transform_filter("datum.kind == 'mean'")
    sure = means.transform_filter("isValid(datum.low)")
    band = sure.mark_area(opacity=0.14) if len(arms_here) <= BANDS else sure.mark_rule(opacity=0.6, strokeWidth=1.5)
    tooltip = [
        alt.Tooltip("row:N"), alt.Tooltip("source:N"), alt.Tooltip("way:N", title="method"),
        alt.Tooltip("text:N", title="accuracy"),
    ]  # fmt: skip
    # Means are hollow and seeds lie on top, so that no mark hides another's place.
    seeds = base.transform_filter("datum.kind == 'seed'").mark_point(filled=True, size=16, opacity=0.85)
    return alt.layer(
        band.encode(y=alt.Y("low:Q"), y2="high:Q"),
        means.mark_line(strokeWidth=2).encode(y=y, strokeDash=look["strokeDash"]),
        means.mark_point(filled=False, size=90, strokeWidth=1.8, opacity=1).encode(
            y=y, shape=look["shape"], tooltip=tooltip
        ),
        seeds.encode(y=y, shape=look["shape"], tooltip=tooltip),
    )


def learning_curves(results: Results) -> Chart | None:
    """Validation accuracy by epoch, a line per seed; None if no training has two epochs.

    Few rows share a panel; of many each has its own, so that no legend is needed."""
    entries = [entry for cell in results.cells if len(cell.curve) > 1 for entry in _epochs(cell)]
    if not entries:
        return None
    groups = list(dict.fromkeys(entry["group"] for entry in entries))
    title = "Validation accuracy while training"
    y = alt.Y("accuracy:Q", axis=percent_axis("validation accuracy (%)"), scale=alt.Scale(zero=False))
    base = (
        chart_of(entries)
        .mark_line(strokeWidth=1.5, opacity=0.85)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, grid=False)),
            y=y,
            detail="seed:N",
            tooltip=[
                alt.Tooltip("group:N", title="row"),
                "seed:N",
                "epoch:Q",
                alt.Tooltip("accuracy:Q", format=".1f"),
            ],
        )
    )
    told = f"{title}: a line per row and seed."
    if len(groups) <= TOGETHER:
        chart: Chart = base.encode(**line_look(groups, "row (a line per seed)"))
        return chart.properties(width=WIDTH, height=300, title=title, description=told)
    colours = source_colours(results)
    sources = list(dict.fromkeys(entry["source"] for entry in entries))
    scale = alt.Scale(domain=sources, range=[colours[source] for source in sources])
    legend = alt.Legend(orient="bottom", direction="vertical", title="source (a line per seed)", symbolType="stroke")
    header = alt.Header(labelLimit=THIRD_WIDTH + 20, labelFontSize=10, labelFontWeight="normal")
    many: Chart = (
        base.encode(color=alt.Color("source:N", scale=scale, legend=legend))
        .properties(width=THIRD_WIDTH, height=110)
        .facet(facet=alt.Facet("group:N", sort=groups, title=None, header=header), columns=3)
        .resolve_scale(x="independent")
        .properties(title=title, description=told)
    )
    return many


def _epochs(cell: Cell) -> Entries:
    return [
        {
            "group": printable(cell.row, 120), "source": printable(cell.source, SOURCE_LIMIT), "seed": cell.seed,
            "epoch": epoch["epoch"], "accuracy": 100 * epoch["validation_accuracy"],
        }
        for epoch in cell.curve
        if math.isfinite(epoch.get("validation_accuracy", math.nan))
    ]  # fmt: skip
