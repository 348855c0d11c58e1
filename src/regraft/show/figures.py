"""Figures: results in, Altair chart out; None where a figure would say nothing. The only user of altair.

Colours are taken from Okabe and Ito's palette for colour-blind readers (2008), darkened where they had less
than 3:1 contrast on white, so that the same marks read on light and dark pages. Nothing
is told by colour alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import re
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import vl_convert

from regraft.analysis.stats import Summary
from regraft.analysis.table import TableRow, rows_table
from regraft.data.home import home, write_file
from regraft.errors import UnknownName
from regraft.show.text import printable, script_json
from regraft.study.results import Results

if TYPE_CHECKING:  # brings torch
    from regraft.learn.lr_find import LearningRates

Chart = alt.Chart | alt.LayerChart | alt.FacetChart
Entries = list[dict[str, Any]]

BLUE, VERMILLION, GREEN, PURPLE, OCHRE, GREY = (
    "#1f83c4",
    "#d55e00",
    "#009e73",
    "#b9628f",
    "#a87400",
    "#808080",
)
INKS = ("#1b1e24", "#e8eaed")  # on a light and on a dark page; no mark has one of these four colours
FAINTS = ("#dfe3e8", "#3a3f47")
COLOURS = [BLUE, VERMILLION, GREEN, PURPLE, OCHRE, GREY]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
WIDTH = 640  # pixels
ROW_HEIGHT = 46  # pixels: a row's name above its marks
NAMES_IN_LEGEND = 12


def theme(*, dark: bool) -> dict[str, Any]:
    """Vega-Lite config: ink, grid and font on a transparent background."""
    ink, faint = INKS[dark], FAINTS[dark]
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **text,
            "gridColor": faint,
            "domainColor": faint,
            "tickColor": faint,
            "titleFontWeight": "normal",
        },
        "legend": {**text, "labelLimit": 260, "titleFontWeight": "normal"},
        "title": {"color": ink, "anchor": "start", "fontSize": 14},
        "text": {"color": ink},
        "style": {"row-name": {"fill": ink}},
    }


def chart_of(entries: Entries) -> alt.Chart:
    return alt.Chart(alt.Data(values=entries))  # type: ignore[no-untyped-call]


def percent_axis(title: str = "test accuracy (%)") -> alt.Axis:
    return alt.Axis(title=title, grid=True, tickCount=6)


def _interval(summary: Summary) -> dict[str, float | None]:
    low, high = summary.low, summary.high
    return {"low": None if low is None else 100 * low, "high": None if high is None else 100 * high}


def line_look(names: list[str], title: str) -> dict[str, Any]:
    """Colour and dash of lines, a pair for every name; a legend below unless it would be too long."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    dashes = [DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(names))]
    many = len(names) > NAMES_IN_LEGEND
    look: dict[str, Any] = {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2}
    legend = None if many else alt.Legend(orient="bottom", direction="vertical", title=title, **look)
    return {
        "color": alt.Color("group:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        "strokeDash": alt.StrokeDash("group:N", scale=alt.Scale(domain=names, range=dashes), legend=legend),
    }


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
    points = base.mark_point(size=70, strokeWidth=1.8, yOffset=8).encode(
        x=x,
        y=y,
        color=alt.Color("kind:N", scale=alt.Scale(**scale), legend=legend),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=present, range=[shapes[k] for k in present]), legend=legend),
        angle=alt.condition(alt.datum.kind == "chance", alt.value(90), alt.value(0)),
        tooltip=[
            alt.Tooltip("name:N", title="row"),
            alt.Tooltip("kind:N", title="mark"),
            alt.Tooltip("text:N", title="value"),
        ],
    )
    means = base.transform_filter(alt.datum.kind == kinds[1])
    bars = means.mark_rule(color=BLUE, strokeWidth=3, yOffset=8).encode(x="low:Q", x2="high:Q", y=y)
    fills = means.mark_point(shape="diamond", filled=True, color=BLUE, opacity=1, size=110, yOffset=8).encode(x=x, y=y)
    labels = (
        chart_of([{"row": i, "name": printable(row.name)} for i, row in enumerate(rows)])
        .mark_text(align="left", dy=-10, fontSize=12, limit=alt.ExprRef("width"), style="row-name")
        .encode(x=alt.value(0), y=y, text="name:N")
    )
    text = f"Test accuracy of {len(rows)} rows: seeds, mean with 95 % t-interval, chance, original figures."
    return alt.layer(bars, fills, points, labels).properties(
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
        marks.append({"kind": mean, **value, **_interval(row.summary)})
    for kind, known in ((original, row.original), (chance, row.chance)):
        if known is not None:
            marks.append({"kind": kind, "value": 100 * known, "text": f"{100 * known:.1f} %"})
    return [{"name": printable(row.name), **mark} for mark in marks]


def accuracy_by_cut(results: Results) -> Chart | None:
    """A line per source, method, head and target that has two cuts or more; x from the image to the classifier."""
    entries = _lines(
        results, lambda row: (row.source, row.method, row.head, row.target), lambda row: printable(row.cut)
    )
    if not entries:
        return None
    depths = {printable(cell.cut): cell.depth for cell in results.cells}
    order = sorted({entry["x"] for entry in entries}, key=lambda cut: (depths[cut] or 0.0, natural(cut)))
    axis = alt.Axis(title="cut: last layer of the trunk", labelAngle=-35, labelLimit=140)
    x = alt.X("x:N", sort=order, scale=alt.Scale(type="point", padding=0.3), axis=axis)
    return _line_chart(entries, x, "Accuracy by cut")


def accuracy_by_budget(results: Results) -> Chart | None:
    """A line per data set, source, cut, method and head with two budgets or more; x in images."""
    data = {name: target.data for name, target in results.study.targets.items()}
    entries = _lines(
        results,
        lambda row: (row.source, row.cut, row.method, row.head, data[row.target]),
        lambda row: row.train_images,
    )
    if not entries:
        return None
    x = alt.X("x:Q", scale=alt.Scale(type="log", nice=False, padding=20), axis=alt.Axis(format="~s"))
    return _line_chart(entries, x.title("training images (log scale)"), "Accuracy by number of training images")


def natural(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """layer2.2 before layer2.10 before layer3.0, and the penultimate layer last; for records without depths."""
    parts = re.findall(r"\d+|\D+", name)
    return name == "penultimate", [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _lines(results: Results, group: Any, x: Any) -> Entries:
    """Entries of every group of rows in which `x` takes two values or more; one row per group and x."""
    lines: dict[tuple[str, ...], dict[Any, TableRow]] = {}
    for row in rows_table(results):
        if row.summary and math.isfinite(row.summary.mean):
            lines.setdefault(group(row), {}).setdefault(x(row), row)
    entries: Entries = []
    for key, by_x in lines.items():
        if len(by_x) < 2:
            continue
        for value, row in by_x.items():
            assert row.summary is not None
            known = {"mean": 100 * row.summary.mean, "text": row.summary.text(), **_interval(row.summary)}
            entries.append({"group": printable(", ".join(key), 120), "x": value, "row": printable(row.name), **known})
    return entries


def _line_chart(entries: Entries, x: alt.X, title: str) -> Chart:
    """Mean as line and points, 95 % t-interval as band."""
    groups = list(dict.fromkeys(entry["group"] for entry in entries))
    look = line_look(groups, "source, method, head, data")
    y = alt.Y("mean:Q", axis=percent_axis(), scale=alt.Scale(zero=False, nice=True))
    base = chart_of(entries).encode(x=x)
    bands = (
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.18)
        .encode(y=alt.Y("low:Q"), y2="high:Q", color=look["color"])
    )
    tooltip = [alt.Tooltip("row:N"), alt.Tooltip("text:N", title="accuracy")]
    lines = base.mark_line(strokeWidth=2).encode(y=y, **look)
    points = base.mark_point(filled=True, size=50, opacity=1).encode(y=y, color=look["color"], tooltip=tooltip)
    text = f"{title}: mean over seeds with 95 % t-interval as a band."
    return alt.layer(bands, lines, points).properties(width=WIDTH, height=340, title=title, description=text)


def learning_curves(results: Results) -> Chart | None:
    """Validation accuracy by epoch, a line per seed, coloured by row; None if no training has two epochs."""
    entries: Entries = [
        {
            "group": printable(cell.row, 120),
            "seed": cell.seed,
            "epoch": epoch["epoch"],
            "accuracy": 100 * epoch["validation_accuracy"],
        }
        for cell in results.cells
        if len(cell.curve) > 1
        for epoch in cell.curve
        if math.isfinite(epoch.get("validation_accuracy", math.nan))
    ]
    if not entries:
        return None
    groups = list(dict.fromkeys(entry["group"] for entry in entries))
    title = "Validation accuracy while training"
    chart: Chart = (
        chart_of(entries)
        .mark_line(strokeWidth=1.5, opacity=0.85)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, grid=False)),
            y=alt.Y("accuracy:Q", axis=percent_axis("validation accuracy (%)"), scale=alt.Scale(zero=False)),
            detail="seed:N",
            tooltip=[
                alt.Tooltip("group:N", title="row"),
                "seed:N",
                "epoch:Q",
                alt.Tooltip("accuracy:Q", format=".1f"),
            ],
            **line_look(groups, "row (a line per seed)"),
        )
        .properties(width=WIDTH, height=300, title=title, description=f"{title}: a line per row and seed.")
    )
    return chart


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


