"""What a disk, a share or another process does to the store is said in words, and never taken for a result."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from regraft.cli_store import add_to
from regraft.data.home import TEMPORARY_PREFIX, write_file
from regraft.errors import StoreError
from regraft.spec import Study
from regraft.study import locks
from regraft.study.files import write_text
from regraft.study.locks import Lock, held
from regraft.study.store import Artifact, Payload, Scratch, Store
from regraft.study.verify import verify_store
from tests.study.conftest import small_study

SPEC: dict[str, Any] = {"stage": "test", "version": 1, "x": 1}
LONG_AGO = time.time() - 2 * 24 * 3600


def payload(_: Scratch) -> Payload:
    return Payload({"accuracy": 0.5}, {"w": torch.arange(6.0)})


def stored(store: Store, x: int = 1) -> Artifact:
    return store.cached({**SPEC, "x": x}, payload)


def damage(artifact: Artifact) -> None:
    file = artifact.path / "data.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


def refusing(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, refuse)


def test_what_the_disk_does_not_give_is_neither_damaged_nor_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a share that fails for a while every artifact would else be set aside, and computed again."""
    store = Store(tmp_path)
    artifact = stored(store)
    with monkeypatch.context() as failing:
        refusing(failing, Path, "open", errno.EIO)
        for read in (lambda: store.get(artifact.key), artifact.tensors, lambda: store.cached(SPEC, payload)):
            with pytest.raises(StoreError, match=r"cannot read the store .*Input/output error.*run again"):
                read()
    assert not (tmp_path / "damaged").exists()
    assert store.get(artifact.key) is not None


def test_a_store_that_has_gone_is_not_begun_anew_in_its_place(tmp_path: Path) -> None:
    """Where a share was mounted there is then an empty folder of the local disk."""
    store = Store(tmp_path / "share" / "store")
    stored(store)
    (tmp_path / "share").rename(tmp_path / "unmounted")
    (tmp_path / "share").mkdir()
    with pytest.raises(StoreError, match="has gone since this began"):
        stored(store, 2)
    with pytest.raises(StoreError, match="cannot write to the store"):
        Scratch(store.root / "work" / "k", store=store.root).save({}, {"w": torch.ones(1)})
    assert not list((tmp_path / "share").iterdir())


def test_an_artifact_that_was_computed_anew_meanwhile_is_not_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = stored(store)
    store.set_damaged_aside(artifact.key, "found damaged, a while ago")
    assert store.has(artifact.key)
    damage(artifact)
    store.set_damaged_aside(artifact.key, "damaged")
    assert not store.has(artifact.key)


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "work" / "k", store=tmp_path)
    scratch.save({"epoch": 1}, {"w": torch.ones(3)})
    (file,) = scratch.folder.glob("checkpoint-*")
    file.write_bytes(file.read_bytes()[:-1])
    assert scratch.load() is None
    assert (next((tmp_path / "damaged").glob("k.*")) / file.name).is_file()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_checkpoint_is_no_error_where_another_process_has_just_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without locks two processes train the same; the first one clears the checkpoints of both."""
    scratch = Scratch(tmp_path / "work" / "k", store=tmp_path)
    rename = Path.rename

    def cleared(self: Path, target: Path) -> Path:
        Scratch(scratch.folder, store=tmp_path).clear()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cleared)
    scratch.save({"epoch": 1}, {"w": torch.ones(3)})
    assert scratch.load() is None
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.skipif(locks.fcntl is None, reason="no flock here")
def test_a_lock_is_given_back_even_if_its_file_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(tmp_path / "l", wait=False)
    lock.acquire()
    refusing(monkeypatch, Path, "unlink", errno.EROFS)
    lock.release()
    assert not held(tmp_path / "l")


def test_what_killed_processes_left_beside_a_file_goes_after_a_day(tmp_path: Path) -> None:
    left = [tmp_path / f".a[1].csv.{'0' * 8}", tmp_path / f"{TEMPORARY_PREFIX}b-x", tmp_path / "c.csv"]
    young = [tmp_path / f".a[1].csv.{'1' * 8}", tmp_path / f"{TEMPORARY_PREFIX}b-y"]
    for file in (*left, *young):
        file.write_text("half")
    for file in left:
        os.utime(file, (LONG_AGO, LONG_AGO))
    write_text(tmp_path / "a[1].csv", "whole")
    write_file(tmp_path / "b", b"whole")
    assert [file.exists() for file in (*left, *young)] == [False, False, True, True, True]


def test_a_file_that_could_not_be_written_is_not_left_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, os, "fsync", errno.ENOSPC)
    with pytest.raises(StoreError, match="No space left on device; choose another place"):
        write_text(tmp_path / "a.csv", "whole")
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "b", b"whole")
    assert not list(tmp_path.iterdir())


# --- regraft check ----------------------------------------------------------------------------------------------


def checked(store: Path, *options: str) -> tuple[int, str]:
    app = Typer()
    add_to(app)
    app.command("other")(lambda: None)  # of one command alone typer makes no subcommand
    done = CliRunner().invoke(app, ["check", "--store", str(store), *options])
    return done.exit_code, done.output


def test_check_finds_all_that_is_damaged_and_repair_sets_it_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    artifacts = [stored(store, x) for x in range(4)]
    assert checked(store.root)[0] == 0
    damage(artifacts[0])
    (artifacts[1].path / "values.json").unlink()
    assert store.has(artifacts[0].key)  # reading nothing but names, it seems to be there
    code, said = checked(store.root)
    assert code == 1
    assert "4 artifacts" in said
    assert "2 damaged" in said
    code, said = checked(store.root, "--repair", "--json")
    assert code == 0
    assert [finding["kind"] for finding in json.loads(said)["findings"]] == ["damaged", "damaged"]
    code, said = checked(store.root)
    assert code == 0
    assert said.count("set aside") == 2
    assert [store.has(artifact.key) for artifact in artifacts] == [False, False, True, True]


def test_check_tells_what_belongs_to_nothing_and_harms_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = stored(store).key
    store.link("g", key)
    store.link("g", "f" * 64)
    Scratch(tmp_path / "work" / "k", store=tmp_path).save({}, {"w": torch.ones(1)})
    (tmp_path / "tmp" / "half").mkdir(parents=True)
    (tmp_path / "objects" / "aa").mkdir()
    (tmp_path / "objects" / "aa" / "notes").write_text("")
    found = verify_store(store)
    assert sorted(finding.kind for finding in found.findings) == ["checkpoint", "dangling", "foreign", "unfinished"]
    assert not found.sound
    verify_store(store, repair=True)
    assert [path.name for path in (tmp_path / "groups" / "g").iterdir()] == [key]
    assert (tmp_path / "objects" / "aa" / "notes").exists()


def test_check_of_some_keys_reads_those_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sound, broken = stored(store, 1), stored(store, 2)
    damage(broken)
    assert verify_store(store, {sound.key}).sound
    assert not verify_store(store, {broken.key}).sound


def test_check_of_a_study_reads_what_that_needs_and_repair_says_what_comes_next(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "study.yaml"
    file.write_text(Study.from_dict(small_study()).to_yaml())
    damage(stored(store))  # of no study
    code, said = checked(store.root, "--study", str(file))
    assert code == 0
    assert "0 artifacts" in said
    assert checked(store.root)[0] == 1
    code, said = checked(store.root, "--repair")
    assert code == 0
    assert "1 found damaged and set aside; the next run of a study" in " ".join(said.split())


def test_check_of_what_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        verify_store(Store(tmp_path / "nothing"))


def test_check_says_what_the_disk_does_not_give_and_goes_on(tmp_path: Path) -> None:
    """A store copied without its links' ends: one artifact of three can be read."""
    store = Store(tmp_path)
    sound, unread, dangling = (stored(store, x) for x in range(3))
    for file, end in ((unread.path / "record.json", "record.json"), (dangling.path / "data.safetensors", "nowhere")):
        file.unlink()
        file.symlink_to(end)
    found = verify_store(store, repair=True)
    assert [(finding.kind, finding.path.split("/")[-1]) for finding in found.findings] == [
        ("damaged", dangling.key), ("unreadable", unread.key)
    ]  # fmt: skip
    assert "cannot read the store" in found.findings[1].why
    assert found.artifacts == 3
    assert store.keys() == sorted([sound.key, unread.key])  # what may be whole is not set aside


