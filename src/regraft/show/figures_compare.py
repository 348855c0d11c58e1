"""Figures that set rows against each other: paired differences, label worth, and accuracy against cost."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import altair as alt

from regraft.analysis.compare import KINDS, Comparison, comparisons, p_text
from regraft.analysis.table import rows_table
from regraft.analysis.worth import Worth, count, label_worths
from regraft.show.figures_arms import arm_look, arms
from regraft.show.figures_base import BLUE, GREY, ROW_HEIGHT, WIDTH, Chart, Entries, chart_of, log_axis, percent_axis
from regraft.show.text import printable
from regraft.study.results import Cell, Results

SHOWN_DIFFERENCES = 24
SHOWN_WORTHS = 150  # rows, those with the highest worth
HALF_WIDTH = 300  # pixels, of a panel of several
NAME_LIMIT, PAIR_HEIGHT = 80, 60  # characters of each of two rows; pixels: their names above the marks


def differences(results: Results) -> Chart | None:
    """Paired differences as a forest plot: every seed's difference, the mean with its 95 % t-interval, and whether it
    is clear after Holm's correction over all pairs of the study."""
    compared = comparisons(results)
    pairs = compared.shown(SHOWN_DIFFERENCES)
    if not pairs:
        return None
    scores = {row.name: row.scores for row in rows_table(results)}
    entries = [mark for i, pair in enumerate(pairs) for mark in _difference_marks(i, pair, scores)]
    y = alt.Y("row:O", axis=None)
    x = alt.X("value:Q", axis=percent_axis("difference in test accuracy (points)"))
    verdicts = [verdict for verdict in ("clear", "not clear") if any(pair.verdict == verdict for pair in pairs)]
    colours = {"clear": BLUE, "not clear": GREY}
    legend = alt.Legend(orient="top", title=None, direction="horizontal", symbolOpacity=1)
    color = alt.Color(
        "verdict:N", scale=alt.Scale(domain=verdicts, range=[colours[v] for v in verdicts]), legend=legend
    )
    # Clear ones are diamonds, the others circles: not by colour alone.
    shapes = {"clear": "diamond", "not clear": "circle"}
    shape = alt.Shape("verdict:N", scale=alt.Scale(domain=verdicts, range=[shapes[v] for v in verdicts]), legend=legend)
    tooltip = [
        alt.Tooltip("pair:N"), alt.Tooltip("what:N", title="what"),
        alt.Tooltip("text:N", title="difference"), alt.Tooltip("holm:N", title="Holm-adjusted"),
    ]  # fmt: skip
    base = chart_of(entries).encode(y=y)
    means = base.transform_filter("datum.kind == 'mean'")
    bars = means.mark_rule(strokeWidth=1.5, opacity=0.7, yOffset=20).encode(x=alt.X("low:Q"), x2="high:Q", color=color)
    points = means.mark_point(size=110, strokeWidth=1.8, opacity=1, yOffset=20).encode(
        x=x, color=color, shape=shape, tooltip=tooltip
    )
    seeds = base.transform_filter("datum.kind == 'seed'").mark_point(filled=True, size=26, opacity=1, yOffset=20)
    zero = base.mark_rule(color=GREY, strokeDash=[3, 3]).encode(x=alt.datum(0), y=alt.value(0), y2=alt.value("height"))
    names = means.mark_text(align="left", dy=-16, limit=alt.ExprRef("width - 90"), style="row-name")
    marks = means.mark_text(align="right", dy=-16, style="row-name")
    title = "Paired differences between rows"
    told = compared.note(len(pairs))
    return alt.layer(
        zero, bars, points, seeds.encode(x=x, color=color, tooltip=tooltip),
        names.encode(x=alt.value(0), text="names:N"), marks.encode(x=alt.value("width"), text="holm:N"),
    ).properties(
        width=WIDTH, height=PAIR_HEIGHT * len(pairs), title={"text": title, "subtitle": told},
        description=f"{title}: mean over seeds with 95 % t-intervals; {told}",
    )  # fmt: skip


def _difference_marks(i: int, pair: Comparison, scores: dict[str, dict[int, float]]) -> Entries:
    found = pair.difference
    names = [printable(pair.a, NAME_LIMIT), f"− {printable(pair.b, NAME_LIMIT)}"]
    base = {"row": i, "names": names, "pair": " ".join(names), "what": KINDS[pair.kind], "verdict": pair.verdict}
    holm = f"p {p_text(pair.adjusted)}{'' if not pair.clear else ' *'}"
    a, b = scores[pair.a], scores[pair.b]
    mean = {"kind": "mean", "value": 100 * found.mean, "low": 100 * found.low, "high": 100 * found.high}
    return [
        {**base, **mean, "holm": holm, "text": found.text()},
        *(
            {**base, "kind": "seed", "value": 100 * (a[seed] - b[seed]), "holm": holm,
             "text": f"{100 * (a[seed] - b[seed]):+.1f} points (seed {seed})"}
            for seed in sorted(a.keys() & b.keys())
        ),
    ]  # fmt: skip


