"""Advisory locks, so that two processes on one store do not compute the same thing twice.

The store is correct without them (writing an artifact is one rename): they only save work. A lock dies with its
process, because the operating system drops it; where the file system has no locking, nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from pathlib import Path
from types import ModuleType

try:
    fcntl: ModuleType | None = importlib.import_module("fcntl")
except ImportError:  # pragma: no cover - Windows
    fcntl = None

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK}


class Busy(Exception):
    """Another process is computing this."""


class Lock:
    """`Lock(path, wait=False).acquire()` raises Busy if another process holds it."""

    def __init__(self, path: Path, *, wait: bool) -> None:
        self.path, self.wait = path, wait
        self._handle: int | None = None

    def acquire(self) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask: a store may be shared
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
            except OSError as error:
                os.close(handle)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise Busy(str(self.path)) from None
                if error.errno in _UNSUPPORTED:
                    return
                raise
            # The former holder removes the file; what we locked must still be the file of that name.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(handle).st_ino:
                    self._handle = handle
                    return
            os.close(handle)

    def release(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with contextlib.suppress(OSError):  # a file that stays locks nobody out
                self.path.unlink()
            with contextlib.suppress(OSError):  # on a share that has gone
                os.close(handle)


def held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`. Writes nothing, and takes no more than a share of the lock:
    that needs no permission to write, and two who ask at once do not take each other for its holder."""
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # another user's
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(handle)
    return False
