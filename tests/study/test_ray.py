"""Laws of the Ray executor on this machine: the same results as serial, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from regraft.spec import Study
from regraft.study.store import Store
from tests.study.conftest import small_study

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from regraft.spec import Study
from regraft.study.events import StepAdvanced, StepDone, StepStarted
from regraft.study.executors import SERIAL
from regraft.study.run import run_study
from regraft.study.store import Store
study, store, out, where = sys.argv[1:]
if where == "ray":
    from regraft.study.ray_executor import Ray
events = []
run_study(
    Study.from_dict(json.loads(study)), Store(store), Ray(workers=2) if where == "ray" else SERIAL,
    report=events.append, threads=1, device="cpu",
).to_csv(out)
kinds = (StepStarted, StepAdvanced, StepDone)
seen = {kind.__name__: sorted({e.id for e in events if type(e) is kind}) for kind in kinds}
seen["order"] = [type(e).__name__ for e in events if getattr(e, "id", None) == "fit:source [seed 0, fast]"]
print(json.dumps(seen))
"""
STEPS = """
import json, sys
from pathlib import Path
from regraft.study.events import StepDone, StepFailed
from regraft.study.ray_executor import Ray
from tests.study.test_executors import bench, errors, steps, work
folder, kinds = Path(sys.argv[1]), sys.argv[2:]
events = []
with Ray(workers=2).started(bench(folder), events.append) as run_all:
    found = errors(run_all(work, steps(folder, *kinds))) | errors(run_all(work, steps(folder, "fine 4")))
failed = sorted(e.label for e in events if isinstance(e, StepFailed))
print(json.dumps([found, failed, sorted(e.id for e in events if isinstance(e, StepDone))]))
"""


def longer_study() -> dict[str, Any]:
    """The small study with trainings that take a while, so that there is something to kill."""
    recipes = small_study()["recipes"]
    return small_study(recipes={**recipes, "fast": {**recipes["fast"], "epochs": 30}})


def start(program: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def said(process: subprocess.Popen[str], seconds: float = 240) -> Any:
    """What a program printed last, as JSON."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0
    return json.loads(out.strip().splitlines()[-1])


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid`, with their names."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" (")
            title = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended
            continue
        parents[int(number)] = int(rest.rpartition(") ")[2].split()[1])
        names[int(number)] = title
    found, fresh = dict[int, str](), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= {child: names[child] for child in fresh}
    return found


def workers(pid: int) -> list[int]:
    """Ray's worker processes below `pid` that are at a step (or that carry the events)."""
    return [p for p, name in descendants(pid).items() if name.startswith("ray::") and "Agent" not in name]


def assert_same(one: Path, other: Path) -> None:
    """Two folders of a store and results.csv hold the same bytes of results."""
    assert (one / "results.csv").read_bytes() == (other / "results.csv").read_bytes()
    first, second = results_of(Store(one / "store")), results_of(Store(other / "store"))
    assert first == second
    assert not list((one / "store" / "tmp").iterdir())


def results_of(store: Store) -> dict[str, bytes]:
    """Tensors of every artifact but the audit, which the command adds and the library does not."""
    artifacts = [store.read(key) for key in store.keys()]
    return {a.key: (a.path / "data.safetensors").read_bytes() for a in artifacts if a.spec["stage"] != "audit"}


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def artifacts(folder: Path) -> int:
    return len(list((folder / "store").glob("objects/??/*")))


# --- without Ray ------------------------------------------------------------------------------------------------


def test_without_ray_the_extra_is_named() -> None:
    law = (
        "import sys; sys.modules['ray'] = None\n"
        "from regraft.errors import StudyError\n"
        "from regraft.study.ray_executor import Ray\n"
        "try: Ray()\n"
        "except StudyError as error: assert \"pip install 'regraft[ray]'\" in str(error), error\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", law], check=True, cwd=ROOT)


# --- with Ray ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("serial")
    study = json.dumps(longer_study())
    return folder, said(start(PROGRAM, study, folder / "store", folder / "results.csv", "serial"))