def worth_by_row(results: Results) -> Chart | None:
    """Label worth: the labels per class that a row had, and those that training from scratch needs for as much.

    A mark at the edge with an arrow's shape lies beyond the budgets that were measured from scratch."""
    known = label_worths(results)
    if not known:
        return None
    rows = sorted(known, key=lambda name: -(known[name].labels or math.inf))[:SHOWN_WORTHS]
    entries = [mark for i, name in enumerate(rows) for mark in _worth_marks(i, name, known[name])]
    kinds = ["labels it had", "labels from scratch for the same", "more than measured", "fewer than measured"]
    present = [kind for kind in kinds if any(entry.get("kind") == kind for entry in entries)]
    shapes = dict(zip(kinds, ("circle", "diamond", "triangle-right", "triangle-left"), strict=True))
    colours = dict(zip(kinds, (GREY, BLUE, BLUE, BLUE), strict=True))
    legend = alt.Legend(orient="top", title=None, columns=2, symbolOpacity=1)
    y = alt.Y("row:O", axis=None)
    axis = log_axis("labelled images per class (log scale)")
    x = alt.X("value:Q", scale=alt.Scale(type="log", nice=False, padding=14), axis=axis)
    base = chart_of(entries).encode(y=y)
    points = base.transform_filter("isValid(datum.kind)").mark_point(size=90, strokeWidth=2, opacity=1, yOffset=9)
    color = alt.Color("kind:N", scale=alt.Scale(domain=present, range=[colours[k] for k in present]), legend=legend)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=present, range=[shapes[k] for k in present]), legend=legend)
    tooltip = [alt.Tooltip("name:N", title="row"), alt.Tooltip("text:N", title="label worth")]
    seeds = base.transform_filter("isValid(datum.seed)").mark_point(
        filled=True, size=16, opacity=0.85, color=BLUE, yOffset=9
    )
    link = base.transform_filter("isValid(datum.own)").mark_rule(color=GREY, strokeDash=[2, 2], yOffset=9)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(color=BLUE, strokeWidth=3, opacity=0.5, yOffset=9)
    names = base.transform_filter("isValid(datum.label)").mark_text(
        align="left", dy=-9, limit=alt.ExprRef("width"), style="row-name"
    )
    some = f" with the highest of {len(known):,}" if len(rows) < len(known) else ""
    title = "Label worth: labels per class that training from scratch needs for the same accuracy"
    return alt.layer(
        link.encode(x=alt.X("own:Q"), x2="value:Q"), bars.encode(x=alt.X("low:Q"), x2="high:Q"),
        points.encode(x=x, color=color, shape=shape, tooltip=tooltip),
        seeds.encode(x=x, tooltip=tooltip), names.encode(x=alt.value(0), text="label:N"),
    ).properties(
        width=WIDTH, height=ROW_HEIGHT * len(rows),
        title={"text": "Label worth", "subtitle": "labels per class that training from scratch needs for the same "
               "accuracy: every seed, their geometric mean, and its 95 % t-interval"},
        description=f"{title}: {len(rows)} rows{some}.",
    )  # fmt: skip


def _worth_marks(i: int, name: str, worth: Worth) -> Entries:
    shown = printable(name, 70)
    base = {"row": i, "name": shown, "text": f"{worth.text()} labels per class; it had {count(worth.own)}"}
    beyond, below = worth.beyond == worth.n, worth.below == worth.n
    at = worth.labels if worth.labels is not None else worth.last if worth.beyond else worth.first
    kind = "labels from scratch for the same"
    if beyond or (worth.beyond and not worth.below):
        kind = "more than measured"
    elif below or worth.below:
        kind = "fewer than measured"
    low = high = None
    if worth.low is not None and worth.high is not None:  # cut to what was measured: beyond it nothing is known
        low, high = max(worth.low, worth.first), min(worth.high, worth.last)
    return [
        {**base, "kind": kind, "value": at, "own": worth.own, "low": low, "high": high,
         "label": f"{shown}: {worth.text()}"},
        {**base, "kind": "labels it had", "value": worth.own},
        *(
            {"row": i, "name": shown, "seed": seed, "value": min(max(labels, worth.first), worth.last),
             "text": f"{_seed_labels(labels, worth)} labels per class (seed {seed})"}
            for seed, labels in worth.each
        ),
    ]  # fmt: skip


