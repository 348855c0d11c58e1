"""A run followed in the browser: what the page is told while a real study runs, and what is refused."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from regraft.errors import RegraftError
from regraft.show.watch import HEADERS, LiveView, live_view, served
from regraft.spec import Study
from regraft.study.events import Event, Note, PlanReady, StepDone, StepStarted, StudyDone, silent
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import small_study
from tests.unit.show_example import HOSTILE

Answer = tuple[int, dict[str, str], bytes]


def ask(address: str, name: str = "", *, method: str = "GET", host: str | None = None) -> Answer:
    """Status, headers and content of one of the page's things."""
    place = urlsplit(address)
    assert place.hostname is not None
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    try:
        connection.request(method, place.path + name, headers={"Host": host or place.netloc})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def state(address: str) -> dict[str, Any]:
    answered: dict[str, Any] = json.loads(ask(address, "state")[2])
    return answered


@pytest.fixture
def quiet() -> Iterator[tuple[LiveView, str]]:
    """The page of a study that nobody runs."""
    view = LiveView(Study.from_dict(small_study()))
    with served(view) as address:
        yield view, address


# --- what is refused ----------------------------------------------------------------------------------------


def test_only_this_machine_by_its_own_name_is_answered(quiet: tuple[LiveView, str]) -> None:
    _, address = quiet
    port = urlsplit(address).port
    assert urlsplit(address).hostname == "127.0.0.1"
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert ask(address, host=host)[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port}.evil.example",
        f"[::1]:{port}",
    ):
        assert ask(address, host=host)[0] == 403, host


def test_a_request_with_no_host_or_two_is_refused(quiet: tuple[LiveView, str]) -> None:
    place = urlsplit(quiet[1])
    for hosts in ("", f"Host: {place.netloc}\r\nHost: {place.netloc}\r\n"):
        with socket.create_connection(("127.0.0.1", place.port or 0), timeout=10) as client:
            client.sendall(f"GET {place.path} HTTP/1.1\r\n{hosts}\r\n".encode())
            assert client.makefile("rb").readline().split()[1] == b"403"


def test_nothing_is_found_without_the_token_and_no_file_with_it(quiet: tuple[LiveView, str]) -> None:
    view, address = quiet
    root = address.removesuffix(f"{view.token}/")
    other = "A" * len(view.token)
    for name in ("", "state", "report", "favicon.ico", f"{other}/", f"{other}/state", view.token):
        assert ask(root, name)[0] == 404, name
    for name in ("watch.html", "report.html", "../", "..%2f", "%2e%2e/watch.css", "../../etc/passwd", "/state", "x"):
        assert ask(address, name)[0] == 404, name


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "ANYTHING"])
def test_only_get_is_answered(quiet: tuple[LiveView, str], method: str) -> None:
    for name in ("", "state", "report"):
        status, headers, _ = ask(quiet[1], name, method=method)
        assert status == 405
        assert headers["Allow"] == "GET"