@contextmanager
def on_ray(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(PROGRAM, json.dumps(longer_study()), folder / "store", folder / "results.csv", "ray")
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with_signal(pid, signal.SIGKILL)
        process.communicate()


def with_signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@pytest.mark.slow
def test_ray_and_serial_give_the_same_bytes_and_the_same_progress(
    serial: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    with on_ray(tmp_path) as process:
        seen = said(process)
    assert_same(tmp_path, serial[0])
    assert seen["StepStarted"] == serial[1]["StepStarted"]
    assert seen["StepDone"] == serial[1]["StepDone"]
    assert seen["order"][0] == "StepStarted"
    assert seen["order"][-1] == "StepDone"
    assert "StepAdvanced" in seen["order"]


@pytest.mark.slow
def test_killed_workers_and_a_killed_driver_change_no_byte(
    serial: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    with on_ray(tmp_path) as process:
        until(lambda: len(workers(process.pid)) >= 3, 120)
        for pid in workers(process.pid):  # the one that carries the events among them
            with_signal(pid, signal.SIGKILL)
        before = artifacts(tmp_path)
        until(lambda: artifacts(tmp_path) > before and workers(process.pid), 120)
        at_work = workers(process.pid)
        process.kill()
        until(lambda: not any(Path(f"/proc/{p}").exists() for p in at_work), 15)  # or they would hold their locks
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "results.csv").exists()
    for left in (tmp_path / "store" / "tmp").iterdir():  # by which workers knew the store of the killed driver
        assert left.name.startswith("cluster-")
        left.unlink()
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").glob("objects/??/*")}
    with on_ray(tmp_path) as process:
        said(process)
    assert_same(tmp_path, serial[0])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in written.items()), "computed twice"


@pytest.mark.slow
def test_steps_that_fail_or_kill_their_worker_cost_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    kinds = ("fine 1", "refused", "unlucky", "diverged", "fatal", "fine 2", "starved", "busy", "fine 3")
    found, failed, done = said(start(STEPS, tmp_path, *kinds))
    assert [kind for kind in kinds if found[kind] is None] == ["fine 1", "unlucky", "fine 2", "busy", "fine 3"]
    assert found["fatal"].startswith("RunError: its worker process died twice")
    assert found["diverged"] == "Diverged: the loss became inf"
    assert list(failed) == ["diverged", "fatal", "refused", "starved"]
    assert list(done) == [f"fit:{kind}" for kind in ("busy", "fine 1", "fine 2", "fine 3", "fine 4", "unlucky")]


def command(folder: Path, *more: str) -> list[str]:
    """`regraft run` of the longer study, with its store and results in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(Study.from_dict(longer_study()).to_yaml())
    return [
        sys.executable, "-m", "regraft.cli", "run", str(folder / "small.yaml"), "--store", str(folder / "store"),
        "--out", str(folder), "--threads", "1", "--device", "cpu", "--executor", "ray", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_stops_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    process = subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: artifacts(tmp_path) >= 2, 120)
    all_of_it = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Stopped; what is finished is kept. Go on with: " in told
    assert "--executor ray" in told
    assert "Traceback" not in told
    until(lambda: not any(Path(f"/proc/{p}").exists() for p in all_of_it), 10)
    assert not list((tmp_path / "store" / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nobody", "silent", "auto", "malformed"])
def test_an_address_where_no_ray_answers_is_an_error_within_a_minute(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if kind == "silent":
            other.listen()
        port = other.getsockname()[1]
        address = {"auto": "auto", "malformed": "ray://head:10001"}.get(kind, f"127.0.0.1:{port}")
        done = subprocess.run(
            command(tmp_path, "--address", address), capture_output=True, text=True, timeout=90,
            env={**os.environ, "RAY_TMPDIR": str(tmp_path / "t")},
        )  # fmt: skip
    expected = {
        "nobody": "error: nothing answers at 127.0.0.1", "silent": f"error: no Ray answers at {address} within 20 s",
        "auto": "error: no Ray answers at auto", "malformed": "is no address of a cluster's head; give HOST:PORT",
    }  # fmt: skip
    assert expected[kind] in done.stderr
    assert done.returncode == (2 if kind == "malformed" else 1)
    assert artifacts(tmp_path) == 0