def _seed_labels(labels: float, worth: Worth) -> str:
    if 0 < labels < math.inf:
        return count(labels)
    return f"< {count(worth.first)}" if labels == 0 else f"> {count(worth.last)}"


def accuracy_by_cost(results: Results) -> Chart | None:
    """Accuracy against the seconds of the row's own training, a panel for each target and device with two rows.

    A line joins the rows that no other one beats in both. What a shared trunk's features or a source's training took
    is not in a row's seconds."""
    entries = _cost_entries(results)
    if not entries:
        return None
    panels = list(dict.fromkeys(entry["panel"] for entry in entries))
    look = arm_look(results, entries)
    axis = log_axis("seconds of the row's own training (log scale)")
    x = alt.X("seconds:Q", scale=alt.Scale(type="log", nice=False, padding=14), axis=axis)
    y = alt.Y("value:Q", axis=percent_axis(), scale=alt.Scale(zero=False, nice=True))
    tooltip = [
        alt.Tooltip("name:N", title="row"), alt.Tooltip("text:N", title="accuracy"),
        alt.Tooltip("seconds:Q", format=",.1f"),
    ]  # fmt: skip
    base = chart_of(entries).encode(x=x, y=y)
    means = base.transform_filter("datum.kind == 'mean'")
    front = means.transform_filter("datum.front")
    line = front.mark_line(color=GREY, strokeWidth=1, interpolate="step-after").encode(order="seconds:Q")
    marks = means.mark_point(filled=False, size=90, strokeWidth=1.8, opacity=1)
    seeds = base.transform_filter("datum.kind == 'seed'").mark_point(filled=True, size=16, opacity=0.85)
    arm: dict[str, Any] = {"color": look["color"], "shape": look["shape"], "tooltip": tooltip}
    layers = alt.layer(line, marks.encode(**arm), seeds.encode(**arm))
    title = "Accuracy against training time"
    text = f"{title}: every seed, and each row's mean; a line joins the rows that no other beats in both."
    if len(panels) == 1:
        told = {"text": title, "subtitle": panels[0]}
        return layers.properties(width=WIDTH, height=340, title=told, description=text)
    header = alt.Header(labelLimit=HALF_WIDTH)
    chart: Chart = (
        layers.properties(width=HALF_WIDTH, height=220)
        .facet(facet=alt.Facet("panel:N", sort=panels, title=None, header=header), columns=2)
        .resolve_scale(x="independent", y="independent")
        .properties(title=title, description=text)
    )
    return chart


def _cost_entries(results: Results) -> Entries:
    """Mean and seeds of every row whose trainings recorded their seconds."""
    told, entries = arms(results), []
    timed: dict[str, list[Cell]] = {}
    for cell in results.cells:
        if float(cell.cost.get("seconds", 0)) > 0:
            timed.setdefault(cell.row, []).append(cell)
    for row in rows_table(results):
        own = timed.get(row.name, [])
        if row.summary is None or not own or not math.isfinite(row.summary.mean):
            continue
        arm = told[row.name]
        devices = printable(", ".join(dict.fromkeys(str(cell.cost.get("device", "")) for cell in own)), 40)
        base = {"panel": printable(f"{row.target}, on {devices}", 60), "name": printable(row.name, 120),
                "source": arm.source, "way": arm.way}  # fmt: skip
        seconds = fmean(float(cell.cost["seconds"]) for cell in own)
        mean = {"kind": "mean", "value": 100 * row.summary.mean, "seconds": seconds, "text": row.summary.text()}
        entries.append({**base, **mean})
        entries += [
            {**base, "kind": "seed", "value": 100 * cell.accuracy, "seconds": float(cell.cost["seconds"]),
             "text": f"{100 * cell.accuracy:.1f} % (seed {cell.seed})"}
            for cell in own
        ]  # fmt: skip
    means = [entry for entry in entries if entry["kind"] == "mean"]
    several = {entry["panel"] for entry in means if sum(one["panel"] == entry["panel"] for one in means) > 1}
    entries = [entry for entry in entries if entry["panel"] in several]
    for entry in means:
        entry["front"] = not any(_beats(other, entry) for other in means if other["panel"] == entry["panel"])
    return entries


def _beats(other: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Whether it is at least as good in both, and better in one."""
    merits = [(one["value"], -one["seconds"]) for one in (other, entry)]
    return merits[0] != merits[1] and all(a >= b for a, b in zip(*merits, strict=True))
