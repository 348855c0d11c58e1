"""Reading archives and files of the published data sets without trusting them.

Nothing here writes outside the folder it is given, follows a link, or runs what a file says.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import pickle
import pickletools
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from regraft.errors import DataDamaged

MAX_BYTES = 64 * 2**30
MAX_MEMBERS = 1_000_000
LONGEST_PATH, LONGEST_PART = 1024, 255  # of a member's name, in bytes
MAX_TRAILING_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**20  # of a tar's long names and extended headers, which its reader takes into memory whole
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# OSError: damaged bz2, a file that may not be read. RuntimeError: zip of a newer kind, encrypted. ValueError: names
# that are no text, places outside of the file.
READ_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, struct.error, OSError,
    RuntimeError, ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A plain file in an archive, its name checked."""

    name: str  # relative, with forward slashes
    size: int  # bytes
    open: Callable[[], IO[bytes]]


def members(path: Path, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS) -> Iterator[Member]:
    """The files of a tar (plain, gz, bz2, xz) or zip archive, in order; folders are left out.

    Raises DataDamaged for a name that leads outside, a link or device, encryption, a name given twice, more
    than `max_members` entries or `max_bytes` unpacked bytes, and for an archive that cannot be read.
    """
    with _damage_told(path):
        entries = _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path)
        names: set[str] = set()
        total = 0
        for count, entry in enumerate(entries, start=1):
            if entry is not None:
                _check_name(path, entry.name)
                total += entry.size
                if entry.name in names:
                    raise DataDamaged(f"{path}: {entry.name!r} is in the archive twice; not unpacked")
                names.add(entry.name)
            if count > max_members or total > max_bytes:
                raise DataDamaged(
                    f"{path}: more than {max_members:,} files or {max_bytes:,} bytes unpacked; "
                    "this is not the published archive"
                )
            if entry is not None:
                yield entry


def read_members(path: Path, wanted: set[str], max_bytes: int) -> dict[str, bytes]:
    """Content of the files named `wanted`, without unpacking anything to disk."""
    found: dict[str, bytes] = {}
    for member in members(path, max_bytes):
        if member.name in wanted:
            with _damage_told(path), member.open() as file:
                found[member.name] = file.read(member.size)
        if len(found) == len(wanted):
            return found
    missing = ", ".join(sorted(wanted - set(found)))
    raise DataDamaged(f"{path}: lacks {missing}; this is not the published archive")


def extract(path: Path, into: Path, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS) -> None:
    """Unpack below `into`; what exists there is never overwritten or followed. Raises as `members` does."""
    root = into.resolve()
    for member in members(path, max_bytes, max_members):
        target = root / member.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            inside = target.parent.resolve().is_relative_to(root)
        except (FileExistsError, NotADirectoryError):
            raise DataDamaged(f"{path}: {member.name!r} lies in a file, not in a folder; not unpacked") from None
        if not inside:
            raise DataDamaged(f"{path}: {member.name!r} leads outside the folder; not unpacked")
        with _damage_told(path), member.open() as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 2**20)


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise DataDamaged(f"{path}: not readable as an archive ({error}); fetch it again") from None


def _check_name(path: Path, name: str) -> None:
    parts = name.split("/")
    odd = any(ord(c) < 32 for c in name) or "\\" in name or ":" in name
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > LONGEST_PATH or any(len(part) > LONGEST_PART for part in encoded.split(b"/")):
        raise DataDamaged(f"{path}: the name {name[:40]!r}... is longer than file systems take; not unpacked")
    if odd or name.startswith("/") or ".." in parts or "" in parts:
        raise DataDamaged(f"{path}: the name {name!r} leads outside the folder or is not portable; not unpacked")


class _BoundedInfo(tarfile.TarInfo):
    """A tar's header whose size is checked before the reader moves by it or takes that much into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in HEADERS and found.size > MAX_HEADER_BYTES):
            raise tarfile.TarError(f"a header that states {found.size:,} bytes")
        return found


def _tar_members(path: Path) -> Iterator[Member | None]:
    with tarfile.open(path, "r:*", tarinfo=_BoundedInfo) as archive:
        for item in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps every header that it has read
            if item.isdir():
                yield None
                continue
            # Sparse files claim sizes that their bytes do not have; links and devices are never data.
            if item.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise DataDamaged(f"{path}: {item.name!r} is a link, device or sparse file; not unpacked")

            def opened(item: tarfile.TarInfo = item) -> IO[bytes]:
                file = archive.extractfile(item)
                assert file is not None
                return file

            yield Member(item.name.removeprefix("./"), item.size, opened)
        # To the end, where the checksum of what was packed stands: a tar has none of its own files' bytes.
        rest = archive.fileobj
        for _ in range(MAX_TRAILING_BYTES // 2**20):
            if rest is None or not rest.read(2**20):
                return
        raise tarfile.TarError(f"more than {MAX_TRAILING_BYTES:,} bytes after its end")


def _zip_members(path: Path) -> Iterator[Member | None]:
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            kind = stat.S_IFMT(item.external_attr >> 16)
            if item.is_dir():
                yield None
                continue
            if kind not in (0, stat.S_IFREG) or item.flag_bits & 1:
                raise DataDamaged(f"{path}: {item.filename!r} is a link, device or encrypted; not unpacked")

            def opened(item: zipfile.ZipInfo = item) -> IO[bytes]:
                return archive.open(item)

            yield Member(item.filename, item.file_size, opened)


def gunzip(data: bytes, max_bytes: int) -> bytes:
    """The content of a gzip file of at most `max_bytes`."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise DataDamaged(f"not readable as gzip ({error}); fetch the file again") from None
    if len(content) > max_bytes or not decompressor.eof:
        raise DataDamaged(f"a gzip file that is cut off or unpacks to more than {max_bytes:,} bytes")
    return content


