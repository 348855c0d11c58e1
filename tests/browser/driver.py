"""One headless browser for tests of pages: Chromium, driven over the WebDriver protocol (W3C), which is plain HTTP.

Needs Chromium and its driver on the path (Debian: `apt install chromium chromium-driver`). The fixture `browser` of
`conftest.py` starts it once for all tests; mark their modules with `pytestmark = NEEDS_BROWSER`.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NEEDS_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how the protocol names a reference to an element
ENTER, SPACE, TAB = "\ue007", " ", "\ue004"


class Browser:
    """One headless browser, driven over HTTP."""

    def __init__(self, port: int, profile: Path) -> None:
        self.base = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
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
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:  # what went wrong stands in the answer
            told = json.load(error)["value"]
            raise AssertionError(f"{path}: {told['error']}: {told['message'].splitlines()[0]}") from None

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str) -> Any:
        """What `script` returns."""
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def wait(self, condition: str, seconds: float = 20.0) -> bool:
        """Whether the expression `condition` becomes true within `seconds`."""
        script = (
            "const done = arguments[0]; const end = performance.now() + %d; (function look() {"
            "if (%s) done(true); else if (performance.now() > end) done(false); else setTimeout(look, 40); })();"
        )
        return bool(self.call("POST", "/execute/async", {"script": script % (1000 * seconds, condition), "args": []}))

    def size(self, width: int, height: int = 800) -> None:
        """Of the page, in pixels; below 500 it is a phone's."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def medium(self, *, scheme: str = "light", printed: bool = False) -> None:
        """Light or dark, on a screen or on paper."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media="print" if printed else "", features=features)

    def visit(self, address: str) -> None:
        """Load a page; what earlier ones logged is forgotten."""
        self.log()
        self.call("POST", "/url", {"url": address})

    def show(
        self, page: Path, *, width: int = 1200, scheme: str = "light", print_media: bool = False, ready: str = "true"
    ) -> None:
        """Load the file `page` and wait until the expression `ready` is true."""
        self.size(width)
        self.medium(scheme=scheme, printed=print_media)
        self.visit(page.as_uri())
        self.wait(ready)

    @contextmanager
    def without_scripts(self) -> Iterator[None]:
        """No script of a page runs."""
        self.devtools("Emulation.setScriptExecutionDisabled", value=True)
        try:
            yield
        finally:
            self.devtools("Emulation.setScriptExecutionDisabled", value=False)

    def find(self, selector: str) -> list[str]:
        """References to all elements that a CSS selector matches, in order."""
        found = self.call("POST", "/elements", {"using": "css selector", "value": selector})
        return [element[ELEMENT] for element in found]

    def click(self, element: str) -> None:
        """In the middle of it, once it stands in the middle of the page."""
        self.centre(element)
        self.call("POST", f"/element/{element}/click", {})

    def centre(self, element: str) -> None:
        """Scroll at once to where the element is in the middle of what is seen."""
        script = "arguments[0].scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})"
        self.call("POST", "/execute/sync", {"script": script, "args": [{ELEMENT: element}]})

    def type(self, element: str, text: str) -> None:
        """Into one element, which gets the focus."""
        self.call("POST", f"/element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys, one after the other, to whatever has the focus."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": strokes})

    def hover(self, element: str) -> None:
        """Move the pointer to the middle of an element."""
        self.centre(element)
        steps = [{"type": "pointerMove", "duration": 50, "x": x, "y": 0, "origin": {ELEMENT: element}} for x in (3, 0)]
        self._act({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": steps})

    def _act(self, source: dict[str, Any]) -> None:
        self.call("POST", "/actions", {"actions": [source]})

    def screenshot(self, file: Path, *, whole: bool = True) -> Path:
        """A PNG of the page, or of what is seen of it."""
        taken = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(taken["data"]))
        return file

    def print(self, file: Path) -> Path:
        """The page as a PDF, as the browser would print it."""
        made = self.devtools("Page.printToPDF", printBackground=False)
        file.write_bytes(base64.b64decode(made["data"]))
        return file

    def log(self) -> list[str]:
        """What was logged since it was last asked for; each message once."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """A browser of its own, gone afterwards."""
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        told = next(line for line in process.stdout if "started successfully" in line)
        port = re.search(r"port (\d+)", told)
        assert port is not None
        browser = Browser(int(port[1]), profile)
        try:
            yield browser
        finally:
            browser.call("DELETE", "")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
