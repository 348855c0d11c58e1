"""The displays: one state, drawn as bars, lines, JSON or HTML."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterable

import pytest
from rich.console import Console

from regraft.errors import UnknownName
from regraft.show.notebook import progress_html
from regraft.show.progress import KINDS, choose_display, json_display, plain_display, rich_display
from regraft.show.text import duration, printable
from regraft.show.tracker import Tracker
from regraft.study.events import (
    Event,
    Note,
    PlanReady,
    StepAdvanced,
    StepDone,
    StepFailed,
    StepStarted,
    StudyDone,
    silent,
)
from tests.unit.show_example import HOSTILE, ODD_NAMES

STORY: list[Event] = [
    PlanReady("cifar", runs=3, cached=1, cost=100.0),
    StepDone("fit:1", cached=True, seconds=0.0),
    StepStarted("a", "features", "rn50 on cifar10", cost=20.0),
    StepDone("a", cached=False, seconds=4.0),
    StepStarted("b", "fit", "2 cut frozen [seed 0, short]", cost=60.0),
    StepAdvanced("b", 0.5, "epoch 5/10, loss 1.21, validation 56.2 %"),
    Note("out of memory: batch halved to 64"),
    StepDone("b", cached=False, seconds=12.0, message="validation 61.0 %"),
    StepStarted("c", "fit", "8 ImageNet [seed 0]", cost=20.0),
    StepFailed("c", "fit", "8 ImageNet [seed 0]", "no way to get the weights"),
    StudyDone(seconds=20.0, scored=3, missing=1),
]


class Clock:
    """Seconds set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tracked(events: Iterable[Event], clock: Callable[[], float] | None = None) -> Tracker:
    tracker = Tracker(clock or Clock())
    for event in events:
        tracker.update(event)
    return tracker


def test_progress_is_the_share_of_the_cost_running_steps_included() -> None:
    tracker = tracked(STORY[:6])
    assert tracker.fraction == pytest.approx((20 + 60 * 0.5) / 100)
    assert tracker.runs_done == 1


def test_progress_never_falls_and_ends_complete() -> None:
    tracker, seen = Tracker(Clock()), [0.0]
    for event in STORY:
        tracker.update(event)
        seen.append(tracker.fraction)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert tracker.runs_done == 3


def test_without_costs_progress_counts_runs() -> None:
    tracker = tracked([PlanReady("s", runs=5, cached=1, cost=0.0), StepStarted("a", "fit", "x", 0.0)])
    assert tracker.fraction == 0.0
    tracker.update(StepDone("a", cached=False, seconds=1.0))
    assert tracker.fraction == 0.25


def test_the_estimate_follows_the_measured_speed() -> None:
    clock = Clock()
    tracker = tracked([PlanReady("s", 2, 0, cost=100.0), StepStarted("a", "fit", "x", 50.0)], clock)
    assert tracker.eta_seconds is None
    clock.now = 10.0
    tracker.update(StepAdvanced("a", 0.4))  # 20 of 100 in 10 s
    assert tracker.eta_seconds == pytest.approx(40.0)
    clock.now = 15.0
    tracker.update(StepDone("a", cached=False, seconds=15.0))  # 50 of 100 in 15 s
    assert tracker.eta_seconds == pytest.approx(15.0)


def test_what_was_fetched_before_the_plan_is_not_counted() -> None:
    weights: list[Event] = [
        StepStarted("w", "weights", "resnet50", 0.0),
        StepDone("w", cached=False, seconds=9.0),
    ]
    tracker = tracked([*weights, PlanReady("s", 1, 0, cost=1.0)])
    assert (tracker.runs_done, tracker.fraction) == (0, 0.0)


def test_steps_that_overrun_their_estimate_do_not_pass_the_end() -> None:
    tracker = tracked([PlanReady("s", 1, 0, cost=1.0), StepStarted("a", "fit", "x", 5.0), StepAdvanced("a", 2.0)])
    assert tracker.fraction == 1.0
    tracker.update(StepDone("a", cached=False, seconds=1.0))
    assert tracker.runs_done == 1


def test_plain_lines_are_one_per_step_and_name_what_failed() -> None:
    stream = io.StringIO()
    with plain_display(stream, Clock()) as report:
        for event in STORY:
            report(event)
    assert stream.getvalue().splitlines() == [
        "cifar: 3 runs, 1 of them already in the store",
        "[20 %] features rn50 on cifar10: done in 4 s",
        "note: out of memory: batch halved to 64",
        "[80 %] fit 2 cut frozen [seed 0, short]: done in 12 s, validation 61.0 %",
        "failed: fit of 8 ImageNet [seed 0]: no way to get the weights",
        "finished in 20 s: 3 cells scored, 1 missing",
    ]