def test_every_answer_forbids_what_it_does_not_need(quiet: tuple[LiveView, str]) -> None:
    answers = [ask(quiet[1], name) for name in ("", "watch.js", "watch.css", "state", "report", "nothing")]
    for _, headers, content in answers:
        assert HEADERS.items() <= headers.items()
        assert "frame-ancestors" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.startswith("Access-Control")]
        assert int(headers["Content-Length"]) == len(content)
    page = answers[0]
    assert page[1]["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    # The policy allows no inline script or style, so there must be none.
    assert not re.search(rb"<style|<script(?! src=)|\son\w+=|\sstyle=", page[2])
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", answers[1][2])


def test_what_is_no_request_is_refused_and_the_next_is_answered(quiet: tuple[LiveView, str]) -> None:
    place = urlsplit(quiet[1])
    for line, status in ((b"GARBAGE", b"400"), (b"GET / HTTP/9.9", b"505"), (b"GET " + b"/" * 70_000, b"414")):
        with socket.create_connection(("127.0.0.1", place.port or 0), timeout=10) as client:
            client.sendall(line + b"\r\n\r\n")
            assert status in client.makefile("rb").read()
    assert ask(quiet[1])[0] == 200


def test_a_page_that_goes_while_it_is_answered_is_no_error(
    quiet: tuple[LiveView, str], capfd: pytest.CaptureFixture[str]
) -> None:
    view, address = quiet
    threads = threading.active_count()
    view.show([], b"x" * 50_000_000)  # more than the connection takes at once
    place = urlsplit(address)
    with socket.create_connection(("127.0.0.1", place.port or 0), timeout=10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed with a reset
        client.sendall(f"GET {place.path}report HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
        assert client.recv(10)
    view.show([], b"the next")
    assert ask(address, "report")[2] == b"the next"
    until = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < until:  # the thread that answered it
        time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_an_error_that_says_so(quiet: tuple[LiveView, str]) -> None:
    port = urlsplit(quiet[1]).port or 0
    again = served(quiet[0], port)
    with pytest.raises(RegraftError, match=f"cannot listen on 127.0.0.1:{port}: .*--watch-port"), again:
        pass


def test_the_server_is_gone_after_the_run(tmp_path: Path) -> None:
    before = threading.active_count()
    with live_view(Study.from_dict(small_study()), Store(tmp_path)) as (_, address):
        assert ask(address)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(address)
    assert threading.active_count() == before


# --- what is told -------------------------------------------------------------------------------------------


def test_the_state_follows_the_events(quiet: tuple[LiveView, str]) -> None:
    view, address = quiet
    assert state(address)["phase"] == "preparing"
    events: list[Event] = [
        PlanReady("small", 4, 1, 100.0),
        Note(f"{HOSTILE}\u202e\x1b[31m"),
        StepStarted("fit:a", "fit", f"a {HOSTILE}", 40.0),
        StepDone("fit:z", True, 0.0),
    ]
    for event in events:
        view.report(event)
    told = state(address)
    assert told["phase"] == "running"
    assert told["headline"].startswith("1/4 runs")
    assert told["steps"][0]["what"] == f"fit a {HOSTILE}"  # set as text by the page
    assert told["lines"][-1] == f"note: {HOSTILE}\ufffd\ufffd[31m"
    view.report(StepDone("fit:a", False, 1.0))
    assert state(address)["fraction"] == pytest.approx(0.4)
    assert state(address)["headline"].startswith("2/4 runs")


def test_a_report_that_comes_after_the_end_does_not_replace_the_finished_one(tmp_path: Path) -> None:
    view = LiveView(Study.from_dict(small_study()))
    view.show([], b"<p>the whole report</p>")
    before = view.state()["report"]
    written = tmp_path / "report.html"
    written.write_bytes(b"<p>the whole report</p>")
    threading.Timer(0.2, view.page).start()  # a browser that looks on
    began = time.monotonic()
    view.finish(written)
    assert time.monotonic() - began < 5
    view.show([{"row": "old"}], b"<p>half of it</p>")
    assert view.page() == written.read_bytes()
    assert view.state()["report"] != before, "a browser would not fetch it"


def test_the_end_waits_for_a_page_that_looks_on_and_for_no_other(quiet: tuple[LiveView, str], tmp_path: Path) -> None:
    view, address = quiet
    report = tmp_path / "report.html"
    report.write_text("<main>the end</main>")
    began = time.monotonic()
    view.finish(report)  # nobody has asked yet
    assert time.monotonic() - began < 1
    assert state(address)["phase"] == "finished"
    reader = threading.Timer(0.3, ask, (address, "report"))
    view._farewell.clear()
    reader.start()
    began = time.monotonic()
    view.finish(report)
    assert 0.2 < time.monotonic() - began < 5
    assert ask(address, "report")[2] == report.read_bytes()
    assert str(report) in state(address)["written"]


def test_a_study_is_followed_while_it_runs(tmp_path: Path) -> None:
    """Partial results come from the store: after the first training the report and its rows are there, and no test
    label has been read for them."""
    rows = small_study()["rows"]
    study = Study.from_dict(small_study(grid=[], rows=[rows[0], rows[3]], seeds=[0]))
    store, seen = Store(tmp_path / "store"), list[dict[str, Any]]()

    def partial() -> bool:
        seen.append(state(address))
        return bool(seen[-1]["report"]) and sum(row["trained"] for row in seen[-1]["rows"]) > 0

    def report(event: Event) -> None:
        view.report(event)
        # The run waits here for the page, after its first training: what is asked is then a matter of no clock.
        if isinstance(event, StepDone) and event.id.startswith("fit") and not event.cached and not partial_report:
            until = time.monotonic() + 120
            while not partial() and time.monotonic() < until:
                time.sleep(0.05)
            partial_report.append(ask(address, "report")[2].decode())

    partial_report: list[str] = []
    with live_view(study, store) as (view, address):
        results = run_study(study, store, report=report, threads=1, device="cpu")
    (html,) = partial_report
    told = seen[-1]
    assert [(row["name"], row["trained"], row["of"]) for row in told["rows"]] == [("source", 1, 1), ("steps", 0, 1)]
    assert re.fullmatch(r"seed 0: [\d.]+ %", told["rows"][0]["validation"][0])
    assert told["rows"][0]["test"] == ""
    assert "not trained yet" in html
    assert "2 cells have no score" in html
    assert len(results.cells) == 2
    assert told["phase"] == "running"


def test_a_run_goes_on_without_reports_where_none_can_be_drawn(tmp_path: Path) -> None:
    """The process that draws them is killed, as where memory runs out."""
    study = Study.from_dict(small_study())
    with live_view(study, Store(tmp_path)) as (view, address):
        (drawing,) = (thread for thread in threading.enumerate() if thread.name == "live report")
        view.report(PlanReady("small", 4, 1, 100.0))
        until = time.monotonic() + 60
        while (process := getattr(drawing, "process", None)) is None and time.monotonic() < until:
            time.sleep(0.01)
        assert process is not None
        process.kill()
        drawing.join(60)
        view.report(StepStarted("fit:a", "fit", "a", 40.0))
        view.report(StepDone("fit:a", False, 1.0))
        told = state(address)
    assert "The report cannot be drawn before the end; the run goes on." in told["lines"]
    assert told["headline"].startswith("2/4 runs")
    assert told["report"] == ""


@pytest.mark.slow
def test_a_view_leaves_the_results_as_they_are(tmp_path: Path) -> None:
    rows = small_study()["rows"]
    study = Study.from_dict(small_study(grid=[], rows=[rows[0]], seeds=[0]))
    with live_view(study, Store(tmp_path / "watched")) as (view, _):
        watched = run_study(study, Store(tmp_path / "watched"), report=view.report, threads=1, device="cpu")
    alone = run_study(study, Store(tmp_path / "alone"), report=silent, threads=1, device="cpu")
    assert watched.to_csv(tmp_path / "a").read_bytes() == alone.to_csv(tmp_path / "b").read_bytes()


# --- regraft run --watch ------------------------------------------------------------------------------------


def start(study: Study, folder: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """`regraft run --watch` in a process of its own, and the address that it prints."""
    (folder / "study.yaml").write_text(study.to_yaml())
    command = [sys.executable, "-m", "regraft.cli", "run", "study.yaml", "--watch", "--out", "out", "--store", "store"]
    process = subprocess.Popen(
        [*command, "--threads", "1", *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    told = next(line for line in process.stderr if "Follow the run at" in line)
    return process, told.split()[-1]


@pytest.mark.slow
def test_run_watch_prints_an_address_and_shows_the_report_at_the_end(tmp_path: Path) -> None:
    process, address = start(Study.from_dict(small_study(grid=[])), tmp_path)
    told = state(address)
    while told["phase"] != "finished":
        time.sleep(0.2)
        told = state(address)
    assert told["written"].endswith("report.html")
    assert ask(address, "report")[2] == (tmp_path / "out" / "report.html").read_bytes()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Written to out" in out


@pytest.mark.slow
def test_ctrl_c_stops_a_watched_run_as_any_other(tmp_path: Path) -> None:
    study = small_study(grid=[], recipes={**small_study()["recipes"], "fast": {"epochs": 100_000}})
    process, address = start(Study.from_dict(study), tmp_path)
    while not state(address)["steps"]:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Go on with: regraft run study.yaml --watch" in err
    assert "Traceback" not in err
    with pytest.raises(ConnectionRefusedError):
        ask(address)


def test_a_finished_study_is_done_before_anybody_looks(tmp_path: Path) -> None:
    view = LiveView(Study.from_dict(small_study()))
    view.report(PlanReady("small", 4, 4, 0.0))
    view.report(StudyDone(0.1, 4, 0))
    told = view.state()
    assert told["fraction"] == 1.0
    assert "left" not in told["headline"]
