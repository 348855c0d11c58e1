"""Figures of advice on cuts and sources: what scores of features said, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from regraft.analysis.adviser import ADVISER, Advised, By, Judgement, advised_beside_measured, adviser_table
from regraft.show.figures_base import BLUE, GREY, VERMILLION, WIDTH, Chart, Entries, chart_of, percent_axis
from regraft.show.text import printable
from regraft.study.results import Results
from regraft.study.scores import ScoreRow, stored_scores

PANEL, HALF_WIDTH = 220, 290  # pixels: a panel's height, and its width beside another
NAME = 60  # characters of a panel's or candidate's name
KINDS = ("candidate", "advised", "measured best", "advised and best")


def advice_figure(results: Results) -> Chart | None:
    """Accuracy of every cut against what the adviser's score said of it; None where the store has no scores."""
    rows = stored_scores(results)
    return None if rows is None else measured_by_score(rows)


def regret_figure(results: Results) -> Chart | None:
    """What every score's advice on the cut would have cost; None where the store has no scores."""
    rows = stored_scores(results)
    return None if rows is None else regret_by_score(adviser_table(rows))


def advice_page(rows: Sequence[ScoreRow], by: By = "cut") -> Chart | None:
    """Both figures below each other; None if nothing was to be chosen between."""
    measured, regret = measured_by_score(rows, by), regret_by_score(adviser_table(rows, by))
    if measured is None or regret is None:
        return None
    title = f"Advice on the {_what(by)} before training"
    both: Any = alt.vconcat(measured, regret).resolve_scale(color="independent", shape="independent")
    chart: Chart = both.properties(title=title, description=f"{title}: what scores said, measured, and their regret.")
    return chart


def measured_by_score(rows: Sequence[ScoreRow], by: By = "cut", score: str = ADVISER) -> Chart | None:
    """A panel for each target and group: a point for each candidate, score against measured accuracy, means over seeds;
    the advised and the best marked. None if nothing was to be chosen between."""
    found = advised_beside_measured(rows, score, by)
    if not found:
        return None
    entries = _candidates(found)
    panels = list(dict.fromkeys(entry["panel"] for entry in entries))
    shapes = {"candidate": "circle", "advised": "triangle-up", "measured best": "diamond", "advised and best": "square"}
    colours = dict(zip(KINDS, (GREY, VERMILLION, BLUE, VERMILLION), strict=True))
    present = [kind for kind in KINDS if any(entry["kind"] == kind for entry in entries)]
    legend = alt.Legend(orient="bottom", title="in the most seeds")
    base = chart_of(entries).encode(
        x=alt.X("score:Q", axis=alt.Axis(title=f"{score} (mean over seeds)"), scale=alt.Scale(zero=False, padding=16)),
        y=alt.Y("accuracy:Q", axis=percent_axis(), scale=alt.Scale(zero=False, padding=12)),
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        color=alt.Color(
            "kind:N", scale=alt.Scale(domain=present, range=[colours[kind] for kind in present]), legend=legend
        ),
        shape=alt.Shape(
            "kind:N", scale=alt.Scale(domain=present, range=[shapes[kind] for kind in present]), legend=legend
        ),
        tooltip=[
            alt.Tooltip("candidate:N", title=_what(by)),
            alt.Tooltip("score:Q", format=".4g", title=score),
            alt.Tooltip("accuracy:Q", format=".1f", title="test accuracy (%)"),
            alt.Tooltip("picks:N", title="advised in seeds"),
            alt.Tooltip("best:N", title="best in seeds"),
        ],
    )
    # Names of neighbours stand on both sides of their points.
    names = [
        base.transform_filter(f"datum.side == '{side}'")
        .mark_text(align="right" if side == "left" else "left", dx=-8 if side == "left" else 8, dy=-6, fontSize=10)
        .encode(text="candidate:N")
        for side in ("left", "right")
    ]
    title = f"What {score} advises, and what was measured"
    text = f"{title}: mean test accuracy of every {_what(by)} against its score; the advised one and the best marked."
    chart: Chart = (
        alt.layer(points, *names)
        .properties(width=WIDTH if len(panels) == 1 else HALF_WIDTH, height=PANEL)
        .facet(facet=alt.Facet("panel:N", sort=panels, title=None, header=alt.Header(labelLimit=WIDTH)), columns=2)
        .resolve_scale(x="independent", y="independent")
        .properties(title=title, description=text)
    )
    return chart