def test_plain_lines_have_a_heartbeat_about_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with plain_display(stream, clock) as report:
        report(PlanReady("s", 1, 0, cost=1.0))
        report(StepStarted("a", "fit", "row", 1.0))
        for second in range(1, 41):
            clock.now = float(second)
            report(StepAdvanced("a", second / 100, f"loss {second}"))
    beats = stream.getvalue().splitlines()[1:]
    assert len(beats) == 4
    assert beats[0] == "[10 %, 1 min 30 s left] fit row: 10 %, loss 10"


def test_plain_lines_survive_a_log_that_is_not_unicode() -> None:
    raw = io.BytesIO()
    with plain_display(io.TextIOWrapper(raw, encoding="ascii")) as report:
        report(Note("שלום 🦆"))
        assert raw.getvalue() == b"note: ???? ?\n"


def test_json_is_one_object_per_line() -> None:
    stream = io.StringIO()
    with json_display(stream) as report:
        for event in [*STORY, Note(f"{HOSTILE}\n\x1b[31m")]:
            report(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == len(STORY) + 1
    assert lines[2] == {"event": "step_started", "id": "a", "stage": "features", "label": "rn50 on cifar10",
                        "cost": 20.0, "fits": 1}  # fmt: skip
    assert lines[-1]["text"] == f"{HOSTILE}\n\x1b[31m"


@pytest.mark.parametrize("width", [80, 160])
def test_the_live_display_shows_bars_messages_and_leaves_notes(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    with rich_display(console) as report:
        for event in STORY[:7]:
            report(event)
        console.print("shown")  # the live block is redrawn below it
    shown = stream.getvalue()
    assert "1/3 runs" in shown
    assert "50 %" in shown
    assert "fit 2 cut frozen" in shown
    assert "epoch 5/10" in shown
    assert "note: out of memory" in shown
    assert all(len(line) < 3 * width for line in shown.splitlines())


def test_names_cannot_move_the_cursor_of_a_terminal() -> None:
    stream = io.StringIO()
    with plain_display(stream) as report:
        report(StepFailed("a", "fit", "\x1b[2J\r\u202e" + ODD_NAMES[3], "line one\nline two"))
    assert not set("\x1b\r\u202e") & set(stream.getvalue())
    assert stream.getvalue().count("\n") == 1


def test_printable_keeps_scripts_and_emoji_and_shortens() -> None:
    assert printable("👩‍🔬 שלום  naïve") == "👩‍🔬 שלום naïve"
    assert printable("x" * 200, 10) == "x" * 9 + "…"


def test_notebook_progress_is_escaped_html() -> None:
    started = StepStarted("h", "fit", HOSTILE, 1.0)
    html = progress_html(tracked([STORY[0], started, StepAdvanced("h", 0.25, HOSTILE)]), [HOSTILE])
    assert "<img" not in html
    assert html.count("&lt;img") == 3
    assert '<progress max="1" value="0.250"' in html


def test_durations_are_written_with_units() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 3599.7, 7800)] == [
        "0 s", "59 s", "1 min 00 s", "1 h 00 min", "2 h 10 min",
    ]  # fmt: skip


def test_every_kind_of_display_can_be_chosen_and_others_are_refused() -> None:
    for kind in set(KINDS) - {"notebook"}:
        with choose_display(kind) as report:
            assert callable(report)
    with choose_display("quiet") as report:
        assert report is silent
    with pytest.raises(UnknownName, match="did you mean 'json'"):
        choose_display("jsn")


def test_choosing_a_display_imports_neither_torch_nor_altair_nor_ipython() -> None:
    code = (
        "import sys; from regraft.show.progress import choose_display\n"
        "with choose_display('auto') as report: pass\n"
        "print([m for m in ('torch', 'altair', 'IPython', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_notebook_shows_progress_without_widgets() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    code = (
        "from regraft.show.progress import choose_display\n"
        "from regraft.study.events import *\n"
        "with choose_display('auto') as report:\n"
        "    report(PlanReady('s', 2, 0, 10.0)); report(StepStarted('a', 'fit', '<b>row</b>', 5.0))\n"
        "    report(StepDone('a', False, 1.0)); report(StudyDone(1.0, 1, 0))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert "finished in 1 s: 1 cells scored, 0 missing" in output.data["text/html"]
