"""What every figure is made of and drawn with: the palette, the theme, the drawing script, and images of a chart.

Colours are taken from Okabe and Ito's palette for colour-blind readers (2008), darkened where they had less
than 3:1 contrast on white, so that the same marks read on light and dark pages. Nothing
is told by colour alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from html import escape
from importlib import metadata
from typing import Any

import altair as alt
import vl_convert

from regraft.analysis.stats import Summary
from regraft.data.home import home, write_file
from regraft.show.text import script_json

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
PAPERS = ("#ffffff", "#1c2026")
COLOURS = [BLUE, VERMILLION, GREEN, PURPLE, OCHRE, GREY]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
WIDTH = 640  # pixels
LETTERS = 100  # of a line above a figure of this width
NARROW, WIDE = 480, 800  # pixels: narrower figures are columns of a paper, wider ones slides
ROW_HEIGHT = 46  # pixels: a row's name above its marks
NAMES_IN_LEGEND = 12


def theme(*, dark: bool, width: float | None = None) -> dict[str, Any]:
    """Vega-Lite config: ink, grid and font on a transparent background.

    width: of the whole figure in pixels, where it is given: what is written is made to fit it."""
    ink, faint = INKS[dark], FAINTS[dark]
    narrow, wide = width is not None and width < NARROW, width is not None and width > WIDE
    letters = 9 if narrow else 15 if wide else 12
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": letters, "titleFontSize": letters}
    legend = {
        **text, "labelLimit": 260 if width is None else 0.8 * width if narrow else 0.4 * width,
        "titleFontWeight": "normal", "symbolBaseFillColor": ink,
    }  # fmt: skip
    if narrow:  # legends below each other
        legend["layout"] = {side: {"direction": "vertical", "anchor": "start"} for side in ("top", "bottom")}
    return {
        "background": None,
        "font": FONT,
        "padding": {"left": 5, "right": 5, "top": 5, "bottom": 10},  # a legend's last mark reaches below its text
        "view": {"stroke": None},
        "axis": {
            **text,
            "gridColor": faint,
            "domainColor": faint,
            "tickColor": faint,
            "titleFontWeight": "normal",
        },
        "legend": legend,
        "title": {
            "color": ink,
            "subtitleColor": ink,
            "anchor": "start",
            "fontSize": letters + 2,
            "subtitleFontSize": letters,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": letters, "labelFontWeight": "bold"},
        "text": {"color": ink},
        "style": {"row-name": {"fill": ink, "fontSize": letters}},
    }


def chart_of(entries: Entries) -> alt.Chart:
    return alt.Chart(alt.Data(values=entries))  # type: ignore[no-untyped-call]


def percent_axis(title: str = "test accuracy (%)") -> alt.Axis:
    return alt.Axis(title=title, grid=True, tickCount=6)


def log_axis(title: str) -> alt.Axis:
    """Of a logarithmic scale: ticks at 1, 2 and 5 times powers of ten, without a grid."""
    ticks = [float(f"{digit}e{power}") for power in range(-4, 7) for digit in (1, 2, 5)]
    return alt.Axis(
        title=title, values=ticks, format=",~r", labelOverlap="greedy", labelSeparation=6, tickSize=4, grid=False
    )


def interval(summary: Summary) -> dict[str, float | None]:
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


def natural(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """layer2.2 before layer2.10 before layer3.0, and the penultimate layer last; for records without depths."""
    parts = re.findall(r"\d+|\D+", name)
    return name == "penultimate", [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def spec(chart: Chart, *, letters: int = LETTERS) -> dict[str, Any]:
    """Vega-Lite as a dictionary, without theme; title and subtitle in lines of at most so many letters."""
    made: dict[str, Any] = chart.to_dict()
    made.pop("config", None)
    title = made["title"] if isinstance(made["title"], dict) else {"text": made["title"]}
    folded = {name: folded_text(text, letters) for name, text in title.items() if name in ("text", "subtitle")}
    told = {name: lines[0] if len(lines) == 1 else lines for name, lines in folded.items()}
    made["title"] = told["text"] if told.keys() == {"text"} else told
    return made


def folded_text(text: str, letters: int) -> list[str]:
    """Words in lines of at most so many letters; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def svg(chart: Chart, *, dark: bool = False) -> str:
    """The chart as an SVG document."""
    return drawn(spec(chart), theme(dark=dark))


def drawn(made: dict[str, Any], config: dict[str, Any]) -> str:
    """A chart's `spec` as an SVG document."""
    return str(vl_convert.vegalite_to_svg(made, vl_version=vega_lite_version(), config=config))


def images(made: dict[str, Any], *, paper: bool = False) -> dict[str, str]:
    """Addresses of the "light" and "dark" SVG of a chart's `spec`; `paper`: not transparent.

    As images they can run no script, whatever is written in them. Only ink and grid differ, so the dark one is the
    light one in other colours: drawing takes 0.2 s."""
    light = dark = drawn(made, {**theme(dark=False), **({"background": PAPERS[False]} if paper else {})})
    for colour, other in (INKS, FAINTS):
        dark = dark.replace(f'"{colour}"', f'"{other}"')
    if paper:  # drawn first
        dark = dark.replace(f'"{PAPERS[False]}"', f'"{PAPERS[True]}"', 1)
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


def page(made: dict[str, Any], config: dict[str, Any]) -> str:
    """A page that needs no network. (vl-convert's own page leaves `</script>` in a name as markup.)"""
    options = {"config": config, "actions": False, "ast": True}
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(made["description"])}</title>'
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
