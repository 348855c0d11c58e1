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
from regraft.study.locks import Lock
from regraft.study.provenance import provenance

if TYPE_CHECKING:
    import torch

KEY_VERSION = 1  # raised when the meaning of keys themselves changes
CHECKPOINT_FORMAT = 1  # raised when older checkpoints can no longer be read; those of another format are ignored
FILES = ("spec.json", "values.json", "data.safetensors")


def canonical(spec: object) -> str:
    """JSON with one spelling only: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


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
        """All tensors, on the CPU. Raises ArtifactDamaged if a byte has changed since they were written; `verify` false
        spares reading all of them where that has been seen to before."""
        from safetensors.torch import load_file

        if verify:
            _verify(self.path / "data.safetensors", self.record["sha256"]["data.safetensors"])
        return load_file(self.path / "data.safetensors")

    def size_bytes(self) -> int:
        return sum(f.stat().st_size for f in self.path.iterdir())


class Store:
    """Artifacts under one folder; any number of processes may use it at once."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

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
            scratch = Scratch(self.root / "work" / key)
            start = time.perf_counter()
            payload = compute(scratch)
            seconds = time.perf_counter() - start + scratch.seconds_before
            record = {**provenance(device=device, seconds=seconds), **payload.record}
            artifact = self._write(key, spec, payload, record)
            scratch.clear()
            return artifact

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        lock = Lock(self.root / "locks" / name, wait=wait)
        with _writing(self.root):
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
            self.set_aside(artifact.key, str(error))
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
            self.set_aside(key, str(error))
            return None

    def has(self, key: str) -> bool:
        return self.path(key).is_dir()

    def read(self, key: str) -> Artifact:
        """Raises UnknownName, or ArtifactDamaged with the file that does not have its digest."""
        path = self.path(key)
        if not path.is_dir():
            raise UnknownName(f"the store has no artifact {key!r}; list a study's with: regraft status STUDY")
        record = _read_record(path)
        for name in ("spec.json", "values.json"):
            _verify(path / name, record["sha256"].get(name))
        spec = json.loads((path / "spec.json").read_text())
        if key_of(spec) != key:
            raise ArtifactDamaged(f"{path}: its spec does not have the key {key}")
        if not (path / "data.safetensors").is_file():
            raise ArtifactDamaged(f"{path / 'data.safetensors'} is gone")
        return Artifact(key, path, spec, json.loads((path / "values.json").read_text()), record)

    def keys(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("objects/??/*") if len(path.name) == 64)

    def find(self, prefix: str) -> str:
        """The one key that starts with `prefix`."""
        hits = [key for key in self.keys() if key.startswith(prefix.lower())]
        if len(hits) == 1:
            return hits[0]
        what = "no artifact starts" if not hits else f"{len(hits)} artifacts start"
        raise UnknownName(f"{what} with {prefix!r}; give the key, or more of it")

    def set_aside(self, key: str, why: str) -> None:
        """Move a damaged artifact out of the way, keeping it for inspection."""
        target = self.root / "damaged" / f"{key}.{secrets.token_hex(4)}"
        with _writing(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process was first
                self.path(key).rename(target)
                (target / "why.txt").write_text(why + "\n")

    # A set of artifacts that belong together (the shards of one feature table), found without reading them all.
    def link(self, group: str, key: str) -> None:
        folder = self.root / "groups" / group
        with _writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / key).touch()

    def linked(self, group: str) -> list[str]:
        folder = self.root / "groups" / group
        return sorted(p.name for p in folder.iterdir() if self.has(p.name)) if folder.is_dir() else []

    def path(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def _write(self, key: str, spec: Mapping[str, Any], payload: Payload, record: dict[str, Any]) -> Artifact:
        with _writing(self.root):
            folder = self.root / "tmp" / f"{key}.{os.getpid()}.{secrets.token_hex(4)}"
            folder.mkdir(parents=True)
            try:
                (folder / "spec.json").write_text(canonical(spec))
                (folder / "values.json").write_text(canonical(payload.values))
                _save_tensors(folder / "data.safetensors", payload.tensors)
                record = {**record, "sha256": {name: _sha256(folder / name) for name in FILES}}
                sealed = {"record": record, "sha256": hashlib.sha256(canonical(record).encode()).hexdigest()}
                (folder / "record.json").write_text(canonical(sealed))
                for name in (*FILES, "record.json"):
                    _flush(folder / name)
                _flush(folder)
                self.path(key).parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError, OSError):
                    if not self.has(key):  # whoever came first has stored the same result
                        folder.rename(self.path(key))
                        _flush(self.path(key).parent)
                if not self.has(key):
                    raise StoreError(f"could not move {folder} to {self.path(key)}; is the file system full?")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return self.read(key)


