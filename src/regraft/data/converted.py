"""Data sets as arrays on disk: home/data/NAME/{train,test[,validation]}_{images,labels}.npy and info.json."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.formats import Content
from regraft.data.home import write_file
from regraft.data.splits import Dataset, Split, TestSplit
from regraft.errors import DataDamaged

VERSION = 1  # of the layout
MAP_BEYOND_BYTES = 32 * 2**20  # larger image arrays are memory-mapped: most studies need a part of them
BLOCK_IMAGES = 4096
READ_ALWAYS_BYTES = 2**30  # arrays up to this size in all are compared with their digests whenever they are opened
FIELDS = {"version", "name", "classes", "train_counts", "arrays", "digest", "origin", "unreadable"}
HASHED_BYTES = 2**25  # at once
BY_FILES = (
    "folder:",
    "parquet:",
    "webdataset:",
    "hf:",
)  # data sets whose digest is of the files they were decoded from


def array_sha256(array: NDArray[Any]) -> str:
    """Of the bytes in C order; labels as little-endian int64. Reads a memory-mapped array in parts."""
    digest = hashlib.sha256()
    step = max(1, HASHED_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        part = np.ascontiguousarray(array[start : start + step])
        digest.update((part if part.dtype == np.uint8 else part.astype("<i8")).data)
        give_back(array)
    return digest.hexdigest()


def give_back(array: NDArray[Any]) -> None:
    """Of a memory-mapped array: pages that were read count as this process's memory until they are given back."""
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def arrays_of(content: Content) -> dict[str, NDArray[Any]]:
    return {
        f"{part}_{kind}": getattr(getattr(content, part), kind)
        for part in ("train", "test")
        for kind in ("images", "labels")
    }


def content_digest(content: Content, classes: tuple[str, ...]) -> str:
    """sha256 of a data set's whole content: shapes and bytes of its arrays, and its class names."""
    return digest_of(described(arrays_of(content)), classes)


def described(arrays: dict[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"shape": list(a.shape), "sha256": array_sha256(a)} for name, a in arrays.items()}


