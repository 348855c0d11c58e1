"""The index of a store: what it tells is what the artifacts say, whatever becomes of either."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from regraft.study.index import PENDING, Index, index_path, remove_index
from regraft.study.store import Artifact, Payload, Store

SPEC = {"stage": "fit", "version": 0}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    return Store(tmp_path / "store")


def written(store: Store, i: int) -> Artifact:
    """An artifact whose files were settled long ago."""
    artifact = store.cached({**SPEC, "i": i}, lambda _: Payload({"accuracy": i / 7, "curve": [{"epoch": 1}]}))
    for file in artifact.path.iterdir():
        os.utime(file, (1e9, 1e9))
    return artifact


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files' change times cannot be set: let what was written just now count as settled."""
    monkeypatch.setattr("regraft.study.index.SETTLED_AFTER_NS", 0)


def known(store: Store) -> int:
    """Entries of the index on the disk."""
    with sqlite3.connect(index_path(store)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM artifact").fetchone()
    connection.close()
    return int(count)


def test_it_gives_what_the_store_gives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    keys = [written(store, i).key for i in range(5)]
    first = Index(store)
    assert [first.get(key) for key in keys] == [store.get(key) for key in keys]
    first.save()
    assert known(store) == 5
    again = Index(store)
    assert [again.get(key) for key in keys] == [store.get(key) for key in keys]
    assert again.get("0" * 64) is None


def test_an_artifact_that_is_gone_or_damaged_is_not_told_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    gone, damaged, torn = (written(store, i) for i in range(3))
    index = Index(store)
    for one in (gone, damaged, torn):
        assert index.get(one.key) == one
    index.save()
    gone.path.rename(store.root / "elsewhere")
    values = damaged.path / "values.json"
    values.write_bytes(values.read_bytes().replace(b"1", b"2"))  # the same size
    os.utime(values, (1e9, 1e9))
    (torn.path / "data.safetensors").unlink()
    for one in (gone, damaged, torn):
        assert index.get(one.key) is None  # although it was read a moment ago
        assert Index(store).get(one.key) is None
    assert not damaged.path.exists()  # set aside, as by the store


def test_what_was_written_just_now_is_not_believed_later(store: Store) -> None:
    key = store.cached(SPEC, lambda _: Payload({})).key
    index = Index(store)
    assert index.get(key) is not None
    index.save()
    assert known(store) == 0


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_damaged_index_is_made_again(content: bytes, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    artifact = written(store, 1)
    index_path(store).parent.mkdir(parents=True)
    index_path(store).write_bytes(content)
    for _ in range(2):  # a file whose head is whole is found out when it is read
        index = Index(store)
        assert index.get(artifact.key) == artifact
        index.save()
    assert known(store) == 1


def indexed_and_changed(store: Store, key: str, statement: str) -> None:
    index = Index(store)
    index.get(key)
    index.save()
    with sqlite3.connect(index_path(store)) as connection:
        connection.execute(statement)
    connection.close()


def test_an_entry_that_was_changed_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    artifact = written(store, 1)
    indexed_and_changed(store, artifact.key, "UPDATE artifact SET content = x'00'")
    assert Index(store).get(artifact.key) == artifact


def test_an_index_of_another_version_or_none_at_all_costs_nothing_but_time(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settled(monkeypatch)
    artifact = written(store, 1)
    Index(store).save()
    indexed_and_changed(store, artifact.key, "PRAGMA user_version = 99")
    assert Index(store).get(artifact.key) == artifact
    remove_index(store)
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "file"))  # no folder can be made in it
    index = Index(store)
    assert index.get(artifact.key) == artifact
    index.save()


def test_an_index_that_another_process_writes_for_long_is_done_without(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch)
    monkeypatch.setattr("regraft.study.index.WAIT_SECONDS", 0.05)
    artifact = written(store, 1)
    index = Index(store)
    index.get(artifact.key)
    index.save()
    other = sqlite3.connect(index_path(store))
    other.execute("BEGIN EXCLUSIVE")
    try:
        locked = Index(store)
        assert locked.get(artifact.key) == artifact
        locked.save()
    finally:
        other.rollback()
        other.close()
    assert known(store) == 1


def test_an_index_that_turns_out_damaged_in_use_is_removed_and_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch)
    artifact = written(store, 1)
    indexed_and_changed(store, artifact.key, "SELECT 1")
    content = index_path(store).read_bytes()
    head = 4096  # bytes of the first page, by which it seems to be whole
    index_path(store).write_bytes(content[:head] + b"\xff" * (len(content) - head))
    index = Index(store)
    assert index.get(artifact.key) == artifact
    assert not index_path(store).exists()
    index.save()  # this one is left alone from then on
    assert not index_path(store).exists()
    again = Index(store)
    assert again.get(artifact.key) == artifact
    again.save()
    assert known(store) == 1


def test_an_index_that_is_locked_while_it_is_in_use_is_left_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch)
    monkeypatch.setattr("regraft.study.index.WAIT_SECONDS", 0.05)
    first, second = written(store, 1), written(store, 2)
    indexed_and_changed(store, first.key, "SELECT 1")
    index = Index(store)
    assert index.get(first.key) == first  # it is open
    other = sqlite3.connect(index_path(store))
    other.execute("BEGIN EXCLUSIVE")
    try:
        assert index.get(second.key) == second
        index.save()
    finally:
        other.rollback()
        other.close()
    assert known(store) == 1


def test_what_waits_to_be_written_does_not_grow_without_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    artifact = written(store, 1)
    index = Index(store)
    for _ in range(PENDING - 1):  # what waits is not looked through: each counts
        index.get(artifact.key)
    assert known(store) == 0
    index.get(artifact.key)
    assert known(store) == 1
