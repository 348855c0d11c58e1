"""Names in the store: what a key is made of, how an artifact is found by it, and what does not answer to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.errors import ArtifactDamaged, StoreError, UnknownName
from regraft.study.disk import canonical, sha256_of, verified, verify
from regraft.study.store import FILES, Payload, Store, key_of

SPEC: dict[str, Any] = {"stage": "test", "version": 1, "x": [1, None, True, 0.5], "a": "\u00e9"}
PLAIN = '{"a":"\\u00e9","key_version":1,"stage":"test","version":1,"x":[1,null,true,0.5]}'


def stored(root: Path, x: int = 0) -> tuple[Store, str]:
    store = Store(root)
    made = store.cached({**SPEC, "x": x}, lambda _: Payload({"n": x}, {"w": torch.arange(3.0)}))
    return store, made.key


def test_a_key_is_the_sha256_of_json_of_one_spelling_and_the_version_of_keys() -> None:
    assert key_of(SPEC) == hashlib.sha256(PLAIN.encode()).hexdigest()
    assert canonical({"b": 1, "a": [1, {"d": 2, "c": "x"}]}) == '{"a":[1,{"c":"x","d":2}],"b":1}'
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            canonical(number)


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_an_artifact_lies_under_its_key(tmp_path: Path) -> None:
    store, key = stored(tmp_path)
    assert store.path(key) == tmp_path / "objects" / key[:2] / key
    assert store.path(key).is_dir()
    assert store.has(key)
    assert not store.has("0" * 64)
    found = store.read(key)
    assert (found.key, found.path, found.values) == (key, store.path(key), {"n": 0})
    assert found.spec == {**SPEC, "x": 0}
    assert store.get(key) == store.verify(key) == found
    assert sorted(found.record["sha256"]) == sorted(FILES)


def test_what_is_absent_is_none_to_some_and_an_unknown_name_to_others(tmp_path: Path) -> None:
    store, _ = stored(tmp_path)
    assert store.get("0" * 64) is None
    for ask in (store.read, store.verify):
        with pytest.raises(UnknownName, match=f"no artifact '{'0' * 64}'"):
            ask("0" * 64)
    assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize("name", FILES)
def test_another_content_is_noticed_and_set_aside(tmp_path: Path, name: str) -> None:
    store, key = stored(tmp_path)
    file = store.path(key) / name
    content = file.read_bytes()
    file.write_bytes(content.replace(b"0", b"1") if b"0" in content else content[:-1] + b"\x01")
    with pytest.raises(ArtifactDamaged, match=f"{name} does not have the digest it was written with"):
        store.verify(key)
    if name != "data.safetensors":  # whose bytes are compared when they are opened
        with pytest.raises(ArtifactDamaged, match=name):
            store.read(key)
        assert store.get(key) is None
        assert not store.has(key)
        (why,) = (tmp_path / "damaged").glob("*/why.txt")
        assert name in why.read_text()


@pytest.mark.parametrize("name", [*FILES, "record.json"])
def test_a_file_that_is_gone_or_a_folder_is_noticed(tmp_path: Path, name: str) -> None:
    store, key = stored(tmp_path)
    file = store.path(key) / name
    file.unlink()
    for _ in range(2):
        with pytest.raises(ArtifactDamaged, match=name):
            store.verify(key)
        with pytest.raises(ArtifactDamaged, match=name):
            store.read(key)
        file.mkdir(exist_ok=True)


@pytest.mark.parametrize("looked", [verify, verified])
def test_a_file_that_goes_meanwhile_is_told_to_be_gone(tmp_path: Path, looked: Callable[[Path, str], object]) -> None:
    file = tmp_path / "data.safetensors"
    file.write_bytes(b"1")
    digest = sha256_of(file)
    looked(file, digest)
    file.unlink()
    with pytest.raises(ArtifactDamaged, match=r"data\.safetensors is gone"):
        looked(file, digest)
    file.mkdir()
    with pytest.raises(ArtifactDamaged, match=r"data\.safetensors is gone"):
        looked(file, digest)


def sealed(record: Any) -> str:
    return canonical({"record": record, "sha256": hashlib.sha256(canonical(record).encode()).hexdigest()})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not readable"),
        ("[]", "not readable"),
        ('{"record":{}}', "not readable"),
        ('{"record":{},"sha256":"0"}', "does not have the digest"),
        (sealed([]), "does not have the digest"),
        (sealed({"sha256": {}}), "spec.json does not have the digest"),
    ],
)
def test_a_record_that_says_something_else_is_noticed(tmp_path: Path, content: str, told: str) -> None:
    store, key = stored(tmp_path)
    (store.path(key) / "record.json").write_text(content)
    with pytest.raises(ArtifactDamaged, match=told):
        store.read(key)
    with pytest.raises(ArtifactDamaged, match=told):
        store.verify(key)


def test_a_record_without_the_digest_of_the_tensors_is_noticed_when_all_is_verified(tmp_path: Path) -> None:
    store, key = stored(tmp_path)
    record = json.loads((store.path(key) / "record.json").read_text())["record"]
    del record["sha256"]["data.safetensors"]
    (store.path(key) / "record.json").write_text(sealed(record))
    assert store.read(key).record == record
    with pytest.raises(ArtifactDamaged, match=r"data\.safetensors"):
        store.verify(key)


def test_an_artifact_whose_spec_has_another_key_is_not_taken(tmp_path: Path) -> None:
    store, key = stored(tmp_path)
    other = "ab" + key[2:]
    store.path(other).parent.mkdir(exist_ok=True)
    store.path(key).rename(store.path(other))
    with pytest.raises(ArtifactDamaged, match=f"its spec does not have the key {other}"):
        store.read(other)


def test_a_disk_that_does_not_answer_is_not_an_absent_artifact(tmp_path: Path) -> None:
    store, key = stored(tmp_path)
    record = store.path(key) / "record.json"
    record.unlink()
    record.symlink_to(record)  # a loop: the file system refuses, as a lost share would
    with pytest.raises((StoreError, ArtifactDamaged)):
        store.read(key)


def test_all_keys_are_listed_in_order_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.keys() == []
    keys = [stored(tmp_path, x)[1] for x in range(5)]
    (tmp_path / "objects" / "ab").mkdir(exist_ok=True)
    (tmp_path / "objects" / "ab" / "notes").mkdir()
    (tmp_path / "objects" / "abc").mkdir()
    (tmp_path / "objects" / "abc" / ("0" * 64)).mkdir()
    assert store.keys() == sorted(keys) != keys


def test_a_prefix_names_one_artifact_or_is_refused_with_the_count(tmp_path: Path) -> None:
    keys = [stored(tmp_path, x)[1] for x in range(20)]
    store = Store(tmp_path)
    for key in keys:
        assert store.find(key) == key == store.find(key.upper())
    short = next(key for key in keys if sum(other[0] == key[0] for other in keys) > 1)[0]
    count = sum(key[0] == short for key in keys)
    with pytest.raises(UnknownName, match=f"{count} artifacts start with '{short}'; give the key"):
        store.find(short)
    with pytest.raises(UnknownName, match="no artifact starts with 'x'; give the key"):
        store.find("x")


def test_a_group_has_the_artifacts_linked_to_it_that_are_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.linked("g") == []
    keys = [stored(tmp_path, x)[1] for x in range(12)]
    for key in (*keys[:-1], "0" * 64, keys[0]):
        store.link("g", key)
    store.link("other", keys[-1])
    assert store.linked("g") == sorted(keys[:-1])
    assert store.linked("other") == keys[-1:]
    assert store.linked("none") == []
    assert (tmp_path / "groups" / "g" / keys[0]).is_file()
