"""Where regraft keeps what it fetched and converted, and how it writes there."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import platformdirs

ABANDONED_AFTER_SECONDS = 24 * 3600.0
TEMPORARY_PREFIX = ".unfinished-"


def home() -> Path:
    """The folder of everything kept between runs: $REGRAFT_HOME, or the user's cache folder."""
    named = os.environ.get("REGRAFT_HOME")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("regraft"))


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` in one rename when the block ends without an error.

    So a killed process leaves no half-written `final`, and of two processes that write the same folder
    the first one's stays (both hold the same content).
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final.parent)
    folder = final.parent / f"{TEMPORARY_PREFIX}{final.name}-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        yield folder
        for file in folder.iterdir():
            flush(file)
        flush(folder)
        try:
            folder.rename(final)
        except OSError:
            if not final.is_dir():  # anything but "another process was first"
                raise
        flush(final.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one file whole, never partly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}")
    try:
        temporary.write_bytes(content)
        flush(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it has its name by now, or could not even be begun
            temporary.unlink()
    flush(path.parent)


def flush(path: Path) -> None:
    """Make the content (or, for a folder, the names in it) survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    """Temporary files and folders of processes that were killed: untouched for a day, hence nobody's."""
    for left in parent.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):  # another process removes it too
            newest = max((f.stat().st_mtime for f in left.rglob("*")), default=left.stat().st_mtime)
            if time.time() - newest <= ABANDONED_AFTER_SECONDS:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