def read_idx(data: bytes) -> NDArray[np.uint8]:
    """An array in the IDX format of MNIST (LeCun, Cortes, Burges): 0, 0, type 8, rank, sizes, bytes."""
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4:
        raise DataDamaged(f"not an IDX file of bytes: it starts with {data[:4].hex()}")
    rank = data[3]
    shape = tuple(int(n) for n in np.frombuffer(data[4 : 4 + 4 * rank], ">u4"))
    body = data[4 + 4 * rank :]
    if len(shape) != rank or int(np.prod(shape, dtype=object)) != len(body):
        raise DataDamaged(f"an IDX file that says {shape} but holds {len(body):,} bytes; fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


class _Allowed:
    """Stands for a global of the pickle: calls a function of ours, and has no attribute that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise DataDamaged("a pickle that changes what it was given; not read")


def _array_token() -> NoReturn:
    """Stands for numpy.ndarray, so that a pickle cannot call it."""
    raise DataDamaged("a pickle that makes an array in an unexpected way; not read")


ARRAY = _Allowed(_array_token)


def _empty_array(kind: object, shape: object, code: object) -> NDArray[np.uint8]:
    if kind is not ARRAY or shape != (0,):
        raise DataDamaged("a pickle that builds something other than a plain array; not read")
    return np.empty(0, np.uint8)


def _bytes_type(code: object, *_: object) -> np.dtype[np.uint8]:
    if code not in ("u1", "|u1"):
        raise DataDamaged(f"a pickle with an array of {code!r}, only bytes (u1) are expected; not read")
    return np.dtype(np.uint8)


def _latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DataDamaged("a pickle with an unexpected text encoding; not read")
    return text.encode("latin1")


# The globals that occur in CIFAR's batches, under Python 2's and 3's and numpy 1's and 2's names. Each name
# leads to a function of ours that builds an array of bytes and nothing else.
CIFAR_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Allowed(_empty_array),
    ("numpy._core.multiarray", "_reconstruct"): _Allowed(_empty_array),
    ("numpy", "ndarray"): ARRAY,
    ("numpy", "dtype"): _Allowed(_bytes_type),
    ("_codecs", "encode"): _Allowed(_latin1),
}
MOST_TUPLES = 1000  # a batch has about ten; tuples nested a million deep overflow the interpreter's stack


class _CifarUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in CIFAR_GLOBALS:
            raise DataDamaged(f"a pickle that asks for {module}.{name}; nothing of it was run")
        return CIFAR_GLOBALS[module, name]


def _check_operations(data: bytes) -> None:
    """Before it is read: every text and array lies within `data` whatever length it states (pickletools compares), and
    no place of the memo lies beyond it, for which the reader would make a table of that length."""
    tuples = 0
    for operation, argument, _ in pickletools.genops(data):
        if "PUT" in operation.name and isinstance(argument, int) and argument > len(data):
            raise DataDamaged(f"a pickle with a memo of {argument:,} entries; not read")
        tuples += "TUPLE" in operation.name
        if tuples > MOST_TUPLES:
            raise DataDamaged(f"a pickle of more than {MOST_TUPLES:,} tuples; not read")


def read_cifar_pickle(data: bytes) -> dict[str, Any]:
    """A batch or meta file of CIFAR's Python version: text keys; arrays of bytes, lists and texts as values.

    The only reader of pickles in regraft: a published format, read after its md5 was compared, and with
    everything but arrays of bytes refused. Raises DataDamaged.
    """
    try:
        _check_operations(data)
        content = _CifarUnpickler(io.BytesIO(data), encoding="latin1").load()
    except DataDamaged:
        raise
    except Exception as error:  # a damaged pickle makes the unpickler raise errors of nearly every kind
        raise DataDamaged(f"not readable as a CIFAR batch ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataDamaged("not a CIFAR batch: a mapping of fields is expected")
    return content
