"""The file of a predictor, NAME.regraft: a zip of `manifest.json` and `weights.safetensors`, and nothing else.

What is in it is described by `Manifest`; `write_bundle` writes both, `read_bundle` reads them again. A file comes from
anywhere, so nothing in it is believed before it was checked: members and their sizes before anything is unpacked, the
manifest field by field, names and shapes of tensors before their numbers are read (`regraft.predictor.network`), the
digests last. No pickle, and no code, is ever read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from regraft.data.home import write_file
from regraft.errors import PredictorDamaged, PredictorError, PredictorMismatch
from regraft.predictor.manifest import Manifest, canonical, read_manifest

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".regraft"
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
# No honest manifest or header of tensors is larger: 100,000 class names fit. In bytes.
MOST_MANIFEST = MOST_HEADER = 16 * 2**20
# Trained weights hardly shrink when they are packed; what unpacks to more than this many times its size is a bomb.
MOST_RATIO = 50
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1  # flag of a zip's member
# The same content gives the same bytes: every member has the earliest time that a zip can state.
TIME = (1980, 1, 1, 0, 0, 0)
UNIX, REGULAR_FILE = 3, (stat.S_IFREG | 0o644) << 16
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)


BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}  # of a number


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor."""

    dtype: str  # as safetensors spells it, one of BYTES
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Bundle:
    """An opened file: what it says, and which tensors it has. Their numbers are read by `state`."""

    path: Path
    manifest: Manifest
    tensors: Mapping[str, TensorInfo]

    def state(self) -> dict[str, Tensor]:
        """All tensors, on the CPU. Raises PredictorDamaged if they do not have the manifest's digest, or hold NaN or
        infinity."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        with _opened(self.path) as archive:
            content = _read(archive, _members(self.path, archive)[WEIGHTS])
        if hashlib.sha256(content).hexdigest() != self.manifest.members[WEIGHTS].sha256:
            raise PredictorDamaged(f"{self.path}: {WEIGHTS} does not have the digest that it was written with")
        try:
            tensors: dict[str, Tensor] = load(content)
        except SafetensorError as error:
            raise PredictorDamaged(f"{self.path}: {WEIGHTS} is not readable: {error}") from None
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise PredictorDamaged(f"{self.path}: {name!r} holds NaN or infinity; no training leaves that")
        return tensors


# --- writing ------------------------------------------------------------------------------------------------------


def write_bundle(path: str | Path, manifest: Manifest, state: Mapping[str, Tensor]) -> Path:
    """Write a predictor whole or not at all; returns the path. The same content gives the same bytes.

    state: names -> tensors, on any device. Raises PredictorError if nothing can be written there."""
    from safetensors.torch import save

    file = Path(path)
    weights = save({name: state[name].detach().cpu().contiguous() for name in sorted(state)})
    sealed = manifest.sealed({WEIGHTS: weights})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((MANIFEST, canonical(sealed).encode()), (WEIGHTS, weights)):
            member = zipfile.ZipInfo(name, TIME)
            member.create_system, member.external_attr = UNIX, REGULAR_FILE
            archive.writestr(member, content)
    try:
        write_file(file, packed.getvalue())
    except OSError as error:
        raise PredictorError(f"cannot write {file}: {error.strerror or error}; name another file") from error
    return file


# --- reading ------------------------------------------------------------------------------------------------------


def read_bundle(path: str | Path) -> Bundle:
    """Open a predictor; of its weights only the header is read.

    Raises PredictorError if there is no such file, PredictorDamaged if it is not whole or not a predictor,
    PredictorMismatch if a newer regraft wrote it."""
    file = Path(path)
    with _opened(file) as archive:
        found = _members(file, archive)
        manifest = read_manifest(_read(archive, found[MANIFEST]), str(file))
        stated = manifest.members
        if stated.keys() != {WEIGHTS}:
            raise PredictorDamaged(f"{file}: its manifest lists {_listed(stated)}, a predictor has {WEIGHTS!r}")
        if stated[WEIGHTS].bytes != found[WEIGHTS].file_size:
            raise PredictorDamaged(
                f"{file}: {WEIGHTS} has {found[WEIGHTS].file_size:,} bytes, its manifest says "
                f"{stated[WEIGHTS].bytes:,}; the file is cut off or was changed"
            )
        with archive.open(WEIGHTS) as opened:
            tensors = _header(opened, stated[WEIGHTS].bytes, str(file))
    return Bundle(file, manifest, tensors)


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """The file as a zip; whatever its readers raise is a PredictorDamaged."""
    try:
        with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            yield archive
    except FileNotFoundError:
        raise PredictorError(f"there is no predictor {str(file)!r}; make one with: regraft bundle STUDY") from None
    except DAMAGE as error:
        raise PredictorDamaged(
            f"{file} is not a whole predictor ({error or type(error).__name__}); get it again, or make it anew with: "
            "regraft bundle STUDY"
        ) from None
    except OSError as error:
        raise PredictorError(f"cannot read {file}: {error.strerror or error}") from None


def _members(file: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name, once it is certain that they can be read without harm."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if sorted(names) != [MANIFEST, WEIGHTS]:
        raise PredictorDamaged(f"{file}: a predictor holds {MANIFEST!r} and {WEIGHTS!r}, this holds {_listed(names)}")
    for member in members:
        mode = member.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise PredictorDamaged(f"{file}: {member.filename!r} is a link or a folder, not a file")
        if member.flag_bits & ENCRYPTED or member.compress_type not in METHODS:
            raise PredictorDamaged(f"{file}: {member.filename!r} is encrypted, or packed in another way than deflated")
        if member.file_size > MOST_RATIO * max(member.compress_size, 1) + MOST_RATIO:
            raise PredictorDamaged(
                f"{file}: {member.filename!r} would unpack from {member.compress_size:,} to {member.file_size:,} "
                "bytes; trained weights do not shrink like that"
            )
    found = {member.filename: member for member in members}
    if found[MANIFEST].file_size > MOST_MANIFEST:
        raise PredictorDamaged(f"{file}: {MANIFEST} has {found[MANIFEST].file_size:,} bytes, at most {MOST_MANIFEST:,}")
    return found


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member whole. Of what is packed behind a size that lies, no more than that size is unpacked."""
    with archive.open(member) as opened:
        return opened.read(member.file_size)


