"""Leases: how processes keep out of each other's way where the file system has no locks.

A lease is a file that is made exclusively, which every file system does in one step, and that its holder touches every
few seconds. It names the holder: a process of this machine that has died is known at once; one of another machine once
its lease has not been touched for a minute, by the clock of the one who waits, so that no two clocks need to agree.
The idea: Gray and Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency",
1989.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import threading
import time
import uuid
from pathlib import Path

SUFFIX = ".lease"
BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 60.0  # twelve beats: a machine that swaps, or a share that hangs, is not dead
FORGOTTEN_SECONDS = 86_400.0  # by the clocks of two machines, which may differ by hours

_held: dict[str, Path] = {}  # what this process holds, by token
_seen: dict[Path, tuple[tuple[str, int], float]] = {}  # leases of other machines: what they were, and since when
_guard = threading.Lock()
_beating = False


def take(path: Path) -> str | None:
    """Take the lease `path`: its token, or None if somebody who lives has it, or a link stands in its place."""
    global _beating
    token = f"{here()} {os.getpid()} {_started(os.getpid())} {uuid.uuid4().hex}"
    with _guard:
        _held[token] = path  # before the file is there: our other threads would take it for one left behind
    try:
        while not _made(path, token):
            found = _look(path)
            if path.is_symlink() or (found is not None and (found[1] or not _cleared(path, found[0]))):
                _forget(token)
                return None
    except BaseException:
        _forget(token)
        raise
    with _guard:
        if not _beating:
            _beating = True
            threading.Thread(target=_beat, daemon=True, name="regraft-leases").start()
    return token


def give_back(token: str) -> None:
    """The file goes if it is still ours: who was taken for dead has been followed by another."""
    path = _held[token]
    with contextlib.suppress(OSError):  # the share may have gone: what is not touched expires
        if _read(path)[0] == token:
            path.unlink()
    _forget(token)


def _forget(token: str) -> None:
    with _guard:
        del _held[token]


def alive(path: Path) -> bool:
    """Whether somebody who lives holds the lease `path`. Writes nothing."""
    found = _look(path)
    return found is not None and found[1]


def clear(path: Path) -> bool:
    """Remove the lease `path` if nobody who lives holds it: whether it is gone."""
    found = _look(path)
    return found is None or (not found[1] and _cleared(path, found[0]))


def _look(path: Path) -> tuple[str, bool] | None:
    """The token of the lease `path`, and whether its holder lives. None: there is no lease."""
    try:
        token, touched = _read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    parts = token.split(" ")
    if len(parts) == 4 and parts[0] == here() and parts[1].isdecimal():
        pid = int(parts[1])
        return token, token in _held if pid == os.getpid() else _started(pid) == parts[2]
    if time.time() - touched / 1e9 > FORGOTTEN_SECONDS:
        return token, False
    now, state = time.monotonic(), (token, touched)
    with _guard:
        before, since = _seen.get(path, (None, now))
        if before != state:
            _seen[path] = state, now
            return token, True
    return token, now - since < PATIENCE_SECONDS


@functools.cache
def here() -> str:
    """This machine, since it started, and this container, where a process's number means something: as a digest, since
    a store may be published."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        place = f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
        return hashlib.sha256(place.encode()).hexdigest()[:32]
    # Another system: its processes know each other by their beat alone.
    return uuid.uuid4().hex  # pragma: no cover (not Linux)


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine did: numbers of processes are used again. '' if it is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()  # a process may be named with spaces and brackets
    return "" if fields[0] in "ZX" else fields[19]


def _made(path: Path, token: str) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask: a store may be shared
    except FileExistsError:
        return False
    try:
        os.write(handle, token.encode())
    except OSError:  # a full disk: an empty lease would keep others out for a minute
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(handle)
    return True


def _read(path: Path) -> tuple[str, int]:
    touched = path.stat().st_mtime_ns
    try:
        return path.read_text("utf-8", errors="replace"), touched
    except PermissionError:  # another user's: known by its beat alone
        return "", touched


def _cleared(path: Path, dead: str) -> bool:
    """Set the lease of somebody dead aside in one step, and look at what it was: another may have been quicker, and
    hold a new one by now."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        if _read(path)[0] != dead:
            return False
        path.rename(aside)
        if _read(aside)[0] != dead:
            with contextlib.suppress(OSError):  # where there are no hard links its holder works on without a lease
                os.link(aside, path)
            return False
    except FileNotFoundError:
        return True
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    with _guard:
        _seen.pop(path, None)
    return True


def _beat() -> None:
    global _beating
    while True:
        time.sleep(BEAT_SECONDS)
        with _guard:
            paths = list(_held.values())
            if not paths:
                _beating = False
                return
        for path in paths:
            with contextlib.suppress(OSError):
                os.utime(path)