def test_a_file_in_an_artifact_s_place_is_foreign(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored(store)
    stray = store.path("ab" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.touch()
    found = verify_store(store)
    assert [(finding.kind, finding.path) for finding in found.findings] == [("foreign", f"objects/ab/{'ab' * 32}")]
    assert found.artifacts == 1


def test_check_leaves_a_training_that_is_under_way_and_removes_a_broken_checkpoint(tmp_path: Path) -> None:
    for name in ("training", "broken"):
        Scratch(tmp_path / "work" / name, store=tmp_path).save({"epoch": 1}, {"w": torch.ones(3)})
    (file,) = (tmp_path / "work" / "broken").glob("checkpoint-*")
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "objects").mkdir(exist_ok=True)
    lock = Lock(tmp_path / "locks" / "training", wait=False)
    lock.acquire()
    try:
        (finding,) = verify_store(Store(tmp_path), repair=True).findings
    finally:
        lock.release()
    assert (finding.kind, finding.path) == ("damaged", f"work/broken/{file.name}")
    assert not file.exists()
    assert [left.kind for left in verify_store(Store(tmp_path)).findings] == ["checkpoint"]  # nobody is at it now


# --- locks ------------------------------------------------------------------------------------------------------


def test_nobody_holds_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not any(map(held, (tmp_path, tmp_path / "absent", tmp_path / "file" / "l", tmp_path / "file")))


FORBIDDEN = """
import os
from pathlib import Path
from regraft.study.locks import held
root = os.geteuid() == 0
if root:
    os.seteuid(65534)
found = held(Path("l"))
if root:
    os.seteuid(0)
print(found)
"""


@pytest.mark.skipif(locks.fcntl is None, reason="no flock here")
def test_a_lock_that_is_another_user_s_counts_as_held(tmp_path: Path) -> None:
    """Nobody may be at it; but to take a training for abandoned that is not would be worse."""
    (tmp_path / "l").touch(mode=0o000)
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", FORBIDDEN], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.skipif(locks.fcntl is None, reason="no flock here")
def test_whether_a_lock_is_held_is_told_without_permission_to_write(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "l", wait=False)
    lock.acquire()
    (tmp_path / "l").chmod(0o444)
    tmp_path.chmod(0o755)
    for expected in ("True", "False"):
        done = subprocess.run(
            [sys.executable, "-c", FORBIDDEN], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
        lock.release()
        (tmp_path / "l").touch(mode=0o444)
