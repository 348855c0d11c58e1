"""What is missing on a machine is said, with what to do about it; the examination itself changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regraft.doctor import Finding, examine

ROOT = Path(__file__).parents[2]


def found(name: str) -> list[Finding]:
    return [finding for finding in examine() if finding.what == name]


def test_a_home_that_cannot_be_written_is_a_problem_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "file" / "home"))
    (writable,) = found("writable")
    assert (writable.found, writable.state) == ("no", "problem")
    assert writable.advice == f"cannot write in {tmp_path / 'file'}; set REGRAFT_HOME to a folder of yours"
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "new" / "home"))
    assert found("writable") == []
    (home,) = found("home")
    assert home.found == f"{tmp_path / 'new' / 'home'} (REGRAFT_HOME)"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_threads_set_by_the_environment_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    (threads,) = found("OMP_NUM_THREADS")
    assert (threads.found, threads.state) == ("999", "note")
    assert "--threads" in threads.advice
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert found("OMP_NUM_THREADS") == []


def test_packages_that_are_not_there_are_named_as_such() -> None:
    code = f"""
import sys
sys.path = [{str(ROOT / "src")!r}, *(folder for folder in sys.path if "-packages" not in folder)]
from regraft.study.provenance import versions
print(versions()["python"], versions()["torch"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{sys.version.split()[0]} not installed\n"
