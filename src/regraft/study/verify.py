"""A whole store, read byte by byte: what is damaged, unfinished, or belongs to nothing."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from regraft.data.home import ABANDONED_AFTER_SECONDS
from regraft.errors import ArtifactDamaged, StoreError, UnknownName
from regraft.study.disk import reading, sha256_of
from regraft.study.locks import held
from regraft.study.store import Store

KEY = re.compile(r"[0-9a-f]{64}")
ERRORS = ("damaged", "unreadable", "foreign")  # kinds of findings that a sound store does not have

Advance = Callable[[int, int | None], None]  # bytes read, bytes in all


@dataclass(frozen=True)
class Finding:
    """One thing in the store that is not as it should be, or not finished."""

    kind: str  # "damaged", "unreadable", "foreign", "dangling", "checkpoint", "unfinished", "set aside"
    path: str  # below the store's folder
    why: str

    @property
    def is_error(self) -> bool:
        return self.kind in ERRORS


@dataclass(frozen=True)
class Checked:
    """What became of a check."""

    artifacts: int  # that were read
    bytes: int
    seconds: float
    findings: tuple[Finding, ...]
    repaired: bool

    @property
    def sound(self) -> bool:
        return not any(finding.is_error for finding in self.findings) or self.repaired


def verify_store(
    store: Store, keys: set[str] | None = None, *, repair: bool = False, advance: Advance = lambda done, total: None
) -> Checked:
    """Read every artifact, index and checkpoint, and compare with the digests.

    keys: of these artifacts only; None: of all. repair: set aside what is damaged (a study computes it anew), and
    remove index entries of what is gone. Safe beside processes at work. Raises StoreError if there is no store, or
    it cannot be written while something is to be repaired."""
    began = time.perf_counter()
    with reading(store.root):
        if not (store.in_a_folder() / "objects").is_dir():
            raise StoreError(f"{store.root} holds no store (it has no folder objects); name one with --store")
        chosen = [key for key in store.keys() if (keys is None or key in keys) and store.has(key)]
        sizes = {key: _size(store.path(key)) for key in chosen}
        findings = [*_artifacts(store, sizes, advance), *_beside(store, whole=keys is None)]
    findings.sort(key=lambda finding: (not finding.is_error, finding.kind, finding.path))
    if repair:
        for finding in findings:
            _repair(store, finding)
    seconds = time.perf_counter() - began
    return Checked(len(chosen), sum(sizes.values()), seconds, tuple(findings), repair)


def _artifacts(store: Store, sizes: dict[str, int], advance: Advance) -> Iterator[Finding]:
    done, total = 0, sum(sizes.values())

    def problem(key: str) -> Finding | None:
        place = f"objects/{key[:2]}/{key}"
        try:
            store.verify(key)
        except UnknownName:  # set aside or pruned just now
            return None
        except ArtifactDamaged as error:
            return Finding("damaged", place, str(error))
        except StoreError as error:
            return Finding("unreadable", place, str(error))
        return None

    # Threads suffice: files are read and hashed outside the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for key, found in zip(sizes, pool.map(problem, sizes), strict=True):
            done += sizes[key]
            advance(done, total)
            if found is not None:
                yield found


def _beside(store: Store, *, whole: bool) -> Iterator[Finding]:
    """What lies around the artifacts. whole: the check is not of some keys only."""
    if whole:
        for path in sorted(store.root.glob("objects/*/*")):
            if not (KEY.fullmatch(path.name) and path.parent.name == path.name[:2] and path.is_dir()):
                yield Finding("foreign", _below(store, path), "no artifact: its name is no key; remove it by hand")
        for link in sorted(store.root.glob("groups/*/*")):
            if not store.has(link.name):
                yield Finding("dangling", _below(store, link), "an index entry of an artifact that is gone")
    for file in sorted(store.root.glob("work/*/checkpoint-*.safetensors")):
        if held(store.root / "locks" / file.parent.name):
            continue  # its training is under way
        if sha256_of(file) == file.stem.removeprefix("checkpoint-"):
            yield Finding("checkpoint", _below(store, file), "of a training that was interrupted; running it goes on")
        else:
            yield Finding("damaged", _below(store, file), "a checkpoint that does not have the digest in its name")
    for path in sorted(store.root.glob("tmp/*")):
        old = time.time() - path.stat().st_mtime > ABANDONED_AFTER_SECONDS
        whose = "left by a process that was stopped" if old else "of a process at work, or one that was stopped"
        yield Finding("unfinished", _below(store, path), f"{whose}; `regraft prune` removes it when it is a day old")
    for path in sorted(store.root.glob("damaged/*")):
        yield Finding("set aside", _below(store, path), _why(path))


def _repair(store: Store, finding: Finding) -> None:
    path = store.root / finding.path
    if finding.kind == "damaged" and path.parent.parent.name == "objects":
        store.set_damaged_aside(path.name, finding.why)
    elif finding.kind in ("damaged", "dangling"):
        with store.writing():
            path.unlink(missing_ok=True)


def _why(path: Path) -> str:
    note = path / "why.txt"
    said = note.read_text("utf-8", "replace").strip() if note.is_file() else "damaged"
    return f"{said} (`regraft prune` removes it)"


def _size(folder: Path) -> int:
    """Bytes of its files. What is set aside just now, or cannot be looked at, counts nothing: reading it will tell."""
    total = 0
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                total += file.stat().st_size
    return total


def _below(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()