def spec(chart: Chart) -> dict[str, Any]:
    """Vega-Lite as a dictionary, without theme."""
    made: dict[str, Any] = chart.to_dict()
    made.pop("config", None)
    return made


def svg(chart: Chart, *, dark: bool = False) -> str:
    """The chart as an SVG document."""
    return _drawn(spec(chart), dark=dark)


def _drawn(made: dict[str, Any], *, dark: bool) -> str:
    return str(vl_convert.vegalite_to_svg(made, vl_version=vega_lite_version(), config=theme(dark=dark)))


def images(made: dict[str, Any]) -> dict[str, str]:
    """Addresses of the "light" and "dark" SVG of a chart's `spec`.

    As images they can run no script, whatever is written in them. Only ink and grid differ, so the dark one is the
    light one in other colours: drawing takes 0.2 s."""
    light = dark = _drawn(made, dark=False)
    for colour, other in (INKS, FAINTS):
        dark = dark.replace(f'"{colour}"', f'"{other}"')
    return {"light": _address(light), "dark": _address(dark)}


def _address(document: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(document.encode()).decode()


def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script (0.9 MB), from vl-convert's own copy.

    To bundle them takes a second and gives the same each time: the script is kept in the home folder, under the
    versions and its digest, so that a damaged one is made again."""
    vega_lite = vega_lite_version()
    name = f"vega-{metadata.version('vl-convert-python')}-{vega_lite}-"
    for file in (home() / "show").glob(f"{name}*.js"):
        kept = file.read_bytes()
        if file.name == f"{name}{hashlib.sha256(kept).hexdigest()[:32]}.js":
            return kept.decode()
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite)
    script = str(bundle).replace("</script", "<\\/script").replace("<!--", "<\\!--").encode()
    with contextlib.suppress(OSError):  # a home folder that cannot be written costs the next report a second
        write_file(home() / "show" / f"{name}{hashlib.sha256(script).hexdigest()[:32]}.js", script)
    return script.decode()


def _page(made: dict[str, Any], config: dict[str, Any]) -> str:
    """A page that needs no network. (vl-convert's own page leaves `</script>` in a name as markup.)"""
    options = {"config": config, "actions": False, "ast": True}
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(made["title"])}</title>'
        f'<div id="chart"></div><script>{javascript()}</script>'
        f'<script>vegaEmbed("#chart", {script_json(made)}, {script_json(options)});</script></html>\n'
    )


