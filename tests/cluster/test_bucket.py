"""A study on a store in a bucket, spoken to by S3's own protocol over a socket: moto answers it on this machine.

Needs s3fs and moto[server], which no extra of regraft's has: python -m pytest -m slow tests/cluster/test_bucket.py
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regraft.spec import Study
from regraft.study.executors import Processes
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.store import Store, store_at
from tests.study.conftest import small_study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
URL = "s3://studies/regraft"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that speaks S3, with an empty bucket for URL."""
    pytest.importorskip("s3fs")
    python = os.environ.get("REGRAFT_TEST_MOTO", sys.executable)  # may be another environment's: moto brings much
    if subprocess.run([python, "-c", "import moto.server"], capture_output=True, check=False).returncode:
        pytest.skip("needs moto[server]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    server = subprocess.Popen([python, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        files().mkdir("studies")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def files() -> Any:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


def csv(results: Results, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    results.to_csv(folder / "results.csv")
    return (folder / "results.csv").read_text()


def test_machines_share_a_study_through_a_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.from_dict(small_study())
    alone = csv(run_study(study, Store(tmp_path / "alone"), threads=1), tmp_path)

    def on(machine: str) -> tuple[str, int]:
        monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / machine))
        computed: list[object] = []
        results = run_study(
            study, store_at(URL), Processes(2), threads=1,
            report=lambda event: computed.append(event) if type(event).__name__ == "StepDone" else None,
        )  # fmt: skip
        assert results.missing == []
        return csv(results, tmp_path / machine), len(computed)

    first, steps = on("one")
    assert first == alone and steps > 0
    there = files().find("studies/regraft/objects")
    assert len(there) == len(store_at(URL).keys()) > 0
    assert on("two") == (alone, 0)

    # What is damaged over there is moved aside there, and it alone is computed again by who finds it.
    fs, victim = files(), there[0]
    stamps = {path: fs.info(path)["LastModified"] for path in there}
    content = bytearray(fs.cat_file(victim))
    content[700] ^= 1  # of the first file, whose content begins at 512
    fs.pipe_file(victim, bytes(content))
    assert on("three")[0] == alone
    assert len(fs.find("studies/regraft/damaged")) == 1
    assert fs.cat_file(victim) != bytes(content)
    assert {path for path in there if fs.info(path)["LastModified"] != stamps[path]} <= {victim}
