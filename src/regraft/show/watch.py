"""A run followed in the browser: how far it is, and its report drawn again as results arrive.

The server listens on the loopback address only and serves five things under a path that nobody can guess. A page of
another site that finds the port can read nothing: its Host header is another one (DNS rebinding), or it does not know
the path. Only GET is answered; no file of the disk but the finished report is ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

from regraft.errors import RegraftError
from regraft.show.progress import SHOWN_STEPS, headline, outcome
from regraft.show.text import printable
from regraft.show.tracker import Tracker
from regraft.spec import Study
from regraft.study.events import Event, PlanReady, StepDone, StepFailed, StudyDone
from regraft.study.store import Store

ADDRESS = "127.0.0.1"
POLL_SECONDS = 2.0  # as in watch.js
REST_SECONDS = (3.0, 30.0)  # at least and at most, between two reports
REST_SHARE = 4.0  # in between: so many times the seconds that the last one took
FAREWELL_SECONDS = 10.0  # at most, for a page that looks on to fetch the end
KEPT_LINES = 8
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the path is the secret
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
NOTHING = b'<!doctype html><html lang="en"><meta charset="utf-8"><title>no report yet</title></html>'


class LiveView:
    """What the page shows. `report` takes the engine's events; all else is asked by the server's threads."""

    def __init__(self, study: Study) -> None:
        self.study, self.tracker = study, Tracker()
        self.token = secrets.token_urlsafe(24)
        self.news = threading.Event()  # something that the report may show
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._page, self._tag = NOTHING, ""
        self._written = ""  # where the finished report lies
        self._asked = -FAREWELL_SECONDS  # when a page last asked, on the monotonic clock
        self._farewell = threading.Event()  # a page has the end

    def report(self, event: Event) -> None:
        """Take in an event of the engine; costs microseconds."""
        with self._lock:
            self.tracker.update(event)
            if line := outcome(event):
                self._lines.append(line)
        if isinstance(event, PlanReady | StepDone | StepFailed | StudyDone):
            self.news.set()

    def show(self, rows: list[dict[str, Any]], page: bytes) -> None:
        """Serve this report from now on."""
        with self._lock:
            if not self._written:  # a report that was begun before the end comes too late
                self._rows, self._page, self._tag = rows, page, hashlib.sha256(page).hexdigest()[:32]

    def cannot_draw(self) -> None:
        """Say on the page that there will be no report before the end."""
        with self._lock:
            self._lines.append("The report cannot be drawn before the end; the run goes on.")

    def finish(self, report: Path) -> None:
        """The run is over and its report written: show that, and wait a moment for a page that is looking on."""
        page = report.read_bytes()
        with self._lock:
            # Another tag than the same page had while the run went on: the browser fetches it, and we know that it did.
            self._rows, self._page, self._tag = [], page, "end-" + hashlib.sha256(page).hexdigest()[:32]
            self._written = printable(str(report))
            looks_on = time.monotonic() - self._asked < 2 * POLL_SECONDS
        if looks_on:
            self._farewell.wait(FAREWELL_SECONDS)

    def state(self) -> dict[str, Any]:
        """All of the page but the report, ready to be shown as text."""
        with self._lock:
            self._asked = time.monotonic()
            tracker = self.tracker
            running = [] if self._written else list(tracker.running.values())
            return {
                "study": printable(self.study.study, 100),
                "question": printable(self.study.question),
                "phase": "finished" if self._written else "running" if tracker.study else "preparing",
                "headline": headline(tracker),
                "fraction": tracker.fraction,
                "steps": [
                    {"what": f"{step.stage} {printable(step.label, 120)}", "done": step.done,
                     "message": printable(step.message, 200)}
                    for step in running[:SHOWN_STEPS]
                ],
                "more": max(0, len(running) - SHOWN_STEPS),
                "lines": self._lines[-KEPT_LINES:],
                "rows": self._rows,
                "report": self._tag,
                "written": self._written,
            }  # fmt: skip

    def page(self) -> bytes:
        """The report."""
        with self._lock:
            if self._written:
                self._farewell.set()
            return self._page


@contextlib.contextmanager
def live_view(study: Study, store: Store, *, port: int = 0, command: str = "") -> Iterator[tuple[LiveView, str]]:
    """The view of a run and its address, with reports of what the store has, until the block ends.

    port: 0 takes a free one.  Raises RegraftError if the port cannot be had."""
    view = LiveView(study)
    drawing = _Drawing(view, study, store, command)
    with served(view, port) as address:
        drawing.start()
        try:
            yield view, address
        finally:
            drawing.close()
            drawing.join()


@contextlib.contextmanager
def served(view: LiveView, port: int = 0) -> Iterator[str]:
    """The address of a view, answered by a thread of its own. Raises RegraftError if the port cannot be had."""
    try:
        server = _Server((ADDRESS, port), _Handler)
    except (OSError, OverflowError) as error:
        raise RegraftError(
            f"cannot listen on {ADDRESS}:{port}: {error}; name another --watch-port, or none for a free one"
        ) from error
    server.view = view
    serving = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True, name="live view")
    serving.start()
    try:
        yield f"http://{ADDRESS}:{server.server_port}/{view.token}/"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


class _Drawing(threading.Thread):
    """Lets another process (`watch_report`) draw the report whenever there is news, with a rest in between."""

    def __init__(self, view: LiveView, study: Study, store: Store, command: str) -> None:
        super().__init__(daemon=True, name="live report")
        content = {"study": study.model_dump(mode="json", exclude_defaults=True), "store": store.location}
        self.view, self.task = view, json.dumps({**content, "command": command}).encode() + b"\n"
        self.over = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Until the study is over, or the process has gone."""
        self.view.news.wait()
        if self.over.is_set():
            return
        # -P: nothing in the folder where the run was started is taken for a library.
        words = [sys.executable, "-P", "-m", "regraft.show.watch_report"]
        pipe = subprocess.PIPE
        try:
            with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as self.process:
                try:
                    self._ask(self.process)
                finally:
                    self.process.terminate()
        except OSError:  # it cannot be started, or has gone and reads nothing
            self.view.cannot_draw()

    def _ask(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self.task)
        while not self.over.is_set():
            self.view.news.clear()
            began = time.monotonic()
            process.stdin.write(b"draw\n")
            process.stdin.flush()
            header = json.loads(process.stdout.readline() or "null")
            page = process.stdout.read(header["bytes"]) if header else b""
            if not header or len(page) < header["bytes"]:
                raise BrokenPipeError
            self.view.show(header["rows"], page)
            least, most = REST_SECONDS
            self.over.wait(min(most, max(least, REST_SHARE * (time.monotonic() - began))))
            self.view.news.wait()

    def close(self) -> None:
        """End it now, also in the midst of a report."""
        self.over.set()
        self.view.news.set()
        if self.process is not None:
            self.process.terminate()


