"""Unpacking in steps: parts go into a folder beside the final one, which gets its name when all of it is right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from regraft.data import converted
from regraft.data.catalogue import PUBLISHED
from regraft.data.converted import read_info, write_info
from regraft.data.home import TEMPORARY_PREFIX, flush, new_folder, write_file
from regraft.data.mosaics import decode_mosaic
from regraft.data.packed import PackedSet, PackedWeights, PartFile
from regraft.errors import DataDamaged


def problem_of(folder: Path, part: PartFile) -> str | None:
    """What is wrong with a part's file; None if it is as it was packed."""
    path = folder / part.file
    if not path.is_file():
        return "is not there"
    if (size := path.stat().st_size) != part.bytes:
        return f"has {size:,} bytes, packed were {part.bytes:,}"
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    return None if got == part.sha256 else f"has sha256 {got}, packed was {part.sha256}"


def installed(item: PackedSet | PackedWeights, place: Path) -> bool:
    """Whether it is there with the very content. Raises DataDamaged for another one."""
    if isinstance(item, PackedWeights):
        there = place.is_file()
        same = there and problem_of(place.parent, PartFile(item.file, item.bytes, item.sha256, "", 0, 0)) is None
    else:
        info = read_info(place)
        there = info is not None
        same = info is not None and (info["digest"], info["arrays"]) == (item.info["digest"], item.info["arrays"])
        if same:
            converted.open_converted(place, item.info)  # raises if arrays are gone or of another shape
    if there and not same:
        raise DataDamaged(f"{place} is there with other content than the packed {item.name}. Delete it and run again.")
    return same


class Staging:
    """A half-unpacked item beside its final place; which parts it holds is written down after they are on the disk."""

    def __init__(self, item: PackedSet | PackedWeights, place: Path) -> None:
        key = hashlib.sha256(json.dumps(asdict(item), sort_keys=True).encode()).hexdigest()[:12]
        self.folder = place.with_name(f"{TEMPORARY_PREFIX}unpack-{place.name}-{key}")
        self.record = self.folder / "parts.json"
        if not self.record.is_file() or not _usable(item, self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            _make_empty(item, self.folder)
            write_file(self.record, b"[]")
        self.held: set[str] = set(json.loads(self.record.read_bytes()))

    def take_parts(self, item: PackedSet | PackedWeights, source: Path, moved: Callable[[int], None]) -> list[str]:
        """Unpack the parts that are there; returns the names of those that are not."""
        lacking = []
        for part in item.parts:
            if part.file not in self.held:
                if not (source / part.file).is_file():
                    lacking.append(part.file)
                    continue
                if (problem := problem_of(source, part)) is not None:
                    raise DataDamaged(
                        f"{source / part.file} {problem}. Copy this part again from where it was packed and run this "
                        "again; what was unpacked before is kept."
                    )
                data = (source / part.file).read_bytes()
                if isinstance(item, PackedSet):
                    _unpack_rows(item, part, data, self.folder)
                else:
                    _unpack_bytes(self.folder / item.file, part.start, data)
                self.held.add(part.file)
                write_file(self.record, json.dumps(sorted(self.held)).encode())
            moved(part.bytes)
        return lacking

    def install(self, item: PackedSet | PackedWeights, place: Path) -> None:
        """Compare the whole with its digest and give it its name."""
        try:
            if isinstance(item, PackedSet):
                _install_set(item, self.folder, place)
            else:
                _install_weights(item, self.folder / item.file, place)
        finally:  # of another content than its digest: to be unpacked anew
            shutil.rmtree(self.folder, ignore_errors=True)


def _make_empty(item: PackedSet | PackedWeights, folder: Path) -> None:
    if isinstance(item, PackedWeights):
        (folder / item.file).touch()
        return
    for array in item.info["arrays"]:
        kind: Any = np.uint8 if array.endswith("images") else np.int64
        open_memmap(folder / f"{array}.npy", mode="w+", dtype=kind, shape=item.shape(array)).flush()
        flush(folder / f"{array}.npy")


def _usable(item: PackedSet | PackedWeights, folder: Path) -> bool:
    """Whether what parts go into is there; a power cut may have left it empty."""
    if isinstance(item, PackedWeights):
        return (folder / item.file).is_file()
    try:
        return all(
            np.load(folder / f"{array}.npy", mmap_mode="r", allow_pickle=False).shape == item.shape(array)
            for array in item.info["arrays"]
        )
    except (OSError, ValueError, EOFError):
        return False


def _unpack_rows(item: PackedSet, part: PartFile, data: bytes, folder: Path) -> None:
    shape = (part.count, *item.shape(part.array)[1:])
    rows: NDArray[Any]
    if len(shape) == 4:
        rows = decode_mosaic(data, shape, item.columns, part.file)
    else:
        rows = np.frombuffer(_inflated(data, 8 * part.count, part.file), "<i8")
    array: np.memmap[Any, Any] = np.load(folder / f"{part.array}.npy", mmap_mode="r+", allow_pickle=False)
    array[part.start : part.start + part.count] = rows
    array.flush()


def _inflated(data: bytes, size: int, name: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise DataDamaged(f"{name} cannot be read ({error}); pack the set again") from None
    if len(content) != size:
        raise DataDamaged(f"{name} does not hold {size // 8:,} labels; pack the set again")
    return content


def _unpack_bytes(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _install_set(item: PackedSet, staging: Path, place: Path) -> None:
    pinned = PUBLISHED[item.name].digest if item.name in PUBLISHED else None
    if place.exists() and read_info(place) is None:  # left by a crash: not complete
        shutil.rmtree(place)
    with new_folder(place) as temporary:
        for array in item.info["arrays"]:
            (staging / f"{array}.npy").rename(temporary / f"{array}.npy")
        info = item.info
        write_info(
            temporary, name=item.name, classes=tuple(info["classes"]), digest=info["digest"] if item.by_files else None,
            origin=info["origin"], unreadable=tuple(info["unreadable"]),
        )  # fmt: skip
        if read_info(temporary) != info or (pinned is not None and info["digest"] != pinned):
            raise DataDamaged(
                f"{item.name}: what the parts hold has not the digest {pinned or info['digest']}, though each part is "
                "as the manifest says. Pack it again."
            )


def _install_weights(item: PackedWeights, file: Path, place: Path) -> None:
    problem = problem_of(file.parent, PartFile(item.file, item.bytes, item.sha256, "", 0, 0))
    if problem is not None:
        raise DataDamaged(
            f"{item.file}: the parts together are not the file that was packed: it {problem}. Pack it again."
        )
    file.replace(place)
