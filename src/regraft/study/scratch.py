"""Checkpoints of a stage under way."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.study.disk import canonical, flush, reading, save_tensors, sha256_of, writing

if TYPE_CHECKING:
    import torch

CHECKPOINT_FORMAT = 1  # raised when older checkpoints can no longer be read; those of another format are ignored


class Scratch:
    """Where a stage under way keeps its checkpoint, so that `kill -9` loses little. Gone once the result is stored."""

    def __init__(self, folder: Path, *, store: Path | None = None) -> None:
        """store: the store's folder; half-written checkpoints are then in its tmp, damaged ones in its damaged."""
        self.folder, self.store = folder, store
        self.seconds_before = 0.0  # spent by earlier, interrupted attempts
        self._start = time.perf_counter()

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Replace the checkpoint in one step; a crash leaves the old or the new one, never a mixture.

        Raises StoreError if it cannot be written."""
        seconds = self.seconds_before + time.perf_counter() - self._start
        meta = {"state": canonical({**state, "format": CHECKPOINT_FORMAT, "_seconds": seconds})}
        fresh = (self.folder if self.store is None else self.store / "tmp") / _unique(self.folder.name)
        with writing(self.folder):
            for folder in (self.folder.parent, self.folder, fresh.parent):
                folder.mkdir(exist_ok=True)  # a store that has gone is not begun anew
            try:
                save_tensors(fresh, tensors, meta)
                # The digest travels in the name: state and tensors are verified together before they are trusted.
                final = self.folder / f"checkpoint-{sha256_of(fresh)}.safetensors"
                flush(fresh)
                with contextlib.suppress(FileNotFoundError):  # where nothing locks, another process has finished this
                    fresh.rename(final)
                    flush(self.folder)
            finally:
                with contextlib.suppress(OSError):  # gone, if all went well
                    fresh.unlink()
            for old in self._files():
                if old != final:
                    old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The newest intact checkpoint of this format, or None. Raises StoreError if they cannot be read."""
        with reading(self.folder):
            for _, file in sorted(((_stamp(file), file) for file in self._files()), reverse=True):
                with contextlib.suppress(FileNotFoundError):  # replaced meanwhile, where nothing locks
                    if (found := self._opened(file)) is not None:
                        return found
        return None

    def _opened(self, file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        from safetensors import safe_open

        if sha256_of(file) != file.stem.removeprefix("checkpoint-"):
            self._set_aside(file)  # as if it had never been written
            return None
        with safe_open(file, framework="pt") as f:
            state = json.loads((f.metadata() or {}).get("state", "{}"))
            if state.pop("format", None) != CHECKPOINT_FORMAT:
                return None  # of another release
            tensors = {name: f.get_tensor(name) for name in f.keys()}
        self.seconds_before = state.pop("_seconds")
        return state, tensors

    def _set_aside(self, file: Path) -> None:
        with writing(self.folder):
            if self.store is None:
                file.unlink(missing_ok=True)
                return
            target = self.store / "damaged" / f"{self.folder.name}.{secrets.token_hex(4)}"
            target.mkdir(parents=True)
            file.rename(target / file.name)
            (target / "why.txt").write_text("a checkpoint that does not have the digest in its name\n", "utf-8")

    def _files(self) -> list[Path]:
        return list(self.folder.glob("checkpoint-*.safetensors"))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _unique(name: str) -> str:
    return f"{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _stamp(file: Path) -> int:
    """When it was written; 0 if it has gone."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_mtime_ns
    return 0
