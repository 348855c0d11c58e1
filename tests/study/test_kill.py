"""Killed at any moment and started again, a study ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regraft.spec import Study
from regraft.study.store import Store
from tests.study.conftest import small_study

PROGRAM = """
import json, sys
import regraft.learn.fit
regraft.learn.fit.CHECKPOINT_SECONDS = 0.0   # a checkpoint after every epoch
import regraft.study.features
regraft.study.features.SHARD = 64            # several shards a pass
from regraft.spec import Study
from regraft.study.run import run_study
from regraft.study.store import Store
study, store, out = sys.argv[1:]
run_study(Study.from_dict(json.loads(study)), Store(store), threads=1, device="cpu").to_csv(out)
"""


def start(study: str, store: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, study, str(store), str(out)])


def traces(store: Path) -> int:
    """Grows with every artifact, shard and checkpoint."""
    return len(list(store.glob("objects/??/*"))) + len(list(store.glob("work/*/checkpoint-*")))


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    rows = [*small_study()["rows"][:2], small_study()["rows"][3]]
    study = json.dumps(small_study(grid=[], rows=rows))
    Study.from_dict(json.loads(study))
    assert start(study, tmp_path / "whole", tmp_path / "whole.csv").wait() == 0
    written: dict[Path, int] = {}
    for moment in (1, 3, 6):
        process = start(study, tmp_path / "killed", tmp_path / "killed.csv")
        while traces(tmp_path / "killed") < moment and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        for path in (tmp_path / "killed").glob("objects/??/*"):
            assert written.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "computed twice"
    assert start(study, tmp_path / "killed", tmp_path / "killed.csv").wait() == 0
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert Store(tmp_path / "killed").keys() == Store(tmp_path / "whole").keys()
    for key in Store(tmp_path / "whole").keys():
        a, b = (Store(tmp_path / name).read(key) for name in ("killed", "whole"))
        assert (a.path / "data.safetensors").read_bytes() == (b.path / "data.safetensors").read_bytes()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in written.items())


@pytest.mark.skipif(os.name == "nt", reason="no flock on Windows; both processes compute, one result is kept")
@pytest.mark.slow
def test_two_processes_on_one_store_share_the_work(tmp_path: Path) -> None:
    study = json.dumps(small_study(grid=[], rows=small_study()["rows"][:3]))
    both = [start(study, tmp_path / "store", tmp_path / f"{i}.csv") for i in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()
    assert len(Store(tmp_path / "store").keys()) == 2 * 5
    assert not list((tmp_path / "store" / "tmp").iterdir())
