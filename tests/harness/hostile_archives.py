"""Archives that mean ill: names, links and devices that lead outside, bombs, and bytes that are not what they say.

Each function makes one from random numbers, in a folder, and gives what a user would do with it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from regraft.data.archive import extract, gunzip, read_idx, read_members
from regraft.errors import RegraftError
from tests.harness.hostile_weights import Action, Random, pick


def unpacked(path: Path, wanted: str = "x", max_bytes: int = 2**28) -> Action:
    """What `data get` does with a published archive: read some members, or unpack all."""

    def action() -> str:
        with contextlib.suppress(RegraftError):
            read_members(path, {wanted}, max_bytes)
        out = path.parent.parent / "out"
        extract(path, out, max_bytes=max_bytes, max_members=100_000)
        return "" if any(file.is_file() for file in out.rglob("*")) else "an archive of folders alone"

    return action


def tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def member(name: str, content: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def names_that_lead_outside(random: Random, folder: Path) -> Action:
    up = "../" * int(random.integers(1, 6))
    name = pick(random, [f"{up}sentinel/deep/file", f"{up}evil", "/evil", f"{folder.parent}/sentinel/deep/file",
                         f"a/{up}../evil", "a/./../..//evil", "..\\evil", "C:evil", "a\x1b[31mb", "a\nb", "con:", ".",
                         "..", "", "x" * 300, "x/" * 2000 + "y", "\u202eexe.txt/../../e"])  # fmt: skip
    path = folder / f"a{pick(random, ['.tar.gz', '.zip', '.tar'])}"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name or "/"), b"x")
    else:
        tar(path, member(name), mode="w:gz" if path.suffix == ".gz" else "w")
    return unpacked(path)


def links_and_devices(random: Random, folder: Path) -> Action:
    outside = str(folder.parent / "sentinel" / "deep")
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
             tarfile.GNUTYPE_SPARSE, b"S", b"V", b"M", b"Z"]  # fmt: skip
    path = folder / "a"
    if random.random() < 0.3:
        info = zipfile.ZipInfo("link")
        info.external_attr = pick(random, [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK]) << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, outside)
            archive.writestr("link/file", b"x")
        return unpacked(path)
    link = member("link", b"", type=pick(random, kinds), linkname=pick(random, [outside, "/dev/zero", "../..", "link"]))
    return unpacked(tar(path, link, member("link/file")))


def archive_bombs(random: Random, folder: Path) -> Action:
    """Small files that unpack to much: zeros, very many members, entries that share their bytes, huge headers."""
    path, zeros = folder / "a", bytes(2**25)
    kind = int(random.integers(8))
    if kind == 0:
        tar(path, *(member(f"{i}", zeros) for i in range(10)))
    elif kind == 1:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(10):
                archive.writestr(f"{i}", zeros)
    elif kind == 2:
        block = member(f"{'d' * 20}/")[0].tobuf(tarfile.PAX_FORMAT)
        path.write_bytes(gzip.compress(block * 150_000, 1))
    elif kind == 3:  # a header of extended fields that states gigabytes
        info = member("PaxHeaders/x", b"", type=tarfile.XHDTYPE)[0]
        info.size = int(pick(random, [2**30, 2**33 - 1]))
        path.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + zeros * 4, 1))
    elif kind == 4:  # a long name of gigabytes, or a negative size
        info = member("x", b"", type=pick(random, [tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE]))[0]
        buffer = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        buffer[124:136] = pick(random, [b"\xff" * 12, b"\x80" + b"\x00" * 4 + b"\x7f" + b"\xff" * 6])
        _checksum(buffer)
        path.write_bytes(bytes(buffer) * 3 + bytes(10240))
    elif kind == 5:  # entries that share their bytes
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x", zeros)
            archive.filelist += [_same(archive.filelist[0], f"{i}") for i in range(200)]
    elif kind == 6:  # a size in the directory that is not the file's
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x", zeros)
            archive.filelist[0].file_size = int(pick(random, [10, 2**31, 2**40]))
    else:
        path.write_bytes(bz2.compress(zeros * 20))
    return unpacked(path, "x", max_bytes=2**26)


def _same(info: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    copy = zipfile.ZipInfo(name)
    for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
        setattr(copy, field, getattr(info, field))
    return copy


def _checksum(buffer: bytearray) -> None:
    buffer[148:156] = b" " * 8
    buffer[148:156] = f"{sum(buffer[:512]):06o}\0 ".encode()


def damaged_archives(random: Random, folder: Path) -> Action:
    """Cut off or with bits flipped; what is unpacked all the same has its checksums."""
    path, content = folder / "a", random.bytes(3000)
    mode = pick(random, ["w:gz", "w:bz2", "w:xz", "zip"])
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x", content)
    else:
        tar(path, member("x", content), mode=mode)
    damaged = bytearray(path.read_bytes())
    if random.random() < 0.4:
        del damaged[int(random.integers(len(damaged))) :]
    for at in random.integers(max(1, len(damaged)), size=3):
        if damaged:
            damaged[at] ^= 1 << int(random.integers(8))
    path.write_bytes(damaged)

    def action() -> str:
        out = folder.parent / "out"
        extract(path, out, max_bytes=2**24, max_members=100)
        files = [file for file in out.rglob("*") if file.is_file()]
        told = len(files) <= 1 and all(file.read_bytes() == content for file in files)
        return "the flipped bits stand for nothing" if told else ""

    return action


def other_files(random: Random, folder: Path) -> Action:
    """gzip and IDX files that are not what they say."""
    zeros = bytes(10**6)
    if random.random() < 0.5:
        packed = gzip.compress(zeros)
        data = pick(random, [packed, packed[:-9], b"", b"\x1f\x8b" + random.bytes(50), zlib.compress(zeros)])

        def unzip() -> str:
            gunzip(data, 10**5)
            return ""

        return unzip
    rank = int(pick(random, [0, 1, 3, 4, 200]))
    shape = [int(pick(random, [0, 1, 7, 2**31, 2**32 - 1])) for _ in range(min(rank, 5))]
    data = bytes([0, 0, int(pick(random, [8, 8, 8, 13])), rank]) + struct.pack(f">{len(shape)}I", *shape) + b"x" * 5

    def read() -> str:
        return "as it says" if read_idx(data).size == 5 else ""

    return read


CASES = (names_that_lead_outside, links_and_devices, archive_bombs, damaged_archives, other_files)
