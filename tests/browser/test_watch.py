"""The live page of `regraft run --watch` in a real browser: it follows, keeps the reader's place, and stays text."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regraft.show.report import report_html, write_report
from regraft.show.watch import LiveView, live_view, served
from regraft.spec import Study
from regraft.study.events import Note, PlanReady, StepAdvanced, StepStarted
from regraft.study.results import Missing, Results
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.browser.driver import NEEDS_BROWSER, Browser
from tests.study.conftest import small_study
from tests.unit.show_example import HOSTILE, ODD_NAMES, grid_of_cuts, hostile, seven_rows

pytestmark = NEEDS_BROWSER
SHOWN = "document.querySelector('iframe.shown')"
KEYS = f"[...{SHOWN}.contentDocument.querySelectorAll('details')].find(d => d.textContent.startsWith('Keys of'))"


def until(results: Results, cells: int) -> bytes:
    """The report when only the first `cells` cells had a score."""
    waiting = [Missing(cell.row, cell.seed, "not trained yet") for cell in results.cells[cells:]]
    partial = replace(results, cells=results.cells[:cells], missing=waiting, scores_taken=cells)
    return report_html(partial).encode()


def line(name: str, trained: int = 1) -> dict[str, Any]:
    return {
        "name": name, "trained": trained, "of": 3, "validation": ["seed 0: 93.1 %", "seed 1: 92.8 %"], "test": "",
        "alarm": "",
    }  # fmt: skip


@pytest.fixture
def live() -> Iterator[tuple[LiveView, str]]:
    """The page of the study `cuts`, half done."""
    results = grid_of_cuts()
    view = LiveView(results.study)
    with served(view) as address:
        view.report(PlanReady("cuts", 30, 3, 100.0))
        view.report(StepStarted("fit:a", "fit", "rn18 | layer2.1 [seed 0]", 20.0))
        view.report(StepAdvanced("fit:a", 0.5, "epoch 5/10, loss 1.21, validation 56.2 %"))
        view.show([line(row.name) for row in results.study.all_rows()], until(results, 12))
        yield view, address


def settled(browser: Browser, text: str, seconds: float = 20.0) -> bool:
    """Whether the report that is shown comes to hold `text`."""
    held = f"{SHOWN}.contentDocument.body.textContent.includes({text!r})"
    return browser.wait(f"{SHOWN} && {held} && document.querySelectorAll('iframe').length === 1", seconds)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_progress_rows_and_report_are_shown_and_nothing_overflows(
    browser: Browser, live: tuple[LiveView, str], scheme: str, width: int
) -> None:
    browser.size(width)
    browser.medium(scheme=scheme)
    browser.visit(live[1])
    assert settled(browser, "18 cells have no score")
    assert "3/30 runs" in browser.run("return document.getElementById('headline').textContent")
    assert browser.run("return document.getElementById('fraction').value") == pytest.approx(0.1)
    assert "epoch 5/10" in browser.run("return document.getElementById('steps').textContent")
    assert browser.run("return document.querySelectorAll('#row-lines tr').length") == 10
    assert browser.run("return document.documentElement.scrollWidth") <= width
    # The report has all the height it needs: one scroll bar, that of the page.
    assert browser.wait(
        f"Math.abs({SHOWN}.offsetHeight - {SHOWN}.contentDocument.documentElement.getBoundingClientRect().height) < 2"
    )
    assert browser.run(f"return {SHOWN}.contentDocument.documentElement.scrollWidth <= {SHOWN}.clientWidth")
    assert browser.log() == []


def test_a_new_report_keeps_the_readers_place(browser: Browser, live: tuple[LiveView, str]) -> None:
    view, address = live
    browser.size(1000)
    browser.visit(address)
    assert settled(browser, "18 cells have no score")
    browser.run("scrollTo(0, 900)")
    browser.run(f"{KEYS}.open = true")
    browser.run(f"{SHOWN}.dataset.old = 'yes'")
    view.show(view.state()["rows"], until(grid_of_cuts(), 18))
    assert browser.wait(f"{SHOWN} && {SHOWN}.dataset.old === undefined")
    assert settled(browser, "12 cells have no score")
    assert browser.run("return scrollY") == 900
    assert browser.run(f"return {KEYS}.open")
    browser.call("POST", "/refresh", {})
    assert settled(browser, "12 cells have no score")
    assert browser.wait("scrollY === 900")
    assert browser.log() == []


def test_a_reader_can_hold_the_report(browser: Browser, live: tuple[LiveView, str]) -> None:
    view, address = live
    browser.visit(address)
    assert settled(browser, "18 cells have no score")
    browser.click(browser.find("#hold")[0])
    view.show([line("held?")], until(grid_of_cuts(), 18))
    assert browser.wait("document.getElementById('row-lines').textContent.includes('held?')")
    assert settled(browser, "18 cells have no score")
    browser.click(browser.find("#hold")[0])
    assert settled(browser, "12 cells have no score")


def test_hostile_names_stay_text(browser: Browser) -> None:
    results = hostile()
    browser.size(375)
    view = LiveView(results.study)
    with served(view) as address:
        view.report(PlanReady(HOSTILE, 2, 0, 1.0))
        view.report(Note(HOSTILE))
        for name in ODD_NAMES:
            view.report(StepStarted(name, "fit", name, 1.0))
            view.report(StepAdvanced(name, 0.5, name))
        view.show([{**line(name), "test": name, "alarm": name} for name in ODD_NAMES], report_html(results).encode())
        browser.visit(address)
        assert browser.wait(SHOWN)
        for place in ("lines", "steps", "row-lines"):
            assert HOSTILE in browser.run(f"return document.getElementById({place!r}).textContent")
        assert browser.run("return document.images.length") == 0
        assert browser.run("return document.scripts.length") == 1
        assert browser.run("return document.documentElement.scrollWidth") <= 375
        assert browser.log() == []


def test_the_end_is_shown_and_the_page_outlives_the_server(browser: Browser, tmp_path: Path) -> None:
    results = seven_rows()
    report = tmp_path / "report.html"
    report.write_text(report_html(results))
    browser.size(1000)
    view = LiveView(results.study)
    with served(view) as address:
        view.report(PlanReady("cifar", 24, 0, 1.0))
        view.show([], until(results, 3))
        browser.visit(address)
        assert browser.wait(SHOWN)
        view.finish(report)  # waits until the page has it
    assert browser.wait("document.getElementById('phase').textContent.includes('Finished')")
    assert settled(browser, "8 ImageNet, all images")
    assert "report.html" in browser.run("return document.getElementById('phase').textContent")
    assert browser.run("return document.getElementById('tools').hidden")


def test_a_run_that_is_gone_is_said_to_be_gone(browser: Browser) -> None:
    results = seven_rows()
    view = LiveView(results.study)
    with served(view) as address:
        view.report(PlanReady("cifar", 24, 0, 1.0))
        view.show([], until(results, 3))
        browser.visit(address)
        assert settled(browser, "18 cells have no score")
    assert browser.wait("document.getElementById('phase').textContent.includes('cannot be reached')", 20)
    assert settled(browser, "18 cells have no score")


def test_a_real_run_is_followed_to_its_end(browser: Browser, tmp_path: Path) -> None:
    study, store = Study.from_dict(small_study(grid=[])), Store(tmp_path / "store")
    browser.size(1000)
    with live_view(study, store) as (view, address), ThreadPoolExecutor(1) as pool:
        browser.visit(address)
        run = pool.submit(run_study, study, store, report=view.report, threads=1, device="cpu")
        assert browser.wait("document.getElementById('phase').textContent.includes('Running')", 60)
        assert browser.wait("document.getElementById('row-lines').textContent.includes('seed 0: ')", 60)
        view.finish(write_report(run.result(), tmp_path / "report.html"))
        assert browser.wait("document.getElementById('phase').textContent.includes('Finished')")
        assert browser.run("return document.getElementById('percent').textContent") == "100 %"
        assert not settled(browser, "no score", seconds=2)
        assert browser.log() == []