def _candidates(found: Sequence[Advised]) -> Entries:
    """A point for each candidate of each panel; neighbours' names go to different sides."""
    most: dict[tuple[str, str], tuple[int, int]] = {}  # of a group: in how many seeds a candidate is advised, and best
    for one in found:
        picks, best = most.get((one.target, one.among), (1, 1))
        most[one.target, one.among] = max(picks, one.picks), max(best, one.best)
    entries: Entries = [
        {
            "panel": " | ".join(printable(part, NAME) for part in (one.target, one.among) if part),
            "candidate": printable(one.candidate, NAME),
            "score": one.score,
            "accuracy": 100 * one.accuracy,
            "kind": KINDS[
                (one.picks == most[one.target, one.among][0]) + 2 * (one.best == most[one.target, one.among][1])
            ],
            "picks": f"{one.picks} of {one.seeds}",
            "best": f"{one.best} of {one.seeds}",
        }
        for one in found
    ]
    for i, entry in enumerate(sorted(entries, key=lambda entry: (entry["panel"], entry["score"]))):
        entry["side"] = ("left", "right")[i % 2]
    return entries


def regret_by_score(table: Sequence[Judgement]) -> Chart | None:
    """Mean regret of every score, with its 95 % t-interval over seeds, beside the trivial rules; None if there is none.

    Only scores that are known in all groups: others were judged on fewer."""
    most = max((one.groups for one in table), default=0)
    shown = [one for one in table if one.groups == most]
    if not shown:
        return None
    kinds = ("score of features", "trivial")
    entries: Entries = [
        {
            "name": printable(one.score, NAME),
            "kind": kinds[one.trivial],
            "regret": 100 * one.regret.mean,
            "low": None if one.regret.low is None else 100 * one.regret.low,
            "high": None if one.regret.high is None else 100 * one.regret.high,
            "text": one.regret.text(100, 1),
            "hits": 100 * one.hits,
        }
        for one in shown
    ]
    y = alt.Y("name:N", sort=[entry["name"] for entry in entries], axis=alt.Axis(title=None, labelLimit=220))
    scale = alt.Scale(domain=list(kinds), range=[BLUE, GREY])
    legend = alt.Legend(orient="bottom", title=None)
    base = chart_of(entries).encode(y=y, color=alt.Color("kind:N", scale=scale, legend=legend))
    bars = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2)
        .encode(x=alt.X("low:Q", axis=percent_axis("regret (points of test accuracy)")), x2="high:Q")
    )
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=alt.X("regret:Q", axis=percent_axis("regret (points of test accuracy)")),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=list(kinds), range=["circle", "diamond"]), legend=legend),
        tooltip=[
            alt.Tooltip("name:N", title="score"),
            alt.Tooltip("text:N", title="regret (points)"),
            alt.Tooltip("hits:Q", format=".0f", title="best advised (%)"),
        ],
    )
    title = "What advice costs: accuracy of the best less that of the advised"
    text = (
        f"{title}: means over {most} groups with 95 % t-intervals over seeds; trivial rules beside scores of features."
    )
    chart: Chart = alt.layer(bars, points).properties(
        width=WIDTH, height=26 * len(entries), title=title, description=text
    )
    return chart


def _what(by: By) -> str:
    return {"cut": "cut", "source": "source", "both": "source and cut"}[by]
