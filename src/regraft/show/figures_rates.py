"""The figure of a search for a learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from regraft.show.figures_base import BLUE, DASHES, GREEN, GREY, VERMILLION, WIDTH, Chart, Entries, chart_of
from regraft.show.text import printable

if TYPE_CHECKING:  # brings torch
    from regraft.learn.lr_find import LearningRates


def lr_curve(found: LearningRates, name: str) -> Chart:
    """Loss against a rising learning rate (log scale), each mini-batch a point, and the two suggested rates."""
    steps: Entries = [
        {"rate": rate, "loss": loss, "smoothed": smoothed}
        for rate, loss, smoothed in zip(found.rates, found.losses, found.smoothed, strict=True)
    ]
    span = alt.Scale(domain=[0.9 * min(found.smoothed), 1.1 * max(found.smoothed)])  # single batches may lie outside
    suggested = {"falls fastest": found.steepest, "a tenth of the rate at the lowest loss": found.tenth}
    marks: Entries = [{"kind": f"{kind}: {rate:.2g}", "rate": rate} for kind, rate in suggested.items()]
    kinds = [mark["kind"] for mark in marks]
    x = alt.X("rate:Q", scale=alt.Scale(type="log", nice=False))
    x = x.axis(format="~g", title="learning rate", grid=False)
    axis = alt.Axis(title="training loss")
    y, smooth = (alt.Y(f"{field}:Q", scale=span, axis=axis) for field in ("loss", "smoothed"))
    tooltip = [alt.Tooltip("rate:Q", format=".2g"), alt.Tooltip("smoothed:Q", format=".3f", title="smoothed loss")]
    batches = chart_of(steps).mark_point(size=14, color=GREY, clip=True).encode(x=x, y=y)
    line = chart_of(steps).mark_line(strokeWidth=2, color=BLUE).encode(x=x, y=smooth, tooltip=tooltip)
    legend = alt.Legend(orient="top", title="suggested rates", symbolType="stroke", symbolStrokeWidth=2)
    color = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[VERMILLION, GREEN]), legend=legend)
    dash = alt.StrokeDash("kind:N", scale=alt.Scale(domain=kinds, range=DASHES[:2]), legend=legend)
    rules = chart_of(marks).mark_rule(strokeWidth=2).encode(x=x, color=color, strokeDash=dash)
    text = f"Training loss of {len(steps)} mini-batches while the learning rate rises; {' and '.join(kinds)}."
    title = printable(f"Learning rates: {name}", 100)
    return alt.layer(batches, line, rules).properties(width=WIDTH, height=300, title=title, description=text)