def vega_lite_version() -> str:
    """The newest bundled Vega-Lite that is not newer than the installed altair's, e.g. '6.1'."""
    wanted = _numbers(alt.SCHEMA_VERSION.lstrip("v"))
    known = [version for version in vl_convert.get_vegalite_versions() if _numbers(version) <= wanted]
    return str(max(known, key=_numbers))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def save(chart: Chart, path: str | Path) -> Path:
    """Write the chart as svg, png, pdf or html by the name's ending; the html needs no network.

    Raises UnknownName for another ending.
    """
    file = Path(path)
    made, version, config = spec(chart), vega_lite_version(), {**theme(dark=False), "background": "white"}
    match file.suffix.lower():
        case ".svg":
            file.write_text(vl_convert.vegalite_to_svg(made, vl_version=version, config=config), "utf-8")
        case ".png":
            file.write_bytes(vl_convert.vegalite_to_png(made, vl_version=version, config=config, scale=2))
        case ".pdf":
            file.write_bytes(vl_convert.vegalite_to_pdf(made, vl_version=version, config=config))
        case ".html":
            file.write_text(_page(made, config), "utf-8")
        case ending:
            raise UnknownName(f"cannot save a figure as {ending!r}. Endings: .svg, .png, .pdf, .html.")
    return file
