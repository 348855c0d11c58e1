"""How a figure is saved: for a screen, a column of a paper, a page or a slide, as svg, png, pdf, html or json."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import vl_convert
from PIL import Image

from regraft.errors import StudyError, UnknownName
from regraft.show.figures_base import LETTERS, NARROW, PAPERS, Chart, drawn, page, spec, theme
from regraft.study.files import write_bytes

# name -> width and height in mm; no height: as high as it is
SIZES: dict[str, tuple[float, float | None]] = {"column": (85, None), "page": (170, None), "slide": (254, 143)}
PIXELS_PER_MM = 96 / 25.4  # as CSS has it
DOTS_PER_INCH = 300  # of a PNG
ENDINGS = (".svg", ".png", ".pdf", ".html", ".json")
SMALLEST_WIDTH_MM = 40
WIDTH_OF_LETTER = 0.6  # of its size, of a wide one
LEAST_PLOT, LEAST_SHRUNK = 60, 0.7  # pixels wide; share of its height that a plot keeps


def save_figure(
    chart: Chart,
    path: str | Path,
    *,
    width_mm: float | None = None,
    height_mm: float | None = None,
    dark: bool = False,
    font: str | None = None,
) -> Path:
    """Write the chart by the name's ending: svg, png (300 dots per inch), pdf, html (needs no network) or json.

    width_mm: of the whole figure; default: as on a screen.  height_mm: the figure is made that high where its plot can
    be stretched, and smaller where it would be higher.  font: a family that this machine has.
    Raises UnknownName for another ending or font, StudyError for a width that nothing can be read at."""
    file = Path(path)
    if file.suffix.lower() not in ENDINGS:
        raise UnknownName(f"cannot save a figure as {file.suffix!r}. Endings: {', '.join(ENDINGS)}.")
    if width_mm is not None and width_mm < SMALLEST_WIDTH_MM:
        raise StudyError(f"a figure {width_mm:g} mm wide cannot be read; make it at least {SMALLEST_WIDTH_MM} mm")
    if font is not None and not font_known(font):
        raise UnknownName(f"this machine has no font {font!r}; name one that is installed, or leave --font out")
    width = None if width_mm is None else width_mm * PIXELS_PER_MM
    config = {**theme(dark=dark, width=width), "background": PAPERS[dark], **({"font": font} if font else {})}
    letters = LETTERS if width is None else int(width / config["title"]["fontSize"] / WIDTH_OF_LETTER)
    made = spec(chart, letters=letters)
    height = None if height_mm is None else height_mm * PIXELS_PER_MM
    document = ""
    if width is not None:
        made, document = fitted(made, config, width, height)
    write_bytes(file, _content(file.suffix.lower(), made, config, document))
    return file


def _content(ending: str, made: dict[str, Any], config: dict[str, Any], document: str) -> bytes:
    match ending:
        case ".json":
            return (json.dumps({**made, "config": config}, indent=1, ensure_ascii=False) + "\n").encode()
        case ".html":
            return page(made, config).encode()
    document = document or drawn(made, config)
    match ending:
        case ".svg":
            return document.encode()
        case ".pdf":
            wide, high = size(document)
            return bytes(vl_convert.svg_to_pdf(_resized(document, wide * 72 / 96, high * 72 / 96)))  # in points
    png = io.BytesIO(vl_convert.svg_to_png(document, scale=DOTS_PER_INCH / 96))
    out = io.BytesIO()
    Image.open(png).convert("RGB").save(out, "PNG", dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return out.getvalue()


def fitted(
    made: dict[str, Any], config: dict[str, Any], width: float, height: float | None = None
) -> tuple[dict[str, Any], str]:
    """The spec with its plots so wide that the whole is `width` pixels, and its SVG, which is exactly so wide, or
    narrower where it would be higher than `height`.

    Axes, names and legends take what they take, so it is drawn, measured and drawn again."""
    made = {**made, "spec": dict(made["spec"])} if "spec" in made else dict(made)
    plot = made.get("spec", made)  # of one panel
    if "columns" in made and width < NARROW:
        made["columns"] = 1
    columns = int(made.get("columns", 1))
    lowest = LEAST_SHRUNK * plot["height"]
    plot["width"] = max(LEAST_PLOT, width * 0.7 / columns)
    document = drawn(made, config)
    for _ in range(3):
        wide, high = size(document)
        stretch = (width - wide) / columns
        taller = 0.0 if height is None or "spec" in made else height - high
        if abs(stretch) < 1 and (abs(taller) < 1 or plot["height"] + taller < lowest):
            break
        plot["width"] = max(LEAST_PLOT, plot["width"] + stretch)
        plot["height"] = max(lowest, plot["height"] + taller)
        document = drawn(made, config)
    wide, high = size(document)
    scale = min(width / wide, height / high if height is not None else 1.0)
    return made, _resized(document, wide * scale, high * scale) if scale < 1 else document


def size(document: str) -> tuple[float, float]:
    """Width and height of an SVG in pixels."""
    head = document[: document.index(">")]
    found = [re.search(rf'\b{side}="([\d.]+)', head) for side in ("width", "height")]
    assert found[0] is not None
    assert found[1] is not None
    return float(found[0][1]), float(found[1][1])


def _resized(document: str, width: float, height: float) -> str:
    head, rest = document[: document.index(">")], document[document.index(">") :]
    head = re.sub(r'\bwidth="[^"]*"', f'width="{width:.2f}"', head, count=1)
    return re.sub(r'\bheight="[^"]*"', f'height="{height:.2f}"', head, count=1) + rest


def font_known(font: str) -> bool:
    """Whether a family is installed: a word drawn in it looks different from one in a font that nobody has."""

    def word(family: str) -> bytes:
        name = family.replace("&", "&amp;").replace('"', "").replace("<", "")
        return bytes(
            vl_convert.svg_to_png(
                '<svg xmlns="http://www.w3.org/2000/svg" width="180" height="40">'
                f'<text x="5" y="28" font-size="24" font-family="{name}">Rag gQfi 0123</text></svg>'
            )
        )

    generic = {"serif", "sans-serif", "monospace"}
    return font.lower() in generic or word(font) != word("no font has this name")
