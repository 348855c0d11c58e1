"""`regraft ui` in a real browser: a picture and a folder are answered, names stay text, and nothing leaves the machine.

The page runs in a process of its own, whose every look-up of a host and every connection is written down.
"""

from __future__ import annotations

import csv
import http.client
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from regraft.predictor import Predictor
from tests.browser.driver import NEEDS_BROWSER, Browser
from tests.unit.predictor_example import SIZE, pictures, tiny_predictor

pytestmark = [
    *NEEDS_BROWSER,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio (pip install 'regraft[ui]')"),
]
CLASSES = ("<img src=x onerror=document.title='run'>", "dog & cat", "owl")
SERVER = """
import sys
def note(event, given):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.bind"):
        print(event, [one for one in given if isinstance(one, (str, tuple))], file=sys.stderr, flush=True)
sys.addaudithook(note)
from regraft.predictor.ui import serve
serve(sys.argv[1], device="cpu", browser=False, tell=lambda said: print(said, flush=True))
"""


class Served(NamedTuple):
    address: str
    model: Path
    noted: Path  # what the process looked up and connected to


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ui")
    model = tiny_predictor(classes=CLASSES).save(folder / "tiny.regraft")
    with (folder / "noted").open("w") as noted:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(model)], stdout=subprocess.PIPE, stderr=noted, text=True, cwd=folder,
            env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert address, (folder / "noted").read_text()
    yield Served(address[0], model, folder / "noted")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) is not None
    process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them with a name that is markup, and a file that is none."""
    for name, pixels in zip(("<b>one.png", "two.png", "three.png"), pictures(3), strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def test_a_dropped_picture_gets_its_classes_and_a_map(browser: Browser, served: Served, folder: Path) -> None:
    browser.size(1200, 900)
    browser.visit(served.address)
    assert browser.wait("document.querySelector('input[type=file]')", 60)
    browser.type(browser.find("input[type=file]")[0], str(folder / "two.png"))
    assert browser.wait("document.body.innerText.includes('Bright places speak for')", 60)
    assert browser.wait("[...document.images].some(one => one.naturalWidth === 448)")
    text = browser.run("return document.body.innerText")
    found = Predictor.load(served.model, device="cpu").predict(folder / "two.png")
    assert re.sub(r"\s+", " ", text).count(found.labels[0]) >= 2  # beside its bar, and under the map
    for name, share in found.top()[0]:
        assert name in text
        assert f"{round(100 * share)}%" in text.replace(" ", "")
    assert browser.run("return document.title") == "regraft: tiny.regraft"
    buttons = browser.run("return [...document.querySelectorAll('button')].map(one => one.ariaLabel + one.title)")
    assert [one for one in buttons if "share" in one.lower()] == []
    loaded = browser.run("return performance.getEntriesByType('resource').map(one => one.name)")
    assert loaded
    assert [one for one in loaded if not one.startswith((served.address, "data:", "blob:"))] == []


def test_a_folder_gets_a_table_and_a_file(browser: Browser, served: Served, folder: Path) -> None:
    browser.size(1200, 900)
    browser.visit(served.address)
    tab = "[...document.querySelectorAll('button[role=tab]')].find(one => one.innerText.includes('A folder'))"
    assert browser.wait(tab, 60)
    browser.run(f"{tab}.click()")
    field = "[...document.querySelectorAll('textarea, input[type=text]')].find(one => one.placeholder.includes('/'))"
    assert browser.wait(f"{field} && {field}.offsetParent")
    browser.run(f"{field}.id = 'named'")
    browser.type(browser.find("#named")[0], str(folder))
    browser.run("[...document.querySelectorAll('button')].find(one => one.innerText.trim() === 'Answer').click()")
    assert browser.wait("document.body.innerText.includes('3 pictures answered, 1 could not be read')", 60)
    assert browser.wait("document.body.innerText.includes('<b>one.png')")  # as text
    assert browser.wait("document.querySelector('a[download]')")
    address = browser.run("return document.querySelector('a[download]').href")
    browser.run(f"window.held = ''; fetch({address!r}).then(one => one.text()).then(one => window.held = one)")
    assert browser.wait("window.held")
    rows = list(csv.DictReader(io.StringIO(browser.run("return window.held"))))
    there = sorted(folder.iterdir())
    assert [row["file"] for row in rows] == [str(file) for file in there]
    expected = Predictor.load(served.model, device="cpu").predict([file for file in there if file.name != "broken.png"])
    assert [row["class"] for row in rows if row["class"]] == expected.labels
    assert [Path(row["file"]).name for row in rows if row["error"]] == ["broken.png"]
    assert browser.run("return document.title") == "regraft: tiny.regraft"


def test_the_server_spoke_with_this_machine_alone(served: Served) -> None:
    """The last test of the module: after a picture and a folder."""
    noted = [line for line in served.noted.read_text().splitlines() if line.startswith("socket.")]
    assert noted  # it does look whether it can be reached
    assert [line for line in noted if not re.search(r"'(127\.0\.0\.1|localhost|::1)'", line)] == []


def test_another_host_name_gets_no_answer(served: Served) -> None:
    """A page elsewhere whose name was made to lead here could otherwise read what is on this machine."""
    port = int(served.address.rstrip("/").rpartition(":")[2])
    status = {}
    for host in (f"127.0.0.1:{port}", "somewhere.example"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/", headers={"Host": host})
        status[host] = connection.getresponse().status
        connection.close()
    assert list(status.values()) == [200, 400]


def test_the_map_has_the_size_that_is_shown() -> None:
    from regraft.predictor.ui import SHOWN_SIDE, look

    found = look(tiny_predictor(), Image.fromarray(pictures(1)[0]))
    assert found.overlay.shape == (SHOWN_SIDE, SHOWN_SIDE, 3)
    assert len(found.top) == 3
    assert SIZE < SHOWN_SIDE
