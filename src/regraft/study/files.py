"""Files a user sees, replaced in one step: a crash leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from regraft.errors import StoreError


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text. Raises StoreError if the folder cannot be written."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Raises StoreError if the folder cannot be written."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where it could not even be begun
            fresh.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another place with --out") from error
    return path
