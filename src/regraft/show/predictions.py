"""The page of a predictor's answers: how right they are, class by class, and the pictures that it is most wrong about.

Names of files and classes are anybody's: the template escapes everything, and the page loads nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.show.page import render
from regraft.show.text import TextTable

THUMBNAIL = 112  # pixels a side
QUALITY = 80  # of the thumbnails' JPEG


@dataclass(frozen=True)
class Matrix:
    """Counts, [true][predicted], with the classes' names on both sides."""

    names: tuple[str, ...]  # k
    counts: tuple[tuple[int, ...], ...]  # (k, k)

    def shade(self, row: int, column: int) -> float:
        """Share of the true class's pictures, in [0, 1]."""
        return self.counts[row][column] / max(1, sum(self.counts[row]))


@dataclass(frozen=True)
class Bar:
    """Answers of similar confidence; fractions."""

    low: float
    high: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class Thumbnail:
    """A small picture and what is said below it."""

    image: str  # data: URI
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All that the page shows; what is empty is left out."""

    title: str
    about: str  # which predictor
    sentences: tuple[str, ...]
    tables: tuple[TextTable, ...] = ()
    matrix: Matrix | None = None
    diagram: tuple[Bar, ...] = ()
    diagram_caption: str = ""
    gallery: str = ""  # its title
    thumbnails: tuple[Thumbnail, ...] = ()
    command: str = ""


def thumbnail(pixels: NDArray[np.uint8], lines: Sequence[str]) -> Thumbnail:
    """pixels: (h, w, 3). Encoded anew: nothing of a file but its pixels (no place, no camera) is in the page."""
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=QUALITY)
    return Thumbnail("data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode(), tuple(lines))


def page_html(page: Page) -> str:
    """The page as HTML; `regraft.show.page.write_page` writes it."""
    return render("predictions.html", page=page)
