"""Leases: what keeps processes apart where the file system has no locks."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from regraft.study import leases, locks
from regraft.study.locks import Busy, Lock, held
from regraft.study.prune import prune
from regraft.study.store import Store

CHILD = """
import os, sys
from pathlib import Path
from regraft.study import leases
assert leases.take(Path(sys.argv[1]))
os._exit(0)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "k.lease"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)


@pytest.fixture(params=["refused", "granted to everybody"])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks: it says so, or grants every lock."""
    fcntl = pytest.importorskip("fcntl")

    def flock(handle: int, operation: int) -> None:
        if request.param == "refused":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(
        locks,
        "fcntl",
        SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_SH=fcntl.LOCK_SH, LOCK_NB=fcntl.LOCK_NB),
    )


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def touched(path: Path) -> None:
    until(lambda: path.stat().st_mtime > 1)


def of_another_machine(path: Path) -> None:
    path.write_text("elsewhere/boot/pid:[1] 12 345 abc")


def test_a_lease_keeps_others_out_until_it_is_given_back(path: Path) -> None:
    token = leases.take(path)
    assert token is not None and leases.alive(path)
    assert leases.take(path) is None
    leases.give_back(token)
    assert not path.exists() and not leases.alive(path)
    again = leases.take(path)
    assert again is not None
    leases.give_back(again)


def test_a_lease_does_not_name_its_machine(path: Path) -> None:
    token = leases.take(path)
    assert token is not None
    assert socket.gethostname() not in path.read_text()
    leases.give_back(token)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_the_lease_of_a_process_that_died_here_is_free_at_once(path: Path) -> None:
    subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, timeout=60)
    assert path.exists() and not leases.alive(path)
    token = leases.take(path)
    assert token is not None and path.read_text() == token
    leases.give_back(token)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it(path: Path) -> None:
    path.write_text(f"{leases.here()} {os.getppid()} 1 abc")  # our parent began later than the first tick
    assert not leases.alive(path)
    path.write_text(f"{leases.here()} {os.getppid()} {leases._started(os.getppid())} abc")
    assert leases.alive(path)


def test_a_process_that_lost_the_file_of_a_lease_does_not_hold_it(path: Path) -> None:
    """It gave the lease back when the share had gone, and the share came back with the file."""
    token = leases.take(path)
    assert token is not None
    path.rename(path.with_suffix(".gone"))
    leases.give_back(token)
    path.with_suffix(".gone").rename(path)
    assert not leases.alive(path)


def test_the_lease_of_another_machine_lives_as_long_as_it_is_touched(path: Path, soon: None) -> None:
    of_another_machine(path)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        os.utime(path)
        assert leases.take(path) is None
        time.sleep(0.05)
    time.sleep(0.3)
    assert leases.take(path) is None
    time.sleep(0.6)
    token = leases.take(path)
    assert token is not None
    leases.give_back(token)
    assert not list(path.parent.iterdir())


def test_a_lease_that_nobody_touched_for_a_day_is_dead_at_first_sight(path: Path) -> None:
    of_another_machine(path)
    os.utime(path, (time.time() - 90_000,) * 2)
    assert not leases.alive(path)
    assert leases.clear(path) and not path.exists()


def test_the_holder_touches_its_leases(tmp_path: Path, soon: None) -> None:
    """More than one, after a pause in which it held none, too."""
    for _ in range(2):
        paths = [tmp_path / name for name in "ab"]
        tokens = [leases.take(path) for path in paths]
        for path in paths:
            os.utime(path, (1, 1))
        for path in paths:
            touched(path)
        for token in tokens:
            assert token is not None
            leases.give_back(token)
        until(lambda: "regraft-leases" not in [thread.name for thread in threading.enumerate()])


def test_who_was_taken_for_dead_leaves_the_next_one_its_lease(path: Path) -> None:
    token = leases.take(path)
    assert token is not None
    of_another_machine(path)
    leases.give_back(token)
    assert path.read_text().startswith("elsewhere")


def test_a_lease_that_followed_the_dead_one_is_not_cleared(path: Path) -> None:
    """A waiter that saw the dead one comes late."""
    of_another_machine(path)
    seen = path.read_text()
    path.write_text("elsewhere/boot/pid:[1] 13 346 def")
    assert not leases._cleared(path, seen)
    assert path.read_text().endswith("def")
    path.unlink()
    assert leases._cleared(path, seen)
    assert not list(path.parent.iterdir())


def test_a_link_to_nowhere_is_no_reason_to_try_for_ever(path: Path) -> None:
    path.symlink_to("nowhere")
    assert leases.take(path) is None
    assert path.is_symlink()


def test_an_empty_lease_is_taken_for_one_that_is_being_made(path: Path, soon: None) -> None:
    path.touch()
    assert leases.take(path) is None
    time.sleep(0.6)
    token = leases.take(path)
    assert token is not None
    leases.give_back(token)


def test_a_full_disk_leaves_no_lease(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        leases.take(path)
    assert not path.exists()


def test_a_lock_falls_back_to_a_lease(tmp_path: Path, without_locks: None) -> None:
    first, second = Lock(tmp_path / "k", wait=False), Lock(tmp_path / "k", wait=False)
    first.acquire()
    assert held(tmp_path / "k")
    with pytest.raises(Busy):
        second.acquire()
    first.release()
    assert not held(tmp_path / "k")
    second.acquire()
    second.release()
    assert not list(tmp_path.iterdir())


def test_waiting_for_a_lease_ends_when_it_is_given_back(tmp_path: Path, without_locks: None) -> None:
    first, second = Lock(tmp_path / "k", wait=False), Lock(tmp_path / "k", wait=True)
    first.acquire()
    threading.Timer(0.3, first.release).start()
    began = time.monotonic()
    second.acquire()
    assert time.monotonic() - began >= 0.25
    second.release()


def test_one_of_many_threads_holds_a_lease_at_a_time(tmp_path: Path, without_locks: None) -> None:
    inside, most = list[int](), list[int]()

    def work() -> None:
        for _ in range(3):
            lock = Lock(tmp_path / "k", wait=True)
            lock.acquire()
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12


def test_a_lock_respects_the_lease_of_a_machine_without_locks(tmp_path: Path, soon: None) -> None:
    of_another_machine(tmp_path / "k.lease")
    assert held(tmp_path / "k")
    with pytest.raises(Busy):
        Lock(tmp_path / "k", wait=False).acquire()
    patient = Lock(tmp_path / "k", wait=True)
    patient.acquire()
    patient.release()
    assert not list(tmp_path.iterdir())


def test_prune_removes_the_leases_of_the_dead(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked("alive"):
        (tmp_path / "locks" / "dead.lease").write_text("elsewhere/boot/pid:[1] 12 345 abc")
        os.utime(tmp_path / "locks" / "dead.lease", (1, 1))
        prune(store, [], dry_run=False)
        assert {path.name for path in (tmp_path / "locks").iterdir()} == {"alive"}


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are told in /proc")
def test_how_a_file_system_is_mounted_is_known() -> None:
    options = locks._mounted_with(os.stat("/proc").st_dev)
    assert options & {"rw", "ro"}
    assert locks._mounted_with(2**31) == frozenset()