def digest_of(arrays: dict[str, dict[str, Any]], classes: tuple[str, ...]) -> str:
    words = json.dumps(["regraft data set", 1, arrays, classes], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(words.encode()).hexdigest()


def write_info(
    folder: Path, *, name: str, classes: tuple[str, ...], digest: str | None, origin: str,
    unreadable: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """The record beside the arrays, written last: a folder without it is not complete.

    digest: of what determines the content, if not the arrays themselves (of a picture folder: its files).
    """
    arrays = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(folder.glob("*.npy"))}
    description = described(arrays)
    counts = np.bincount(arrays["train_labels"], minlength=len(classes)).tolist()
    info = {
        "version": VERSION, "name": name, "classes": classes, "train_counts": counts, "arrays": description,
        "digest": digest or digest_of(description, classes), "origin": origin, "unreadable": unreadable,
    }  # fmt: skip
    (folder / "info.json").write_text(json.dumps({**info, "sha256": _seal(info)}, indent=1), "utf-8")


def write_content(folder: Path, content: Content) -> None:
    for name, array in arrays_of(content).items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def read_info(folder: Path) -> dict[str, Any] | None:
    """The record of a converted data set, or None when there is none of this version."""
    file = folder / "info.json"
    if not file.is_file():
        return None
    try:
        info = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        return None  # cut off by a full disk or a crash: converted again
    if not isinstance(info, dict) or info.get("version") != VERSION or not _is_sound(info):
        return None
    seal = info.pop("sha256", None)  # absent in records of earlier versions
    return info if info.keys() == FIELDS and seal in (None, _seal(info)) else None


def _seal(info: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _is_sound(info: dict[str, Any]) -> bool:
    """Whether every part of the record has the form in which `write_info` writes it."""
    arrays, classes = info.get("arrays"), info.get("classes")
    texts = [info.get("name"), info.get("digest"), info.get("origin")]
    lists = [classes, info.get("train_counts"), info.get("unreadable")]
    if not isinstance(arrays, dict) or not all(isinstance(one, list) for one in lists):
        return False
    texts += [*(classes or []), *info["unreadable"], *arrays]
    shapes: list[Any] = [entry.get("shape") for entry in arrays.values() if isinstance(entry, dict)]
    texts += [entry.get("sha256") for entry in arrays.values() if isinstance(entry, dict)]
    if len(shapes) < len(arrays) or not all(isinstance(shape, list) for shape in shapes):
        return False
    sides = [*(side for shape in shapes for side in shape), *info["train_counts"]]
    known = {f"{part}_{kind}" for part in ("train", "test", "validation") for kind in ("images", "labels")}
    parts = arrays.keys() in (known, {n for n in known if not n.startswith("validation")})
    return parts and all(isinstance(t, str) for t in texts) and all(type(side) is int for side in sides)


def open_converted(folder: Path, info: dict[str, Any]) -> Dataset:
    """Open the arrays, comparing sizes and shapes with the record. Raises DataDamaged."""
    arrays = {name: _open(folder, name, entry["shape"]) for name, entry in info["arrays"].items()}
    classes = tuple(info["classes"])
    own = digest_of(info["arrays"], classes)
    if not info["name"].startswith(BY_FILES) and info["digest"] != own:
        raise DataDamaged(
            _damaged(folder, f"its record has the digest {info['digest'][:80]!r}, what it says has {own}")
        )
    for name, array in arrays.items():
        _check_array(folder, name, array, info)
    splits = {
        part: (arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int64))
        for part in ("train", "test", "validation")
        if f"{part}_images" in arrays
    }
    return Dataset(
        name=info["name"],
        train=Split(*splits["train"], classes),
        test=TestSplit(*splits["test"], classes),
        validation=Split(*splits["validation"], classes) if "validation" in splits else None,
        digest=info["digest"],
        image_size=arrays["train_images"].shape[1],
        unreadable=tuple(info["unreadable"]),
    )


def _check_array(folder: Path, name: str, array: NDArray[Any], info: dict[str, Any]) -> None:
    """Pictures are bytes, and a label is the place of a class. Raises DataDamaged."""
    part, _, kind = name.partition("_")
    if kind == "images":
        if array.dtype != np.uint8 or array.ndim != 4:
            raise DataDamaged(_damaged(folder, f"{name}.npy holds {array.ndim}-dimensional {array.dtype}"))
        return
    count, classes = info["arrays"][f"{part}_images"]["shape"][0], len(info["classes"])
    if array.shape != (count,) or array.dtype.kind not in "iu" or not count:
        raise DataDamaged(
            _damaged(folder, f"{name}.npy holds {array.dtype} of shape {array.shape} for {count} pictures")
        )
    if not 0 <= int(array.min()) <= int(array.max()) < classes:
        raise DataDamaged(_damaged(folder, f"{name}.npy has labels outside 0 to {classes - 1}"))
    if part == "train" and np.bincount(array.astype(np.int64), minlength=classes).tolist() != info["train_counts"]:
        raise DataDamaged(_damaged(folder, f"{name}.npy does not have the numbers of pictures that the record states"))


def verify_once(folder: Path, info: dict[str, Any]) -> None:
    """Compare the arrays with their digests: small ones always, which takes a second at most, others unless their
    files are by size and times the ones that were compared before. Raises DataDamaged."""
    files = [folder / f"{name}.npy" for name in info["arrays"]]
    try:
        states = [file.stat() for file in files]
    except OSError as error:
        raise DataDamaged(_damaged(folder, f"an array cannot be read ({error.strerror or error})")) from None
    stamps = [[state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino] for state in states]
    note = folder / "verified.json"
    large = sum(state.st_size for state in states) > READ_ALWAYS_BYTES
    if large and _noted(note) == stamps:
        return
    verify(folder, info)
    if large:
        with contextlib.suppress(OSError):  # a home folder that cannot be written costs the next opening some time
            write_file(note, json.dumps(stamps).encode())


def _noted(note: Path) -> object:
    try:
        return json.loads(note.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def verify(folder: Path, info: dict[str, Any]) -> None:
    """Read every byte and compare with the digests of the record. Raises DataDamaged."""
    for name, entry in info["arrays"].items():
        got = array_sha256(_open(folder, name, entry["shape"]))
        if got != entry["sha256"]:
            raise DataDamaged(_damaged(folder, f"{name}.npy has the sha256 {got}, written was {entry['sha256']}"))


def _open(folder: Path, name: str, shape: list[int]) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        large = path.stat().st_size > MAP_BEYOND_BYTES
        # Mapped first: what a header states is then bounded by the file.
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        array = mapped if large else np.array(mapped)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:  # numpy parses the header
        raise DataDamaged(_damaged(folder, f"{path.name} cannot be read ({error})")) from None
    if list(array.shape) != shape:
        raise DataDamaged(_damaged(folder, f"{path.name} has the shape {array.shape}, written was {shape}"))
    return array


def _damaged(folder: Path, what: str) -> str:
    return f"{folder}: {what}. Delete that folder; it is made again from the original."
