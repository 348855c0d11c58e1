"""The store: a result is named by the hash of what determines it, written once, and never changed.

    objects/ab/abcd.../{spec.json, values.json, data.safetensors, record.json}

A directory is written under a temporary name, flushed and renamed, so that its existence means it is complete.
`record.json` holds the digests of the other files and what did not determine the result (versions, device,
seconds). What is damaged is noticed on read, moved to `damaged/` and computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.data.home import home
from regraft.errors import ArtifactDamaged, StoreError, UnknownName
from regraft.study.disk import canonical as canonical
from regraft.study.disk import flush, load_tensors, reading, save_tensors, sha256_of, verified, verify, writing
from regraft.study.locks import Busy, Lock, held
from regraft.study.provenance import provenance
from regraft.study.scratch import Scratch as Scratch

if TYPE_CHECKING:
    import torch

KEY_VERSION = 1  # raised when the meaning of keys themselves changes
FILES = ("spec.json", "values.json", "data.safetensors")


def key_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of what determines a result; `spec` names its stage and the stage's version."""
    assert "stage" in spec and "version" in spec
    return hashlib.sha256(canonical({"key_version": KEY_VERSION, **spec}).encode()).hexdigest()


@dataclass(frozen=True)
class Payload:
    """What a stage computed: small values (JSON) and tensors; `record` is what did not determine them (JSON)."""

    values: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)  # `seconds` in it stands for the time measured here


@dataclass(frozen=True)
class Artifact:
    """A stored result. Values are checked when the artifact is read, tensors when they are first opened."""

    key: str
    path: Path
    spec: dict[str, Any]
    values: dict[str, Any]
    record: dict[str, Any]

    def tensors(self, *, verify: bool = True) -> dict[str, torch.Tensor]:
        """All tensors, on the CPU. Raises ArtifactDamaged if a byte has changed since they were written, StoreError if
        they cannot be read; `verify` false spares reading all of them where that has been seen to before."""
        with reading(self.path):
            digest = self.record["sha256"]["data.safetensors"] if verify else None
            return load_tensors(self.path / "data.safetensors", digest)

    def size_bytes(self) -> int:
        return sum(f.stat().st_size for f in self.path.iterdir())


