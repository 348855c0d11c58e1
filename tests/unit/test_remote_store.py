"""Laws of a store behind a URL: what one machine puts there, another finds, whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from regraft.errors import ArtifactDamaged, StoreError, UnknownName
from regraft.study.prune import prune
from regraft.study.remote import NAMES, RemoteStore, packed, unpack
from regraft.study.store import Payload, Scratch, Store, key_of, store_at
from regraft.study.verify import verify_store

SPEC = {"stage": "fit", "version": 1, "seed": 0}
KEY = key_of(SPEC)


@pytest.fixture
def url() -> Iterator[str]:
    """A place of its own in memory."""
    place = f"memory://{uuid.uuid4().hex}/store"
    yield place
    fs, base = fsspec.core.url_to_fs(place)
    fs.rm(base.rpartition("/")[0], recursive=True) if fs.exists(base) else None


def computed(scratch: Scratch) -> Payload:
    return Payload({"accuracy": 0.5}, {"weight": torch.arange(5.0)}, {"note": "here"})


def never(scratch: Scratch) -> Payload:
    raise AssertionError("it was stored")


def machine(url: str, tmp_path: Path, name: str) -> RemoteStore:
    return RemoteStore(url, cache=tmp_path / name)


def test_what_one_machine_computes_another_finds(url: str, tmp_path: Path) -> None:
    first, second = machine(url, tmp_path, "a"), machine(url, tmp_path, "b")
    assert not first.has(KEY)
    made = first.cached(SPEC, computed)
    first.link("shards", KEY)
    assert second.has(KEY)
    found = second.cached(SPEC, never)
    assert (found.values, found.record, found.spec) == (made.values, made.record, made.spec)
    assert torch.equal(second.tensors(found)["weight"], torch.arange(5.0))
    assert second.keys() == [KEY]
    assert second.find(KEY[:6]) == KEY
    assert second.linked("shards") == [KEY]
    assert found.path.is_relative_to(tmp_path / "b")


def test_the_first_result_stays(url: str, tmp_path: Path) -> None:
    """Two machines at the same time: both have one result, and what is there is never a mixture of two."""
    first, second = machine(url, tmp_path, "a"), machine(url, tmp_path, "b")

    def beaten(scratch: Scratch) -> Payload:
        first.cached(SPEC, computed)
        return Payload({"accuracy": 0.4}, {"weight": torch.zeros(5)})

    second.cached(SPEC, beaten)
    assert machine(url, tmp_path, "c").cached(SPEC, never).values == {"accuracy": 0.5}


@pytest.mark.parametrize("damage", ["cut", "flip", "nothing", "text"])
def test_what_was_damaged_there_is_moved_aside_and_computed_anew(url: str, tmp_path: Path, damage: str) -> None:
    first = machine(url, tmp_path, "a")
    first.cached(SPEC, computed)
    fs, base = fsspec.core.url_to_fs(url)
    place = f"{base}/objects/{KEY[:2]}/{KEY}.tar"
    content = bytearray(fs.cat_file(place))
    at = content.index(b"accuracy")
    content[at] ^= 1
    damaged = {"cut": bytes(content[:700]), "flip": bytes(content), "nothing": b"", "text": b"<html>no</html>"}[damage]
    fs.pipe_file(place, damaged)
    second = machine(url, tmp_path, "b")
    assert second.get(KEY) is None
    assert second.cached(SPEC, computed).values == {"accuracy": 0.5}
    assert machine(url, tmp_path, "c").cached(SPEC, never).values == {"accuracy": 0.5}
    assert [path.rpartition("/")[2][:64] for path in fs.find(f"{base}/damaged")] == [KEY]


def test_what_was_damaged_here_is_fetched_again(url: str, tmp_path: Path) -> None:
    store = machine(url, tmp_path, "a")
    made = store.cached(SPEC, computed)
    (made.path / "values.json").write_text("{}")
    assert store.cached(SPEC, never).values == {"accuracy": 0.5}
    assert len(list((tmp_path / "a" / "damaged").iterdir())) == 1


def test_another_process_opens_it_by_its_location(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    opened = store_at(RemoteStore(url, cache=tmp_path / "a").location)
    assert isinstance(opened, RemoteStore)
    assert opened.root.is_relative_to(tmp_path / "home")
    folder = store_at(str(tmp_path / "plain"))
    assert type(folder) is Store
    assert store_at(folder.location).root == folder.root


def test_an_absent_artifact_is_unknown(url: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="the store has no artifact"):
        machine(url, tmp_path, "a").read(KEY)


@pytest.mark.parametrize("place", ["nosuch://x/y", "s3nope://bucket"])
def test_a_protocol_that_nobody_speaks_is_refused(place: str) -> None:
    with pytest.raises(StoreError, match="A store is a folder, or a URL"):
        RemoteStore(place)


def test_a_store_that_does_not_answer_is_told(tmp_path: Path) -> None:
    store = RemoteStore("file:///proc/nowhere/store", cache=tmp_path / "a")
    with pytest.raises(StoreError, match=r"the store file:///proc/nowhere/store does not answer: .*run again"):
        store.cached(SPEC, computed)
    assert Store(tmp_path / "a").cached(SPEC, never).values == {"accuracy": 0.5}  # what was computed is kept here


def test_only_a_folder_is_tidied_and_read_through(url: str, tmp_path: Path) -> None:
    store = machine(url, tmp_path, "a")
    store.cached(SPEC, computed)
    with pytest.raises(StoreError, match="only a store in a folder"):
        prune(store, [], dry_run=False)
    with pytest.raises(StoreError, match="only a store in a folder"):
        verify_store(store)


def test_an_artifact_packs_to_the_same_bytes_and_back(tmp_path: Path) -> None:
    made = Store(tmp_path / "s").cached(SPEC, computed)
    again = tmp_path / "again"
    again.mkdir()
    unpack(packed(made.path), again)
    assert packed(again) == packed(made.path)
    assert sorted(file.name for file in again.iterdir()) == sorted(NAMES)


def test_an_archive_of_other_things_is_refused(tmp_path: Path) -> None:
    import io
    import tarfile

    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as tar:
        for name in (*NAMES[:3], "../record.json"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    (tmp_path / "in").mkdir()
    with pytest.raises(ArtifactDamaged, match="no artifact's files"):
        unpack(into.getvalue(), tmp_path / "in")
    assert list(tmp_path.rglob("*.json")) == []
