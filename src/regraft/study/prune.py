"""Give disk space back: what no named study needs, and what crashes left behind."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from regraft.errors import Diverged, RegraftError, StoreError
from regraft.spec import Run, Study
from regraft.study.audit import audit_key
from regraft.study.features import table_name, training_views
from regraft.study.index import remove_index
from regraft.study.keys import Keys, NotTrained, cacheable
from regraft.study.locks import Busy, held
from regraft.study.locks import names as lock_names
from regraft.study.plan import Cell, plan
from regraft.study.scores import score_keys
from regraft.study.store import Store

LEFTOVER_SECONDS = 24 * 3600.0  # younger temporary files may belong to a process at work
ABANDONED_SECONDS = 30 * LEFTOVER_SECONDS  # an interrupted training that nobody has gone on with for that long


def prune(store: Store, studies: Sequence[Study], dry_run: bool) -> list[tuple[str, int, str]]:
    """Remove artifacts and checkpoints that none of `studies` needs; with none named, only what is broken or
    abandoned. Returns (key or file name, bytes, reason) of each; removes nothing if `dry_run`.

    Empty lock files, and index entries of artifacts that are gone, go with them and are not listed.
    Raises StoreError, before anything is removed, if it cannot be told what a study needs, or the store is no folder's.
    """
    store.in_a_folder()
    keep: set[str] = set().union(*(_kept(study, store) for study in studies))
    doomed = [*_leftovers(store), *_checkpoints(store, keep, any_study=bool(studies))]
    if studies:
        doomed += [(store.path(key), "no named study needs it") for key in store.keys() if key not in keep]
    removed = [(path.name, _size(path), reason) for path, reason in doomed]
    if not dry_run:
        for path, _ in doomed:
            _remove(store, path)
        _tidy(store)
        remove_index(store)  # of the artifacts that are left it is soon made again
    return removed


def needed(study: Study, store: Store) -> set[str]:
    """Keys of all artifacts that the study's results rest on; those of every recipe, and of checkpoints, too.

    While the choice among a source's recipes is open, what may be needed counts, whichever is chosen.
    Raises what keeps the keys from being known: absent data or weights."""
    keys = Keys(plan(study), store, offline=True)
    found: set[str] = set()
    heirs: dict[Cell, list[Run]] = {}
    for run in keys.runs:
        try:
            found |= _needed_by(run, keys)
        except (NotTrained, Diverged):
            cell = keys.source_cell(run)
            assert cell is not None, "only the choice among a source's recipes needs results"
            heirs.setdefault(cell, []).append(run)
    for cell, runs in heirs.items():
        for sources in itertools.product(*_lineage(cell, keys)):
            settled = Keys([*sources, *runs], store, offline=True)
            found.update(*(_needed_by(run, settled) for run in runs))
    if (audited := audit_key(study, store)) is not None:
        found.add(audited)
    return found | score_keys(keys)


def _kept(study: Study, store: Store) -> set[str]:
    try:
        return needed(study, store)
    except RegraftError as error:
        raise StoreError(
            f"cannot tell what study {study.study!r} needs: {error}\nNothing was removed. Bring its data and weights "
            "back (name folders as when it ran), or leave the study out if its results may go."
        ) from error


def _needed_by(run: Run, keys: Keys) -> set[str]:
    runs = [run, run.model_copy(update={"refit": True})] if run.recipe.refit else [run]
    found = {key for each in runs for key in (keys.fit_key(each), keys.score_key(each))}
    if cacheable(run):
        for place in itertools.product(("train", "validation", "test"), {0, *training_views(run)}):
            for cut in keys.cuts(run):
                found.update(keys.store.linked(table_name(run, place, keys, cut)))
    return found


def _lineage(cell: Cell, keys: Keys) -> Iterator[list[Run]]:
    """The rival runs of the cell, of the cell of its source, and so on."""
    next_cell: Cell | None = cell
    while next_cell is not None:
        rivals = keys.by_cell[next_cell]
        yield rivals
        next_cell = keys.source_cell(rivals[0])


def _leftovers(store: Store) -> Iterable[tuple[Path, str]]:
    for path in (store.root / "damaged").glob("*"):
        yield path, "damaged"
    for path in (store.root / "tmp").glob("*"):
        if _age_seconds(path) > LEFTOVER_SECONDS:
            yield path, "left behind by a process that was stopped"


def _checkpoints(store: Store, keep: set[str], *, any_study: bool) -> Iterable[tuple[Path, str]]:
    """Checkpoints are work done: an interrupted training goes on from them."""
    for path in (store.root / "work").glob("*"):
        if held(store.root / "locks" / path.name):
            continue
        if store.has(path.name):
            yield path, "checkpoint of a training that has since been finished"
        elif any_study and path.name not in keep:
            yield path, "checkpoint that no named study needs"
        elif not any_study and _age_seconds(path) > ABANDONED_SECONDS:
            yield path, "checkpoint, untouched for 30 days"


def _remove(store: Store, path: Path) -> None:
    if path.parent.name == "work":
        with contextlib.suppress(Busy), store.locked(path.name, wait=False):  # taken up just now: leave it
            shutil.rmtree(path, ignore_errors=True)
        return
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if path.exists():
        raise StoreError(f"cannot remove {path}; check its permissions. What was removed before it is gone.")


def _tidy(store: Store) -> None:
    for name in lock_names(store.root / "locks"):
        if not held(store.root / "locks" / name):
            with contextlib.suppress(Busy), store.locked(name, wait=False):
                pass  # its release removes the files
    for group in (store.root / "groups").glob("*"):
        empty_for_long = _age_seconds(group) > LEFTOVER_SECONDS  # a fresh one may be about to be filled
        for entry in group.iterdir():
            if not store.has(entry.name):
                entry.unlink(missing_ok=True)
        if empty_for_long:
            with contextlib.suppress(OSError):  # not empty
                group.rmdir()


def _age_seconds(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):  # finished just now
        return time.time() - path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
