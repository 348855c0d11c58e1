"""Notebooks: progress as one HTML block that is replaced as the study advances, and figures as pictures. No widgets.

Outputs of widgets are lost when a notebook is saved and need an extension in the browser; plain HTML stays. A figure
that a script draws needs the network and is not shown where scripts are not run; a picture is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.show.progress import SHOWN_STEPS, headline, outcome
from regraft.show.text import percent, printable
from regraft.show.tracker import RunningStep, Tracker
from regraft.study.events import Event, PlanReady, Report, StepFailed, StudyDone
from regraft.study.results import Results

if TYPE_CHECKING:
    from regraft.show.figures_base import Chart

REFRESH_SECONDS = 0.5
KEPT_LINES = 8


@contextmanager
def notebook_display(clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """Needs IPython, which every notebook has."""
    from IPython.display import HTML, display

    tracker, lock, lines = Tracker(clock), threading.Lock(), list[str]()
    handle = display(HTML(""), display_id=True)  # type: ignore[no-untyped-call]
    drawn = clock() - REFRESH_SECONDS

    def report(event: Event) -> None:
        nonlocal drawn
        with lock:
            tracker.update(event)
            if line := outcome(event):
                lines.append(line)
            urgent = isinstance(event, PlanReady | StepFailed | StudyDone)
            if urgent or clock() - drawn >= REFRESH_SECONDS:
                handle.update(HTML(progress_html(tracker, lines)))  # type: ignore[no-untyped-call]
                drawn = clock()

    yield report


def progress_html(tracker: Tracker, lines: list[str]) -> str:
    """The state as HTML; `lines` are what events left behind, the last few of them shown."""
    running = list(tracker.running.values())
    shown = "".join(_step_html(step) for step in running[:SHOWN_STEPS])
    kept = "".join(f'<div dir="auto">{escape(line)}</div>' for line in lines[-KEPT_LINES:])
    overall = f"{_bar(tracker.fraction)} {percent(tracker.fraction, 0)} {escape(headline(tracker))}"
    return f'<div style="font-variant-numeric:tabular-nums"><div>{overall}</div>{shown}{kept}</div>'


def _step_html(step: RunningStep) -> str:
    name = f"{escape(printable(step.stage))} <bdi>{escape(printable(step.label, 100))}</bdi>"
    return f"<div>{_bar(step.done)} {percent(step.done, 0)} {name} {escape(printable(step.message))}</div>"


def _bar(fraction: float) -> str:
    return f'<progress max="1" value="{fraction:.3f}" style="width:12em"></progress>'


@dataclass(frozen=True)
class Picture:
    """A figure that shows itself in a notebook, on its own light or dark ground."""

    chart: Chart  # Altair's own: `picture.chart` draws itself with a script, and answers to the mouse

    def save(
        self, path: str | Path, *, width_mm: float | None = None, dark: bool = False, font: str | None = None
    ) -> Path:
        """Write it as svg, png, pdf, html or json, by the name's ending; see `show.gallery.save_figure`."""
        from regraft.show.gallery import save_figure

        return save_figure(self.chart, path, width_mm=width_mm, dark=dark, font=font)

    def _repr_html_(self) -> str:
        from regraft.show.figures_base import images, spec

        made = spec(self.chart)
        shown = images(made, paper=True)
        return (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{shown["dark"]}">'
            f'<img src="{shown["light"]}" alt="{escape(made["description"])}" style="max-width:100%"></picture>'
        )


def figure(name: str, results: Results, *, row: str | None = None) -> Picture:
    """The figure `name` ("rows", "cuts", "budgets", "differences", "worth", "curves", "cost", ...) of a study.

    row: of this row alone. Raises UnknownName for another name, StudyError where the study has nothing to draw."""
    from regraft.show import gallery

    return Picture(gallery.figure(name, results, row=row))
