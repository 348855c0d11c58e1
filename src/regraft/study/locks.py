"""Advisory locks, so that two processes on one store do not compute the same thing twice.

The store is correct without them (writing an artifact is one rename): they only save work. A lock dies with its
process, because the operating system drops it. Where the file system has no locks, or has them within one machine only,
a lease takes their place.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import os
import time
from pathlib import Path
from types import ModuleType

from regraft.study import leases

try:
    fcntl: ModuleType | None = importlib.import_module("fcntl")
except ImportError:  # pragma: no cover - Windows
    fcntl = None

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK}
_TAKEN = {errno.EWOULDBLOCK, errno.EACCES}
# With these options of a mount a lock is known to one machine only: of Lustre, and of NFS.
_LOCAL = {"localflock", "nolock", "local_lock=flock", "local_lock=all"}


class Busy(Exception):
    """Another process is computing this."""


class Lock:
    """`Lock(path, wait=False).acquire()` raises Busy if another process holds it."""

    def __init__(self, path: Path, *, wait: bool) -> None:
        self.path, self.wait = path, wait
        self._handle: int | None = None
        self._lease: str | None = None

    def acquire(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is None or _mounted_with(os.stat(self.path.parent).st_dev) & _LOCAL:
            self._take_lease()
            return
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask: a store may be shared
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
            except OSError as error:
                os.close(handle)
                if error.errno in _TAKEN:
                    raise Busy(str(self.path)) from None
                if error.errno in _UNSUPPORTED:
                    self._lease_instead()
                    return
                raise
            # The former holder removes the file; what we locked must still be the file of that name.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(handle).st_ino:
                    if _excludes(self.path):
                        self._keep(handle)
                    else:
                        os.close(handle)
                        self._lease_instead()
                    return
            os.close(handle)

    def _keep(self, handle: int) -> None:
        """A lease beside it is of a machine that has no locks here, or was left behind."""
        self._handle = handle
        while not leases.clear(_lease(self.path)):
            if not self.wait:
                self.release()
                raise Busy(str(self.path))
            time.sleep(0.2)

    def _lease_instead(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()  # it keeps nobody out
        self._take_lease()

    def _take_lease(self) -> None:
        while (token := leases.take(_lease(self.path))) is None:
            if not self.wait:
                raise Busy(str(self.path))
            time.sleep(0.2)
        self._lease = token

    def release(self) -> None:
        if self._lease is not None:
            leases.give_back(self._lease)
            self._lease = None
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with contextlib.suppress(OSError):  # a file that stays locks nobody out
                self.path.unlink()
            with contextlib.suppress(OSError):  # on a share that has gone
                os.close(handle)


def held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`. Writes nothing."""
    return leases.alive(_lease(path)) or _flocked(path)


def names(folder: Path) -> set[str]:
    """Of the locks that lie in `folder`, held or left behind."""
    return {path.name.removesuffix(leases.SUFFIX) for path in folder.glob("*")}


def _lease(path: Path) -> Path:
    return path.with_name(path.name + leases.SUFFIX)


def _flocked(path: Path) -> bool:
    """Asked for a share of the lock only: that needs no permission to write, and two who ask at once do not take each
    other for its holder."""
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
        return error.errno in _TAKEN
    finally:
        os.close(handle)
    return False


def _excludes(path: Path) -> bool:
    """Whether the lock that this process just took keeps another out: some file systems grant all of them to all."""
    return _flocked(path)  # whose file is gone was not kept from being removed, either


@functools.cache
def _mounted_with(device: int) -> frozenset[str]:
    """The options with which the file system `device` is mounted, where Linux tells them."""
    wanted = f"{os.major(device)}:{os.minor(device)}" if hasattr(os, "major") else ""
    options: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines():
            fields = line.split()
            if fields[2] == wanted:
                options |= {*fields[5].split(","), *fields[-1].split(",")}
    return frozenset(options)
