"""A push to the Hugging Face Hub: what arrives there, and what is said where it cannot. Nothing leaves this machine.

In processes of their own: the Hub's library reads its settings when it is imported."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SECRET = "hf_" + "x" * 30
PROGRAM = """
import sys
from pathlib import Path
from regraft.predictor.hub import push
for repository in sys.argv[1:]:
    try:
        print(push([Path("tiny.onnx"), Path("tiny.onnx.json"), Path("tiny.onnx.md")], Path("tiny.onnx.md"), repository))
    except Exception as error:
        print(type(error).__name__, error)
"""
FILES = {"tiny.onnx": b"\x00numbers", "tiny.onnx.json": b"{}", "tiny.onnx.md": b"# tiny"}


class Hub(ThreadingHTTPServer):
    """As much of the Hub as a commit asks for; it keeps what it was sent. Nobody may write to the account `others`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict[str, Any]] = []
        self.committed: dict[str, bytes] = {}
        self.tokens: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            if asked["organization"] == "others":
                self.answer(403, {"error": "You don't have the rights to create a model under others."})
                return
            self.server.created.append(asked)
            self.answer(200, {"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer(200, {"files": files})
        elif self.path == "/api/validate-yaml":  # of the card's first lines
            self.answer(200, {"errors": [], "warnings": []})
        elif not self.path.startswith("/api/models/me/tiny/commit/main"):
            self.answer(404, {"error": self.path})
        else:
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.server.committed[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            self.answer(200, {"commitUrl": f"{self.server.address}/me/tiny/commit/1", "commitOid": "1"})

    def do_GET(self) -> None:
        self.answer(404, {"error": "Repository not found"})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def said(folder: Path, *repositories: str, **settings: str) -> list[str]:
    """What each push gives, a line each."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *repositories], cwd=folder, check=True, capture_output=True, text=True,
        env={**plain, "HOME": str(folder), "HF_HOME": str(folder), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **settings},
    )  # fmt: skip
    assert SECRET not in done.stdout + done.stderr
    return done.stdout.splitlines()


def test_what_was_exported_arrives_with_the_card_as_what_the_hub_shows(tmp_path: Path, hub: Hub) -> None:
    found, refused = said(tmp_path, "me/tiny", "others/tiny", HF_TOKEN=SECRET, HF_ENDPOINT=hub.address)
    assert found == f"{hub.address}/me/tiny"
    assert hub.committed == {
        "tiny.onnx": FILES["tiny.onnx"], "tiny.onnx.json": FILES["tiny.onnx.json"], "README.md": FILES["tiny.onnx.md"]
    }  # fmt: skip
    (asked,) = hub.created
    assert (asked["organization"], asked["name"]) == ("me", "tiny")
    assert asked.get("visibility") == "private" or asked.get("private") is True  # by the library's version
    assert hub.tokens == {f"Bearer {SECRET}"}
    assert refused.startswith("PredictorError the Hub refused 'others/tiny': ")
    assert "403" in refused
    assert refused.endswith("May this account write there (hf auth whoami)?")


def test_a_push_without_a_login_or_a_network_says_what_to_do(tmp_path: Path) -> None:
    nowhere = {"HF_TOKEN": SECRET, "HF_ENDPOINT": "http://127.0.0.1:9"}
    (nobody,) = said(tmp_path, "a/b")
    (offline,) = said(tmp_path, "a/b", HF_TOKEN=SECRET, HF_HUB_OFFLINE="1")
    unreachable, no_name = said(tmp_path, "a/b", "a/b/c", **nowhere)
    assert nobody.startswith("PredictorError nobody is logged in")
    assert offline == "PredictorError the Hub is switched off here: unset HF_HUB_OFFLINE to push"
    assert unreachable.startswith("PredictorError the Hub cannot be reached from here")
    assert "run the same command where there is internet" in unreachable
    assert no_name.startswith("PredictorError 'a/b/c' is no name of a repository, OWNER/NAME")
