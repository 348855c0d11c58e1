"""The operations by which files change, counted; and one of them that goes wrong.

Python tells an audit hook of every file that is opened, renamed, made or removed before it is. Two more are wrapped:
fsync, of which it tells nothing, and the writer of tensors, which is not Python's.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CRASHED = 137
NAMES = {
    "os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "unlink", "os.rmdir": "rmdir", "os.chmod": "chmod",
    "os.utime": "touch", "os.truncate": "truncate", "os.link": "link", "os.symlink": "symlink",
}  # fmt: skip
NO_ROOM = ("create", "mkdir", "tensors", "rename", "fsync")  # what a full disk refuses; it still removes files
STAYS = (errno.ENOSPC, errno.EROFS)  # errors that the operations after it meet, too
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Seam:
    """Operations on files below `roots`.

    at: the number of the one that goes wrong; None: none does.
    how: "crash": the process ends before it. "power": the same, and what was written but not flushed is lost.
    "torn": of a file that is opened to be written, the first bytes are there when the process ends. Or the number
    of an error, which is raised in place of the operation."""

    roots: Sequence[Path]
    at: int | None = None
    how: str | int = "crash"
    said: Path | None = None  # where the operations are listed, one a line
    count: int = 0
    _unflushed: set[str] = field(default_factory=set)
    _inside: bool = False

    def install(self) -> None:
        """From here on, in this process, for good."""
        import safetensors.torch

        sys.addaudithook(self._heard)
        fsync, serialize = os.fsync, vars(safetensors.torch)["serialize_file"]

        def flushed(handle: Any) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            self._operation("fsync", path)
            fsync(handle)
            self._unflushed.discard(path)

        def serialized(tensors: Any, file: Any, *rest: Any, **named: Any) -> None:
            self._operation("tensors", str(file))
            serialize(tensors, file, *rest, **named)

        vars(os)["fsync"] = flushed
        vars(safetensors.torch)["serialize_file"] = serialized

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        if self._inside:
            return
        if event == "open":
            path, _, flags = given
            if isinstance(path, (str, bytes, os.PathLike)) and flags & WRITES:
                # A file without a name (O_TMPFILE) is opened by its folder's.
                creates = flags & (os.O_CREAT | os.O_TRUNC) and not os.path.isdir(path)
                self._operation("create" if creates else "open", os.fsdecode(path))
        elif event in NAMES and not isinstance(given[0], int):
            folder = (
                next((h for h in given[1:] if isinstance(h, int) and h >= 0), None) if event != "os.chmod" else None
            )
            where = "" if folder is None or event in ("os.mkdir",) else os.readlink(f"/proc/self/fd/{folder}") + "/"
            self._operation(
                NAMES[event], where + os.fsdecode(given[0]), *map(os.fsdecode, given[1:2] * (event == "os.rename"))
            )

    def _operation(self, name: str, path: str, target: str = "") -> None:
        path = os.path.abspath(path)
        if not any(path.startswith(f"{root}/") or path == str(root) for root in self.roots):
            return
        here, self.count = self.count, self.count + 1
        self._inside = True
        try:
            self._note(name, path)
            if self.at is not None and here >= self.at:
                self._go_wrong(name, path, first=here == self.at)
            self._remember(name, path, os.path.abspath(target) if target else "")
        finally:
            self._inside = False

    def _note(self, name: str, path: str) -> None:
        if self.said is not None:
            with self.said.open("a") as file:
                file.write(f"{name} {int(self._loses())} {path}\n")

    def _loses(self) -> bool:
        """Whether a power cut now would lose more than a crash."""
        return any(os.path.isfile(lost) and os.path.getsize(lost) for lost in self._unflushed)

    def _go_wrong(self, name: str, path: str, *, first: bool) -> None:
        if isinstance(self.how, int):
            refused = name in NO_ROOM if self.how == errno.ENOSPC else True
            if refused and (first or self.how in STAYS):
                raise OSError(self.how, os.strerror(self.how), path)
            return
        if self.how == "torn" and name in ("create", "tensors"):
            Path(path).write_bytes(b'{"x":')
        if self.how == "power":
            for lost in self._unflushed:
                if os.path.isfile(lost):
                    os.truncate(lost, 0)
        os._exit(CRASHED)

    def _remember(self, name: str, path: str, target: str) -> None:
        """What would not survive a power cut."""
        if name in ("create", "tensors"):
            self._unflushed.add(path)
        elif name == "unlink":
            self._unflushed.discard(path)
        elif name == "rename":
            moved = {p for p in self._unflushed if p == path or p.startswith(f"{path}/")}
            self._unflushed = (self._unflushed - moved - {target}) | {target + p[len(path) :] for p in moved}


@dataclass(frozen=True)
class Operation:
    """One that a Seam has listed."""

    name: str
    loses: bool  # more by a power cut before it than by a crash
    path: str


def operations(listed: Path) -> list[Operation]:
    """Those that a Seam wrote down."""
    lines = [line.split(" ", 2) for line in listed.read_text().splitlines()]
    return [Operation(name, loses == "1", path) for name, loses, path in lines]
