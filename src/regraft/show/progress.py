"""The live display of a study: rich in a terminal, lines in a log, HTML in a notebook, JSON for programs.

Each display is a context manager that yields the function which the engine reports its events to.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from regraft.errors import UnknownName, nearest
from regraft.show.text import duration, percent, printable
from regraft.show.tracker import RunningStep, Tracker
from regraft.study.events import (
    Event,
    Note,
    PlanReady,
    Report,
    StepAdvanced,
    StepDone,
    StepFailed,
    StudyDone,
    silent,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

KINDS = ("auto", "rich", "plain", "json", "quiet", "notebook")
HEARTBEAT_SECONDS = 10.0
SHOWN_STEPS = 6  # running steps with a bar of their own


def choose_display(kind: str = "auto") -> AbstractContextManager[Report]:
    """The display of that kind. auto: notebook in a notebook, rich in a terminal, else plain lines.

    Progress goes to stderr, so that stdout is left to results; json goes to stdout.
    """
    match kind:
        case "auto":
            if in_notebook():
                return choose_display("notebook")
            return choose_display("rich" if sys.stderr.isatty() else "plain")
        case "rich":
            from rich.console import Console

            return rich_display(Console(stderr=True))
        case "plain":
            return plain_display(sys.stderr)
        case "json":
            return json_display(sys.stdout)
        case "quiet":
            return quiet_display()
        case "notebook":
            from regraft.show.notebook import notebook_display

            return notebook_display()
    raise UnknownName(f"no display {kind!r}{nearest(kind, KINDS)} Displays: {', '.join(KINDS)}.")


def in_notebook() -> bool:
    """True inside a Jupyter kernel. IPython is not imported for the question."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def outcome(event: Event) -> str:
    """The line that stays after an event, or "" if it leaves none (steps that went well do not)."""
    match event:
        case PlanReady():
            return f"{printable(event.study)}: {event.runs} runs, {event.cached} of them already in the store"
        case StepFailed():
            return f"failed: {event.stage} of {printable(event.label, 120)}: {printable(event.reason)}"
        case Note():
            return f"note: {printable(event.text)}"
        case StudyDone():
            cells = f"{event.scored} cells scored, {event.missing} missing"
            return f"finished in {duration(event.seconds)}: {cells}"
    return ""


def headline(tracker: Tracker) -> str:
    """'17/41 runs, 3 min 05 s, about 4 min 10 s left'."""
    eta = tracker.eta_seconds
    left = f", about {duration(eta)} left" if eta is not None and not tracker.end else ""
    runs = f"{tracker.runs_done}/{tracker.runs} runs" if tracker.study else "preparing"
    return f"{runs}, {duration(tracker.elapsed_seconds)}{left}"


@contextmanager
def quiet_display() -> Iterator[Report]:
    """Shows nothing."""
    yield silent


@contextmanager
def json_display(stream: TextIO) -> Iterator[Report]:
    """One JSON object per event and line: {"event": "step_done", "id": ..., ...}."""
    lock = threading.Lock()

    def report(event: Event) -> None:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
        with lock:
            stream.write(json.dumps({"event": name, **asdict(event)}) + "\n")
            stream.flush()

    yield report


@contextmanager
def plain_display(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """One line per finished step, and one about every 10 s while a long step advances."""
    tracker, lock = Tracker(clock), threading.Lock()
    last_line = clock()

    def write(line: str) -> None:
        nonlocal last_line
        encoding = stream.encoding or "utf-8"  # a log in another encoding gets "?" instead of an exception
        stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        stream.flush()
        last_line = clock()

    def report(event: Event) -> None:
        with lock:
            step = tracker.running.get(getattr(event, "id", ""))
            tracker.update(event)
            if line := outcome(event):
                write(line)
            elif isinstance(event, StepDone) and step:
                how = "found" if event.cached else f"done in {duration(event.seconds)}"
                write(f"{_position(tracker)} {_step_text(step)}: {how}{_tail(event.message)}")
            elif isinstance(event, StepAdvanced) and step and clock() - last_line >= HEARTBEAT_SECONDS:
                write(f"{_position(tracker)} {_step_text(step)}: {percent(step.done, 0)}{_tail(step.message)}")

    yield report


def _position(tracker: Tracker) -> str:
    eta = tracker.eta_seconds
    left = "" if eta is None else f", {duration(eta)} left"
    return f"[{percent(tracker.fraction, 0)}{left}]"


def _step_text(step: RunningStep) -> str:
    return f"{printable(step.stage)} {printable(step.label, 100)}"


def _tail(message: str) -> str:
    return f", {printable(message)}" if message else ""


@contextmanager
def rich_display(console: Console) -> Iterator[Report]:
    """One live block for the whole study: overall bar with ETA, and a bar per running step."""
    from rich.live import Live
    from rich.text import Text

    tracker, lock = Tracker(), threading.Lock()

    def draw() -> RenderableType:
        with lock:
            return _draw(tracker)

    with Live(get_renderable=draw, console=console, refresh_per_second=4, transient=True):

        def report(event: Event) -> None:
            with lock:
                tracker.update(event)
            if line := outcome(event):
                style = {StepFailed: "red", Note: "yellow"}.get(type(event), "bold")
                console.print(Text(line, style=style))

        yield report


def _draw(tracker: Tracker) -> RenderableType:
    """The overall line, then the running steps, one line each at any width."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def grid(*ratios: int) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        for ratio in ratios:
            table.add_column(ratio=ratio or None, no_wrap=True, overflow="ellipsis")
        return table

    def bar(fraction: float, width: int) -> ProgressBar:
        return ProgressBar(total=1.0, completed=fraction, width=width)

    overall = grid(0, 0, 1)
    fraction = tracker.fraction
    overall.add_row(
        bar(fraction, 24), percent(fraction, 0), Text(f"{printable(tracker.study, 30)} {headline(tracker)}")
    )
    steps = grid(0, 0, 2, 2)
    running = list(tracker.running.values())
    for step in running[:SHOWN_STEPS]:
        message = Text(printable(step.message), style="cyan")
        steps.add_row(bar(step.done, 10), percent(step.done, 0), Text(_step_text(step)), message)
    rest = len(running) - SHOWN_STEPS
    more = [Text(f"and {rest} more steps running", style="dim")] if rest > 0 else []
    return Group(overall, steps, *more)