class Scratch:
    """Where a stage under way keeps its checkpoint, so that `kill -9` loses little. Gone once the result is stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "checkpoint.safetensors"
        self.seconds_before = 0.0  # spent by earlier, interrupted attempts
        self._start = time.perf_counter()

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Replace the checkpoint in one step; a crash leaves the old or the new one, never a mixture.

        Raises StoreError if it cannot be written."""
        seconds = self.seconds_before + time.perf_counter() - self._start
        meta = {"state": canonical({**state, "format": CHECKPOINT_FORMAT, "_seconds": seconds})}
        fresh = self.folder / f"{os.getpid()}.{secrets.token_hex(4)}.tmp"
        with _writing(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _save_tensors(fresh, tensors, meta)
                # The digest travels in the name: state and tensors are verified together before they are trusted.
                final = self.folder / f"checkpoint-{_sha256(fresh)}.safetensors"
                _flush(fresh)
                fresh.rename(final)
                _flush(self.folder)
            finally:
                with contextlib.suppress(OSError):  # gone, if all went well
                    fresh.unlink()
            for old in self.folder.glob("checkpoint-*.safetensors"):
                if old != final:
                    old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The newest intact checkpoint of this format, or None."""
        from safetensors import safe_open

        files = sorted(self.folder.glob("checkpoint-*.safetensors"), key=lambda f: f.stat().st_mtime_ns)
        for file in reversed(files):
            if _sha256(file) != file.stem.removeprefix("checkpoint-"):
                file.unlink(missing_ok=True)  # torn or damaged: as if it had never been written
                continue
            with safe_open(file, framework="pt") as f:
                state = json.loads((f.metadata() or {}).get("state", "{}"))
                if state.pop("format", None) != CHECKPOINT_FORMAT:
                    continue  # of another release
                tensors = {name: f.get_tensor(name) for name in f.keys()}
            self.seconds_before = state.pop("_seconds")
            return state, tensors
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def default_store() -> Store:
    """The store under REGRAFT_HOME (default: the user's cache folder)."""
    return Store(home() / "store")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        sealed = json.loads((path / "record.json").read_text())
        record, digest = sealed["record"], sealed["sha256"]
        intact = hashlib.sha256(canonical(record).encode()).hexdigest() == digest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactDamaged(f"{path / 'record.json'} is not readable: {error}") from None
    if not intact or not isinstance(record, dict):
        raise ArtifactDamaged(f"{path / 'record.json'} does not have the digest it was written with")
    return record


def _verify(file: Path, digest: str | None) -> None:
    if not file.is_file() or _sha256(file) != digest:
        raise ArtifactDamaged(f"{file} does not have the digest it was written with")


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _save_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Raises OSError if the file cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    file.touch()
    mode = file.stat().st_mode  # as the umask has it; safetensors replaces the file by one that only its owner reads
    try:
        save_file(plain, file, metadata=metadata)
    except SafetensorError as error:  # how it reports a full disk, among others
        raise OSError(str(error)) from error
    file.chmod(mode)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to the store {place}: {error.strerror or error}. Free some space or check the "
            "permissions, or name another folder with --store; what is finished is kept."
        ) from error


def _flush(path: Path) -> None:
    """Make the content (or, for a folder, the names in it) survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no fsync for folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