class Store:
    """Artifacts under one folder; any number of processes may use it at once."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self._seen = False  # whether this process has had its folders in hand

    @property
    def location(self) -> str:
        """What `store_at` opens it by again, in another process."""
        return str(self.root)

    def in_a_folder(self) -> Path:
        """Its folder, for what looks at every file. Raises StoreError for one behind a URL."""
        if self.location != str(self.root):
            raise StoreError(
                f"{self.location}: only a store in a folder can be tidied or read through; of this one {self.root} is "
                "the local copy, which --store can name and which may be removed at any time"
            )
        return self.root

    def cached(
        self,
        spec: Mapping[str, Any],
        compute: Callable[[Scratch], Payload],
        *,
        device: str = "cpu",
        wait: bool = True,
    ) -> Artifact:
        """The artifact of `spec`, computed now unless it is there. Raises Busy if another process is at it and
        `wait` is false."""
        key = key_of(spec)
        if (artifact := self.get(key)) is not None:
            return artifact
        with self.locked(key, wait=wait):
            if (artifact := self.get(key)) is not None:
                return artifact
            scratch = Scratch(self.root / "work" / key, store=self.root)
            start = time.perf_counter()
            payload = compute(scratch)
            seconds = time.perf_counter() - start + scratch.seconds_before
            record = {**provenance(device=device, seconds=seconds), **payload.record}
            artifact = self._write(key, spec, payload, record)
            scratch.clear()
            return artifact

    def clear_finished(self) -> None:
        """Remove the checkpoints of what is finished: a process may be killed after the one and before the other."""
        with contextlib.suppress(StoreError, OSError):  # a store that can only be read keeps them
            for left in (self.root / "work").glob("*"):
                if self.path(left.name).is_dir() and not held(self.root / "locks" / left.name):
                    with contextlib.suppress(Busy), self.locked(left.name, wait=False):
                        shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        lock = Lock(self.root / "locks" / name, wait=wait)
        with self.writing():
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def tensors(self, artifact: Artifact) -> dict[str, torch.Tensor]:
        """The artifact's tensors, on the CPU. Raises ArtifactDamaged after it has set the artifact aside."""
        try:
            return artifact.tensors()
        except ArtifactDamaged as error:
            self.set_damaged_aside(artifact.key, str(error))
            raise ArtifactDamaged(
                f"{error}. The artifact has been set aside in {self.root / 'damaged'}; run again to compute it anew."
            ) from None

    def get(self, key: str) -> Artifact | None:
        """The artifact, or None if it is absent or was damaged (then it has been set aside)."""
        try:
            return self.read(key)
        except UnknownName:
            return None
        except ArtifactDamaged as error:
            self.set_damaged_aside(key, str(error))
            return None

    def has(self, key: str) -> bool:
        with reading(self.root):
            return self.path(key).is_dir()

    def read(self, key: str) -> Artifact:
        """Raises UnknownName, ArtifactDamaged with the file that does not have its digest, or StoreError if the
        disk or the share does not give it."""
        path = self.path(key)
        if not self.has(key):
            raise UnknownName(f"the store has no artifact {key!r}; list a study's with: regraft status STUDY")
        with reading(path):
            record = _read_record(path)
            spec, values = (
                json.loads(verified(path / name, record["sha256"].get(name))) for name in ("spec.json", "values.json")
            )
            if key_of(spec) != key:
                raise ArtifactDamaged(f"{path}: its spec does not have the key {key}")
            if not (path / "data.safetensors").is_file():
                raise ArtifactDamaged(f"{path / 'data.safetensors'} is gone")
        return Artifact(key, path, spec, values, record)

    def verify(self, key: str) -> Artifact:
        """As `read`, and every byte of the tensors is compared with its digest as well."""
        artifact = self.read(key)
        with reading(artifact.path):
            verify(artifact.path / "data.safetensors", artifact.record["sha256"].get("data.safetensors"))
        return artifact

    def keys(self) -> list[str]:
        with reading(self.root):
            return sorted(path.name for path in self.root.glob("objects/??/*") if len(path.name) == 64)

    def find(self, prefix: str) -> str:
        """The one key that starts with `prefix`."""
        hits = [key for key in self.keys() if key.startswith(prefix.lower())]
        if len(hits) == 1:
            return hits[0]
        what = "no artifact starts" if not hits else f"{len(hits)} artifacts start"
        raise UnknownName(f"{what} with {prefix!r}; give the key, or more of it")

    def set_aside(self, key: str, why: str) -> None:
        """Move an artifact out of the way, keeping it for inspection."""
        target = self.root / "damaged" / f"{key}.{secrets.token_hex(4)}"
        with self.writing():
            target.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                self.path(key).rename(target)
                (target / "why.txt").write_text(why + "\n", "utf-8")

    def set_damaged_aside(self, key: str, why: str) -> None:
        """The same, unless another process was first and has computed it anew."""
        with self.locked(f"aside-{key}"):
            try:
                self.verify(key)
            except (UnknownName, ArtifactDamaged):
                self.set_aside(key, why)

    # A set of artifacts that belong together (the shards of one feature table), found without reading them all.
    def link(self, group: str, key: str) -> None:
        folder = self.root / "groups" / group
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / key).touch()

    def linked(self, group: str) -> list[str]:
        folder = self.root / "groups" / group
        with reading(self.root):
            return sorted(p.name for p in folder.iterdir() if self.has(p.name)) if folder.is_dir() else []

    def path(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def _write(self, key: str, spec: Mapping[str, Any], payload: Payload, record: dict[str, Any]) -> Artifact:
        with self.writing():
            folder = self.root / "tmp" / f"{key}.{os.getpid()}.{secrets.token_hex(4)}"
            folder.mkdir(parents=True)
            try:
                (folder / "spec.json").write_text(canonical(spec), "utf-8")
                (folder / "values.json").write_text(canonical(payload.values), "utf-8")
                save_tensors(folder / "data.safetensors", payload.tensors)
                record = {**record, "sha256": {name: sha256_of(folder / name) for name in FILES}}
                sealed = {"record": record, "sha256": hashlib.sha256(canonical(record).encode()).hexdigest()}
                (folder / "record.json").write_text(canonical(sealed), "utf-8")
                for name in (*FILES, "record.json"):
                    flush(folder / name)
                flush(folder)
                self._publish(folder, self.path(key))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return self.read(key)

    def _publish(self, folder: Path, final: Path) -> None:
        """Give a finished folder its name, in one step; whoever came first has stored the same result."""
        final.parent.mkdir(exist_ok=True)
        try:
            folder.rename(final)
        except OSError:
            if not final.is_dir():
                raise
        flush(final.parent)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Errors of the disk as StoreError. A store that has gone is not begun anew in its place: where a share was
        mounted there is then an empty folder of the local disk."""
        with writing(self.root):
            if not self._seen:
                (self.root / "objects").mkdir(parents=True, exist_ok=True)
                self._seen = True
            elif not (self.root / "objects").is_dir():
                raise StoreError(
                    f"the store {self.root} has gone since this began: was it moved, or its share unmounted? Bring it "
                    "back and run again; what was finished there is kept."
                )
            yield


def store_at(location: str | Path) -> Store:
    """The store in a folder, or behind a URL (`regraft.study.remote`).

    Raises StoreError for a URL of no known kind."""
    if "://" not in str(location):
        return Store(location)
    from regraft.study.remote import RemoteStore

    return RemoteStore(str(location))


def default_store() -> Store:
    """The store under REGRAFT_HOME (default: the user's cache folder)."""
    return Store(home() / "store")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        sealed = json.loads((path / "record.json").read_text("utf-8"))
        record, digest = sealed["record"], sealed["sha256"]
        intact = hashlib.sha256(canonical(record).encode()).hexdigest() == digest
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError) as error:
        raise ArtifactDamaged(f"{path / 'record.json'} is not readable: {error}") from None
    if not intact or not isinstance(record, dict):
        raise ArtifactDamaged(f"{path / 'record.json'} does not have the digest it was written with")
    return record
