"""Files a user sees, replaced in one step: a crash leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from pathlib import Path

from regraft.data.home import ABANDONED_AFTER_SECONDS
from regraft.errors import StoreError


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text. Raises StoreError if the folder cannot be written."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Raises StoreError if the folder cannot be written."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with fresh.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        fresh.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another place with --out") from error
    finally:
        with contextlib.suppress(OSError):  # it has its name by now, or could not even be begun
            fresh.unlink()
    return path


def _sweep(path: Path) -> None:
    """Remove what processes that were killed left beside `path`: untouched for a day, hence nobody's."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"):
        with contextlib.suppress(OSError):  # another process removes it too
            if time.time() - left.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                left.unlink()
