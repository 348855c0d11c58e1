"""Figures of layer transfer, and of weights mixed after fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from regraft.analysis import arms
from regraft.show.figures import WIDTH, Chart, Entries, chart_of, line_look, natural, percent_axis
from regraft.show.text import printable
from regraft.study.results import Results

if TYPE_CHECKING:  # it needs torch, which a report does without
    from regraft.study.similarity import Alike


def lost_by_cut(results: Results) -> Chart | None:
    """Of layer transfer, a panel for each target and other source: what each cut costs, co-adaptation beside
    specificity, as paired differences with their intervals."""
    kinds = ("co-adaptation: base - B n B", "specificity: B n B - A n B")
    entries: Entries = []
    depths: dict[str, float] = {}
    for lost in arms.lost_by_cut(results):
        depths[printable(lost.cut)] = lost.depth or 0.0
        panel = f"{printable(lost.other, 60)} to {printable(lost.target, 60)}"
        for kind, difference, each in zip(kinds, (lost.co_adaptation, lost.specificity), lost.each, strict=True):
            low, high = 100 * difference.low, 100 * difference.high
            known = {"mean": 100 * difference.mean, "low": low, "high": high, "text": difference.text()}
            place = {"panel": panel, "group": kind, "x": printable(lost.cut)}
            entries.append({**place, **known})
            entries += [
                {**place, "one": 100 * value, "text": f"{100 * value:+.1f} points (seed {seed})"}
                for seed, value in each.items()
            ]
    if not entries:
        return None
    order = sorted(depths, key=lambda cut: (depths[cut], natural(cut)))
    x = alt.X("x:N", sort=order, axis=alt.Axis(title="cut: last block that is kept", labelAngle=-35))
    look = line_look(list(kinds), "accuracy lost to")
    offset = alt.XOffset("group:N", sort=list(kinds))
    tooltip = [alt.Tooltip("panel:N"), alt.Tooltip("group:N"), alt.Tooltip("text:N", title="paired difference")]
    base = chart_of(entries).encode(x=x, xOffset=offset, color=look["color"], tooltip=tooltip)
    means = base.transform_filter("isValid(datum.mean)")
    seeds = base.transform_filter("isValid(datum.one)").mark_point(filled=True, size=16, opacity=0.85)
    points = means.mark_point(filled=False, size=90, strokeWidth=1.8, opacity=1).encode(
        y=alt.Y("mean:Q", axis=percent_axis("accuracy lost (points)")), shape=alt.Shape("group:N", legend=None),
    )  # fmt: skip
    bars = means.mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q")
    title = "What a cut costs: co-adaptation and specificity"
    text = f"{title}: paired differences of every seed, their mean and its 95 % t-interval, for each cut."
    chart: Chart = (
        alt.layer(bars, points, seeds.encode(y="one:Q"))
        .properties(width=WIDTH, height=260)
        .facet(row=alt.Row("panel:N", title=None))
        .properties(title=title, description=text)
    )
    return chart


def mixing_curve(results: Results) -> Chart | None:
    """Validation accuracy between the start (0) and the end (1) of a fine-tuning, a line per row and seed (WiSE-FT)."""
    entries: Entries = [
        {"group": printable(cell.row, 120), "seed": cell.seed, "factor": factor, "accuracy": 100 * accuracy}
        for cell in results.cells
        for factor, _, accuracy in cell.mixing
    ]
    if not entries:
        return None
    groups = list(dict.fromkeys(entry["group"] for entry in entries))
    title = "Weights mixed: between the start and the end of fine-tuning"
    chart: Chart = (
        chart_of(entries)
        .mark_line(strokeWidth=1.5, point=True)
        .encode(
            x=alt.X("factor:Q", axis=alt.Axis(title="mixing factor (0: start, 1: fine-tuned)")),
            y=alt.Y("accuracy:Q", axis=percent_axis("validation accuracy (%)"), scale=alt.Scale(zero=False)),
            detail="seed:N",
            tooltip=[
                alt.Tooltip("group:N", title="row"),
                "seed:N",
                "factor:Q",
                alt.Tooltip("accuracy:Q", format=".1f"),
            ],
            **line_look(groups, "row (a line per seed)"),
        )
        .properties(width=WIDTH, height=280, title=title, description=f"{title}; validation accuracy by factor.")
    )
    return chart


def cka_map(alike: Alike) -> Chart:
    """Heat map of CKA between the blocks of two networks, numbers in the cells."""
    rows, columns = ([printable(cut) for cut in cuts] for cuts in alike.cuts)
    entries: Entries = [
        {"a": a, "b": b, "cka": value, "ink": value < 0.6}
        for a, values in zip(rows, alike.matrix.tolist(), strict=True)
        for b, value in zip(columns, values, strict=True)
    ]
    first, second = (printable(name, 80) for name in alike.names)
    title = "How alike blocks are: CKA"
    base = chart_of(entries).encode(
        x=alt.X("b:N", sort=columns, axis=alt.Axis(title=second, labelAngle=-45)),
        y=alt.Y("a:N", sort=rows, axis=alt.Axis(title=first)),
        tooltip=["a:N", "b:N", alt.Tooltip("cka:Q", format=".3f")],
    )
    scale = alt.Scale(domain=[0, 1], scheme="blues", clamp=True)
    cells = base.mark_rect().encode(color=alt.Color("cka:Q", scale=scale, legend=alt.Legend(title="CKA")))
    ink = alt.condition(alt.datum.ink, alt.value("#1b1e24"), alt.value("#ffffff"))
    numbers = base.mark_text(fontSize=10).encode(text=alt.Text("cka:Q", format=".2f"), color=ink)
    text = f"{title} between the blocks of {first} and of {second}, on {alike.images:,} training images."
    side = 34 * max(len(rows), len(columns), 6)
    return alt.layer(cells, numbers).properties(width=side, height=34 * len(rows), title=title, description=text)