class _Server(ThreadingHTTPServer):
    """One thread a request, none of which keeps the program alive."""

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would let two programs have one port
    view: LiveView

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that has gone is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers what belongs to the view of its server, and nothing else."""

    server: _Server
    server_version, sys_version = "regraft", ""
    timeout = 10  # seconds, for a client that stays silent

    def parse_request(self) -> bool:
        """Refuse before anything is looked up: another host, another method."""
        if not super().parse_request():
            return False
        port = self.server.server_port
        if (self.headers.get_all("Host") or []) not in ([f"{ADDRESS}:{port}"], [f"localhost:{port}"]):
            self._refuse(HTTPStatus.FORBIDDEN)
        elif self.command != "GET":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            return True
        return False

    def do_GET(self) -> None:
        """One of the five things under the token's path."""
        view, path = self.server.view, self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if not secrets.compare_digest(path.encode(), f"/{view.token}/{name}".encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        match name:
            case "":
                self._send(_file("watch.html"), "text/html; charset=utf-8", PAGE_POLICY)
            case "watch.js":
                self._send(_file(name), "text/javascript; charset=utf-8")
            case "watch.css":
                self._send(_file(name), "text/css; charset=utf-8")
            case "state":
                self._send(json.dumps(view.state()).encode(), "application/json")
            case "report":  # its own policy stands in the file; a second one can only forbid more
                self._send(view.page(), "text/html; charset=utf-8", "frame-ancestors 'self'")
            case _:
                self._refuse(HTTPStatus.NOT_FOUND)

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(f"{status.value} {status.phrase}\n".encode(), "text/plain; charset=utf-8", status=status)

    def _send(
        self, content: bytes, kind: str, policy: str = "default-src 'none'; frame-ancestors 'none'",
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:  # fmt: skip
        self.send_response(status)
        headers = {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET"
        for name, value in {**headers, "Content-Security-Policy": policy}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to the run."""


def _file(name: str) -> bytes:
    return resources.files("regraft.show").joinpath(f"templates/{name}").read_bytes()
