"""How the store puts things on a disk: JSON of one spelling, tensors, flushed files, errors of one form."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.data.home import flush as flush
from regraft.errors import ArtifactDamaged, StoreError

if TYPE_CHECKING:
    import torch


def canonical(spec: object) -> str:
    """JSON with one spelling only: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


_ITS_DIGEST = "the digest it was written with"
# Files of tensors up to this size whose digest is asked for are read at once, in one pass with it; others are mapped.
READ_AT_ONCE = 2**26


def verify(file: Path, digest: str | None) -> None:
    """Raises ArtifactDamaged unless the file has this sha256; OSError."""
    if not file.is_file():
        raise ArtifactDamaged(f"{file} is gone")
    if sha256_of(file) != digest:
        raise ArtifactDamaged(f"{file} does not have {_ITS_DIGEST}")


def verified(file: Path, digest: str | None) -> bytes:
    """The content of a file, which has this sha256. Raises ArtifactDamaged, OSError."""
    try:
        content = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise ArtifactDamaged(f"{file} is gone") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArtifactDamaged(f"{file} does not have {_ITS_DIGEST}")
    return content


def load_tensors(file: Path, digest: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU. digest: its sha256; None: not looked at, and only those parts of
    the file are read that are used.

    Reading at once is also what does not leak: safetensors 0.8 keeps some 64 bytes for each tensor of each file that it
    has opened by name, which adds up to gigabytes over days of small runs.
    Raises ArtifactDamaged, OSError, SafetensorError."""
    from safetensors.torch import load, load_file

    if digest is not None and (not file.is_file() or file.stat().st_size <= READ_AT_ONCE):
        return dict(load(verified(file, digest)))
    if digest is not None:
        verify(file, digest)
    return dict(load_file(file))


def save_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
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
def reading(place: Path) -> Iterator[None]:
    """What the disk or the share refuses to give is not taken for damaged, let alone for absent."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot read the store {place}: {error.strerror or error}. Check the permissions, and that its disk or "
            "share is there; then run again, what is finished is kept."
        ) from error


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to the store {place}: {error.strerror or error}. Free some space or check the "
            "permissions, or name another folder with --store; what is finished is kept."
        ) from error
