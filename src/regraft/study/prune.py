"""Give disk space back: what no named study needs, and what crashes left behind."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from regraft.errors import RegraftError
from regraft.spec import Study
from regraft.study.keys import Keys, cacheable
from regraft.study.plan import plan
from regraft.study.store import Store, key_of

LEFTOVER_SECONDS = 24 * 3600.0  # younger temporary files may belong to a process at work


def prune(store: Store, studies: Sequence[Study], dry_run: bool) -> list[tuple[str, int, str]]:
    """Remove artifacts that none of `studies` needs; with none named, only leftovers and damaged artifacts.

    Returns (key or file name, bytes, reason) of each; removes nothing if `dry_run`."""
    doomed = [*_leftovers(store)]
    if studies:
        keep = set().union(*(needed(study, store) for study in studies))
        doomed += [(store.path(key), "no named study needs it") for key in store.keys() if key not in keep]
    removed = []
    for path, reason in doomed:
        removed.append((path.name, _size(path), reason))
        if not dry_run:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return removed


def needed(study: Study, store: Store) -> set[str]:
    """Keys of all artifacts that the study's results rest on, as far as the store has them."""
    keys = Keys(plan(study), store, offline=True)
    found: set[str] = set()
    for run in keys.runs:
        with contextlib.suppress(RegraftError):
            found.add(keys.fit_key(run))
            found.add(keys.score_key(run))
            if cacheable(run):
                for split in ("train", "validation", "test"):
                    found.update(store.linked(key_of(keys.features(run, split))))
    return found


def _leftovers(store: Store) -> Iterable[tuple[Path, str]]:
    for path in (store.root / "damaged").glob("*"):
        yield path, "damaged"
    now = time.time()
    for folder in ("tmp", "work"):
        for path in (store.root / folder).glob("*"):
            if now - path.stat().st_mtime > LEFTOVER_SECONDS:
                yield path, "left behind by a process that was stopped"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
