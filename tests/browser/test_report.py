"""The report in a real browser: drawn under its own policy, at every width, in both colour schemes.

Needs Chromium and its driver on the path; speaks the WebDriver protocol (W3C) itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regraft.show.report import write_report
from tests.unit.show_example import grid_of_cuts, hostile, seven_rows

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
FIGURES_DRAWN = """
const figures = [...document.querySelectorAll("figure")];
return figures.every(f => f.classList.contains("drawn") && f.querySelector(".live svg")) && figures.length;
"""


class Browser:
    """One headless browser, driven over HTTP."""

    def __init__(self, port: int, profile: Path) -> None:
        self.base = f"http://127.0.0.1:{port}"
        options = {
            "binary": CHROMIUM,
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.base += f"/session/{session['sessionId']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def open(self, page: Path, *, width: int, scheme: str, print_media: bool = False) -> None:
        """Load `page` at `width` pixels and wait until it is drawn."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1,
                      mobile=width < 500)  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        media = "print" if print_media else ""
        self.devtools("Emulation.setEmulatedMedia", media=media, features=features)
        self.call("POST", "/url", {"url": page.as_uri()})
        self.call("POST", "/execute/async", {
            "script": "const done = arguments[0]; let n = 0; const timer = setInterval(() => {"
                      f"if ((() => {{{FIGURES_DRAWN}}})() || ++n > 100)"
                      "{clearInterval(timer); done(n);}}, 50);",
            "args": [],
        })  # fmt: skip

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    started = next(line for line in process.stdout if "started successfully" in line)
    port = re.search(r"port (\d+)", started)
    assert port is not None
    driven = Browser(int(port[1]), tmp_path_factory.mktemp("profile"))
    yield driven
    driven.call("DELETE", "")
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    made = {"seven": seven_rows(), "cuts": grid_of_cuts(), "hostile": hostile()}
    return {name: write_report(results, folder / f"{name}.html") for name, results in made.items()}


@pytest.mark.parametrize("name", ["seven", "cuts", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_figures_are_drawn_and_nothing_overflows_or_is_loaded(
    browser: Browser, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    browser.open(pages[name], width=width, scheme=scheme)
    assert browser.run(FIGURES_DRAWN) >= 2
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))") == []
    assert browser.log() == []


def test_dark_pages_have_light_text(browser: Browser, pages: dict[str, Path]) -> None:
    ink = "return getComputedStyle(document.body).color"
    label = 'return getComputedStyle(document.querySelector(".live svg .role-axis-label text")).fill'
    for scheme, colour in (("light", "rgb(27, 30, 36)"), ("dark", "rgb(232, 234, 237)")):
        browser.open(pages["seven"], width=1000, scheme=scheme)
        assert browser.run(ink) == colour
        assert browser.run(label) == colour


def test_print_shows_the_static_figures(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["seven"], width=800, scheme="light", print_media=True)
    shown = browser.run(
        "return [...document.querySelectorAll('figure')].map(f => "
        "[getComputedStyle(f.querySelector('.live')).display, f.querySelector('img').naturalWidth > 0,"
        " getComputedStyle(f.querySelector('picture')).display])"
    )
    assert shown == [["none", True, "block"]] * 3


def test_without_javascript_the_static_figures_are_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.devtools("Emulation.setEmulatedMedia", media="", features=[])
        browser.call("POST", "/url", {"url": pages["cuts"].as_uri()})
        images = browser.call("POST", "/elements", {"using": "css selector", "value": "figure img"})
        assert len(images) == 4
        for image in images:
            identity = next(iter(image.values()))
            assert browser.call("GET", f"/element/{identity}/rect")["width"] > 400
    finally:
        browser.devtools("Emulation.setScriptExecutionDisabled", value=False)