def _header(opened: IO[bytes], size: int, origin: str) -> dict[str, TensorInfo]:
    """What a safetensors file of `size` bytes says that it holds: 8 bytes of length, then that much JSON."""
    length = int.from_bytes(opened.read(8), "little")
    if not 2 <= length <= min(MOST_HEADER, size - 8):
        raise PredictorDamaged(f"{origin}: {WEIGHTS} has no header of tensors")
    try:
        header = json.loads(opened.read(length))
        found = {
            str(name): TensorInfo(str(one["dtype"]), tuple(_whole(side) for side in one["shape"]))
            for name, one in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PredictorDamaged(f"{origin}: {WEIGHTS} has a header that cannot be read: {error}") from None
    if any(info.dtype not in BYTES for info in found.values()):
        raise PredictorDamaged(f"{origin}: {WEIGHTS} holds numbers in a format that no network here has")
    stated = sum(BYTES[info.dtype] * math.prod(info.shape) for info in found.values())
    if not found or stated != size - 8 - length:
        raise PredictorDamaged(f"{origin}: {WEIGHTS} lists tensors of {stated:,} bytes and holds {size - 8 - length:,}")
    return found


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no side of a tensor")
    return value


def _listed(names: Any) -> str:
    some = [repr(name) for name in list(names)[:5]]
    return (", ".join(some) or "nothing") + (", ..." if len(names) > 5 else "")


def mismatch(origin: str, what: str) -> PredictorMismatch:
    """The weights are not those of the network that the manifest names."""
    return PredictorMismatch(f"{origin}: {what}. The file was changed after it was written; get it again.")
