"""Laws of the store."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.errors import ArtifactDamaged, StoreError, UnknownName
from regraft.study.locks import Busy, Lock
from regraft.study.store import Payload, Scratch, Store, canonical, key_of

SPEC: dict[str, Any] = {"stage": "test", "version": 1, "x": 1}


def payload(_: Scratch) -> Payload:
    return Payload({"accuracy": 0.5}, {"w": torch.arange(6.0).view(2, 3)})


def forbidden(_: Scratch) -> Payload:
    raise AssertionError("computed again")


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    first = Store(tmp_path).cached(SPEC, payload)
    again = Store(tmp_path).cached(SPEC, forbidden)
    assert again.key == first.key == key_of(SPEC)
    assert again.values == {"accuracy": 0.5}
    assert torch.equal(again.tensors()["w"], torch.arange(6.0).view(2, 3))


def test_any_changed_field_changes_the_key_and_order_does_not() -> None:
    assert key_of({**SPEC, "x": 2}) != key_of(SPEC)
    assert key_of({**SPEC, "version": 2}) != key_of(SPEC)
    assert key_of({**SPEC, "y": None}) != key_of(SPEC)
    assert key_of(dict(reversed(SPEC.items()))) == key_of(SPEC)


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"x": float("nan")})


@pytest.mark.parametrize("name", ["spec.json", "values.json", "data.safetensors", "record.json"])
def test_every_flipped_byte_is_noticed(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    artifact = store.cached(SPEC, payload)
    file = artifact.path / name
    intact = file.read_bytes()
    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 0x01
        file.write_bytes(damaged)
        with pytest.raises(ArtifactDamaged):
            store.read(artifact.key).tensors()
    file.write_bytes(intact)
    assert store.read(artifact.key).values == {"accuracy": 0.5}


def test_a_truncated_or_absent_file_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.cached(SPEC, payload)
    (artifact.path / "data.safetensors").unlink()
    with pytest.raises(ArtifactDamaged, match="gone"):
        store.read(artifact.key)


def test_a_damaged_artifact_is_set_aside_and_computed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.cached(SPEC, payload)
    (artifact.path / "values.json").write_text('{"accuracy":0.9}')
    assert store.cached(SPEC, payload).values == {"accuracy": 0.5}
    kept = list((tmp_path / "damaged").iterdir())
    assert len(kept) == 1
    assert "values.json" in (kept[0] / "why.txt").read_text()


def test_a_failed_computation_leaves_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(_: Scratch) -> Payload:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError):
        store.cached(SPEC, fails)
    assert store.keys() == []
    assert store.cached(SPEC, payload).values == {"accuracy": 0.5}


def test_values_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        store.cached(SPEC, lambda _: Payload({"accuracy": float("nan")}))
    assert store.keys() == []
    assert not list((tmp_path / "tmp").iterdir())


def test_two_threads_compute_one_thing_once(tmp_path: Path) -> None:
    calls: list[int] = []
    started = threading.Event()

    def slow(_: Scratch) -> Payload:
        calls.append(1)
        started.set()
        threading.Event().wait(0.2)
        return Payload({})

    worker = threading.Thread(target=lambda: Store(tmp_path).cached(SPEC, slow))
    worker.start()
    started.wait()
    with pytest.raises(Busy):
        Store(tmp_path).cached(SPEC, slow, wait=False)
    Store(tmp_path).cached(SPEC, slow)
    worker.join()
    assert len(calls) == 1


def test_a_lock_is_free_again_after_release(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "l", wait=False), Lock(tmp_path / "l", wait=False)
    first.acquire()
    with pytest.raises(Busy):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    assert not (tmp_path / "l").exists()


def test_a_checkpoint_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "w")
    assert scratch.load() is None
    scratch.save({"epoch": 1}, {"w": torch.ones(3)})
    scratch.save({"epoch": 2}, {"w": torch.full((3,), 2.0)})
    loaded = Scratch(tmp_path / "w").load()
    assert loaded is not None
    assert loaded[0] == {"epoch": 2}
    assert torch.equal(loaded[1]["w"], torch.full((3,), 2.0))
    (file,) = (tmp_path / "w").glob("checkpoint-*")
    file.write_bytes(file.read_bytes()[:-1])
    assert Scratch(tmp_path / "w").load() is None


def test_time_of_interrupted_attempts_is_counted(tmp_path: Path) -> None:
    first = Scratch(tmp_path / "w")
    first._start -= 100.0
    first.save({}, {"w": torch.ones(1)})
    second = Scratch(tmp_path / "w")
    second.load()
    assert second.seconds_before >= 100.0


def test_a_prefix_finds_its_key_and_a_wrong_one_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.cached(SPEC, payload).key
    assert store.find(key[:8]) == key
    with pytest.raises(UnknownName, match="no artifact starts"):
        store.find("zz")
    with pytest.raises(UnknownName, match="no artifact"):
        store.read("0" * 64)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to the store"):
        Store(tmp_path / "file").cached(SPEC, payload)


def test_an_artifact_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.cached(SPEC, payload)
    other = "f" * 64
    store.path(other).parent.mkdir(parents=True)
    artifact.path.rename(store.path(other))
    with pytest.raises(ArtifactDamaged, match="does not have the key"):
        store.read(other)


def test_the_record_says_what_made_it(tmp_path: Path) -> None:
    record = Store(tmp_path).cached(SPEC, payload).record
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["device"] == "cpu"
    assert record["seconds"] >= 0
    assert json.loads(canonical(record)) == record
