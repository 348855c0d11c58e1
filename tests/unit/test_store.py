"""Laws of the store."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.errors import ArtifactDamaged, StoreError, UnknownName
from regraft.study import scratch as scratch_module
from regraft.study.locks import Busy, Lock, held
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


def test_damaged_tensors_are_set_aside_and_computed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.cached(SPEC, payload)
    assert torch.equal(store.tensors(artifact)["w"], torch.arange(6.0).view(2, 3))
    data = artifact.path / "data.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactDamaged, match=r"set aside in .*damaged; run again"):
        store.tensors(artifact)
    assert store.get(artifact.key) is None
    assert "data.safetensors" in next((tmp_path / "damaged").glob("*/why.txt")).read_text()
    assert torch.equal(store.tensors(store.cached(SPEC, payload))["w"], torch.arange(6.0).view(2, 3))


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
    assert held(tmp_path / "l")
    with pytest.raises(Busy):
        second.acquire()
    first.release()
    assert not held(tmp_path / "l")
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


def test_a_checkpoint_of_another_format_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later release may keep something else under the same key."""
    with monkeypatch.context() as later:
        later.setattr(scratch_module, "CHECKPOINT_FORMAT", 2)
        Scratch(tmp_path / "w").save({"epochs": [1]}, {"w": torch.ones(3)})
    assert Scratch(tmp_path / "w").load() is None
    Scratch(tmp_path / "w").save({"epoch": 1}, {"w": torch.ones(3)})
    loaded = Scratch(tmp_path / "w").load()
    assert loaded is not None
    assert loaded[0] == {"epoch": 1}


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


@pytest.mark.skipif(os.name == "nt", reason="no permission bits")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_files_of_an_artifact_have_the_permissions_of_new_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        artifact = Store(tmp_path).cached(SPEC, payload)
        Scratch(tmp_path / "w").save({}, {"w": torch.ones(1)})
    finally:
        os.umask(before)
    files = [*artifact.path.iterdir(), *(tmp_path / "w").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~umask}
    assert len(files) == 5


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with one megabyte of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_unfinished(full_disk: Path) -> None:
    store = Store(full_disk)
    kept = store.cached(SPEC, payload)
    large = {"w": torch.ones(1_000_000)}
    with pytest.raises(StoreError, match=r"cannot write to the store .*No space left.*what is finished is kept"):
        store.cached({**SPEC, "x": 2}, lambda _: Payload({}, large))
    scratch = Scratch(full_disk / "work" / "k")
    scratch.save({"epoch": 1}, {"w": torch.ones(3)})
    with pytest.raises(StoreError, match=r"cannot write to the store .*No space left"):
        scratch.save({"epoch": 2}, large)
    loaded = scratch.load()
    assert loaded is not None
    assert loaded[0] == {"epoch": 1}
    assert len(list((full_disk / "work" / "k").iterdir())) == 1
    assert not list((full_disk / "tmp").iterdir())
    assert store.keys() == [kept.key]
    assert store.read(kept.key).values == {"accuracy": 0.5}


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from regraft.errors import StoreError
from regraft.study.store import Payload, Scratch, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
root, large = Path(sys.argv[1]), {"w": torch.ones(1_000_000)}
for write in (
    lambda: Store(root).cached({"stage": "test", "version": 1}, lambda _: Payload({}, large)),
    lambda: Scratch(root / "work" / "k").save({}, large),
):
    try:
        write()
    except StoreError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_file_that_cannot_grow_is_said_and_not_left_behind(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.startswith("cannot write to the store") for line in done.stdout.splitlines()] == [True, True]
    assert "too large" in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_checkpoints_of_what_is_finished_are_cleared_and_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done, taken = store.cached(SPEC, payload).key, store.cached({**SPEC, "x": 2}, payload).key
    missing = key_of({**SPEC, "x": 3})
    for key in (done, taken, missing):
        Scratch(tmp_path / "work" / key).save({"epoch": 1}, {})
    lock = Lock(tmp_path / "locks" / taken, wait=False)
    lock.acquire()
    store.clear_finished()
    assert {path.name for path in (tmp_path / "work").iterdir()} == {taken, missing}
    lock.release()
    store.clear_finished()
    assert {path.name for path in (tmp_path / "work").iterdir()} == {missing}


def test_a_study_clears_the_checkpoints_that_a_kill_left(tmp_path: Path) -> None:
    from regraft.spec import Study
    from regraft.study.run import run_study
    from tests.study.conftest import small_study

    study, store = Study.from_dict({**small_study(), "seeds": [0]}), Store(tmp_path)
    key = run_study(study, store, threads=1).cells[0].key
    Scratch(tmp_path / "work" / key).save({"epoch": 1}, {})
    run_study(study, store, threads=1)
    assert list((tmp_path / "work").iterdir()) == []
