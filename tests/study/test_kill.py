"""Killed, crashed, met by a faulty disk, interrupted, run by many at once: the harnesses, in small.

In full they are commands: python -m tests.harness.crash, .concurrency, .corruption, .interrupt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, process groups, /proc")


def figures(name: str, *options: object) -> dict[str, Any]:
    """What a harness found. Fails with its violations."""
    command = [sys.executable, "-m", f"tests.harness.{name}", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_killed_and_resumed_is_uninterrupted() -> None:
    found = figures("crash", "--kills", 3, "--points", 2, "--faults", 2)
    assert found["killed"]["kills"] == 3
    assert sum(found["crashed"]["tried"].values()) >= 2
    assert found["faulty disk"]["faults"] == 2


@pytest.mark.slow
def test_a_crash_or_a_fault_at_any_operation_costs_nothing_that_was_stored() -> None:
    found = figures("crash", "--kills", 12, "--points", 25, "--faults", 20, "--seed", 1)
    assert found["crashed"]["write_points"] > 300
    assert set(found["crashed"]["tried"]) == {"crash", "power", "torn"}
    assert set(found["faulty disk"]["by_error"]) == {"ENOSPC", "EROFS", "EACCES", "EIO"}


@pytest.mark.slow
def test_many_processes_on_one_store_compute_each_run_once_and_none_wrongly() -> None:
    found = figures("concurrency", "--processes", 4, "--rounds", 1)
    assert found["locks"]["computed_again"] == found["locks of dead processes"]["computed_again"] == 0
    assert found["every lock granted"]["artifacts"] == found["locks"]["artifacts"]


@pytest.mark.slow
def test_flipped_bits_and_cut_off_files_are_noticed() -> None:
    found = figures("corruption", "--flips", 200, "--seed", 1)
    assert found["files"]["damaged"] == 200
    assert found["files"]["noticed"] > 100


@pytest.mark.slow
def test_ctrl_c_ends_within_two_seconds_with_a_word_on_how_to_go_on() -> None:
    found = figures("interrupt", "--times", 1)
    assert all(part["times"] == 1 for part in found.values() if isinstance(part, dict))
