"""Laws of the executors: a study outlives its steps, its workers do not outlive the study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from regraft.errors import Diverged, RegraftError, RunError, StudyError
from regraft.study.bench import Bench, Setting
from regraft.study.events import Event, StepAdvanced, StepDone, StepFailed
from regraft.study.executors import Outcome, Processes, Serial
from regraft.study.locks import Busy, Lock, held
from regraft.study.steps import Step

ROOT = Path(__file__).parents[2]

# Stages live in this module, so that worker processes can import them.
Advance = Callable[[float, str], None]


class Task(NamedTuple):
    kind: str
    folder: Path


def work(task: Task, bench: Bench, advance: Advance, wait: bool) -> str:
    kind, folder = task.kind.split()[0], task.folder
    if kind == "refused":
        torch.nn.BatchNorm1d(3)(torch.ones(1, 3))  # one value a channel: torch raises ValueError
    elif kind == "starved":
        raise MemoryError
    elif kind == "diverged":
        raise Diverged("the loss became inf")
    elif kind == "interrupted":
        raise KeyboardInterrupt
    elif kind == "busy" and not wait:
        raise Busy("another process is at it")
    elif kind == "fatal" or (kind == "unlucky" and not (folder / "once").exists()):
        (folder / "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    advance(1.0, kind)
    with (folder / "order").open("a") as f:
        f.write(task.kind + "\n")
    return "done"


def hold(task: Task, bench: Bench, advance: Advance, wait: bool) -> str:
    """Hold a lock for a minute, as a training does."""
    Lock(task.folder / task.kind, wait=False).acquire()
    for _ in range(600):
        torch.ones(100, 100).sum()
        time.sleep(0.1)
    return "done"


def steps(folder: Path, *kinds: str) -> list[Step]:
    return [Step("fit", kind, Task(kind, folder), (), 1.0) for kind in kinds]


def bench(folder: Path, device: str = "cpu") -> Bench:
    return Bench(Setting(str(folder / "store"), (), device, 1))


def errors(outcomes: list[Outcome]) -> dict[str, str | None]:
    return {o.item.label: None if o.error is None else f"{type(o.error).__name__}: {o.error}" for o in outcomes}


Ran = tuple[list[Outcome], list[Outcome], list[Event], Path]
KINDS = ("fine 1", "refused", "unlucky", "diverged", "fatal", "fine 2", "starved", "busy", "fine 3")


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two workers, one of them killed once by one step and as often as it is tried by another; then a later stage."""
    folder, events = tmp_path_factory.mktemp("processes"), list[Event]()
    with Processes(2).started(bench(folder), events.append) as run_all:
        first = run_all(work, steps(folder, *KINDS))
        second = run_all(work, steps(folder, "fine 4"))
    return first, second, events, folder


def test_a_killed_worker_costs_only_the_step_that_kills_it(survived: Ran) -> None:
    first, second, _, _ = survived
    assert [o.item.label for o in first] == list(KINDS)
    found = errors(first)
    fatal = found.pop("fatal")
    assert fatal is not None
    assert fatal.startswith("RunError: its worker process died twice")
    assert [kind for kind, error in found.items() if error is None] == [
        "fine 1", "unlucky", "fine 2", "busy", "fine 3",
    ]  # fmt: skip
    assert errors(second) == {"fine 4": None}


def test_each_step_that_can_be_done_is_done_and_again_only_beside_a_death(survived: Ran) -> None:
    """With a worker the whole pool goes: what its neighbour was about to hand over is done again (the store has it)."""
    _, _, _, folder = survived
    order = (folder / "order").read_text().split("\n")[:-1]
    assert set(order) == {"busy", "fine 1", "fine 2", "fine 3", "fine 4", "unlucky"}
    deaths = 3  # "unlucky" once, "fatal" twice
    assert len(order) <= 6 + deaths
    assert order.count("fine 4") == 1  # of the second stage, in which nobody dies
    assert order[-2] == "busy"  # put off to the end of its stage


def test_failures_and_progress_of_workers_are_reported(survived: Ran) -> None:
    events = survived[2]
    failed = {e.label: e.reason for e in events if isinstance(e, StepFailed)}
    assert sorted(failed) == ["diverged", "fatal", "refused", "starved"]
    assert "died twice" in failed["fatal"]
    assert {"fit:fine 1", "fit:busy", "fit:fine 4"} <= {e.id for e in events if isinstance(e, StepDone)}
    assert "fit:fine 4" in {e.id for e in events if isinstance(e, StepAdvanced)}


def test_processes_and_serial_give_the_same_reasons(survived: Ran, tmp_path: Path) -> None:
    kinds = ("fine 1", "refused", "diverged", "starved", "busy", "fine 2")
    with Serial().started(bench(tmp_path), lambda event: None) as run_all:
        serial = run_all(work, steps(tmp_path, *kinds))
    several = errors(survived[0])
    assert errors(serial) == {kind: several[kind] for kind in kinds}
    assert (tmp_path / "order").read_text().split() == ["fine", "1", "fine", "2", "busy"]


def test_any_error_of_a_step_is_its_result(tmp_path: Path) -> None:
    with Serial().started(bench(tmp_path), lambda event: None) as run_all:
        refused, starved, diverged = (o.error for o in run_all(work, steps(tmp_path, "refused", "starved", "diverged")))
    assert type(refused) is RunError
    assert str(refused).startswith("ValueError: Expected more than 1 value per channel")
    assert str(starved) == "MemoryError"
    assert type(diverged) is Diverged
    assert all(isinstance(e, RegraftError) and e.__traceback__ is None for e in (refused, starved, diverged))


def test_ctrl_c_is_no_error_of_a_step(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Serial().started(bench(tmp_path), lambda event: None) as run_all,
    ):
        run_all(work, steps(tmp_path, "interrupted"))


def test_an_unforeseen_error_is_raised_for_debugging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_DEBUG", "1")
    with Serial().started(bench(tmp_path), lambda event: None) as run_all:
        assert errors(run_all(work, steps(tmp_path, "diverged")))["diverged"] == "Diverged: the loss became inf"
        with pytest.raises(ValueError, match="more than 1 value"):
            run_all(work, steps(tmp_path, "refused"))


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Processes(0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(StudyError, match="'cuda' is not usable"),
        Processes(2).started(bench(tmp_path, "cuda"), lambda event: None),
    ):
        pass


@pytest.mark.slow
def test_an_error_of_the_display_ends_the_study_and_stalls_nothing(tmp_path: Path) -> None:
    def closed(event: Event) -> None:
        raise BrokenPipeError("the terminal is gone")

    with (
        pytest.raises(BrokenPipeError, match="the terminal is gone"),
        Processes(1).started(bench(tmp_path), closed) as run_all,
    ):
        run_all(work, steps(tmp_path, "fine 1", "fine 2"))


PARENT = """
import sys
from pathlib import Path
from tests.study.test_executors import Processes, bench, hold, steps
folder = Path(sys.argv[1])
with Processes(1).started(bench(folder), lambda event: None) as run_all:
    run_all(hold, steps(folder, "lock"))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals and flock")
@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    """Killed (-9), stopped, or by Ctrl-C, within two seconds: a worker that trains on would hold its locks."""
    lock = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    until(lambda: held(lock), 90)
    parent.send_signal(how)
    began = time.monotonic()
    parent.wait(timeout=10)
    until(lambda: not held(lock), 10)
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PARENT}")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "RunError: worker processes die before they have begun" in done.stderr
    assert "__main__" in done.stderr.splitlines()[-1]


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
