"""Figures of advice on a folder of pictures."""

from __future__ import annotations

import altair as alt

from regraft.analysis.findings import Findings
from regraft.show.figures_base import BLUE, VERMILLION, WIDTH, Chart, Entries, chart_of, percent_axis
from regraft.show.text import printable

SHOWN = 12  # configurations
NAME = 110  # characters


def label_curve(found: Findings) -> Chart | None:
    """Accuracy against labels: measured, and carried on where that can be told."""
    points = found.extrapolation.points
    if len(points) < 2:
        return None
    measured, expected = "measured", "expected, 95 % interval"
    entries: Entries = [{"labels": p.labels, "accuracy": 100 * p.accuracy, "kind": measured} for p in points]
    entries += [
        {"labels": f.labels, "accuracy": 100 * f.accuracy, "low": 100 * f.low, "high": 100 * f.high, "kind": expected}
        for f in found.extrapolation.forecasts
    ]
    kinds = list(dict.fromkeys(entry["kind"] for entry in entries))
    title = "Accuracy and labels"
    text = f"{title}: accuracy on the held-back pictures with fewer labels, and what is expected of more."
    x = alt.X("labels:Q", scale=alt.Scale(type="log", nice=False, padding=12), axis=alt.Axis(title="labels"))
    color = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[BLUE, VERMILLION][: len(kinds)]),
                      legend=alt.Legend(orient="bottom", title=None))  # fmt: skip
    base = chart_of(entries).encode(x=x, color=color)
    scale = alt.Scale(zero=False)
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        y=alt.Y("accuracy:Q", axis=percent_axis(), scale=scale), shape=alt.Shape("kind:N", legend=None),
        tooltip=["kind:N", alt.Tooltip("labels:Q", format=",.0f"), alt.Tooltip("accuracy:Q", format=".1f")],
    )  # fmt: skip
    bars = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    return alt.layer(bars, marks).properties(width=WIDTH, height=260, title=title, description=text)


def candidates(found: Findings) -> Chart | None:
    """The best configurations on validation pictures."""
    shown = found.tried[:SHOWN]
    if len(shown) < 2:
        return None
    entries: Entries = [
        {"what": printable(one.what, NAME), "accuracy": 100 * one.validation, "rank": i,
         "low": 100 * (one.validation - one.deviation), "high": 100 * (one.validation + one.deviation)}
        for i, one in enumerate(shown)
    ]  # fmt: skip
    title = "What was compared"
    text = f"{title}: mean accuracy on validation pictures, and the deviation between seeds."
    # Names stand above their marks: they are long.
    y = alt.Y("rank:O", axis=None)
    base = chart_of(entries).encode(y=y)
    points = base.mark_point(filled=True, size=70, opacity=1, color=BLUE).encode(
        x=alt.X("accuracy:Q", axis=percent_axis("validation accuracy (%)"), scale=alt.Scale(zero=False)),
        tooltip=["what:N", alt.Tooltip("accuracy:Q", format=".1f")],
    )
    bars = base.mark_rule(strokeWidth=2, color=BLUE).encode(x="low:Q", x2="high:Q")
    names = base.mark_text(align="left", dy=-13, style="row-name").encode(x=alt.value(0), text="what:N")
    return alt.layer(bars, points, names).properties(width=WIDTH, height=alt.Step(40), title=title, description=text)
