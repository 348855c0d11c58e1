"""Files a user sees, replaced in one step: a crash leaves the old file or the new one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from regraft.errors import StoreError


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text. Raises StoreError if the folder cannot be written."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8", newline="") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another folder with --out") from error
    return path
