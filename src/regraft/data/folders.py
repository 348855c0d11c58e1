"""`folder:PATH`: a person's own pictures, a subfolder per class.

    PATH/roses/*.jpg  PATH/tulips/*.jpg                    one pool; a fifth of each class is the test part
    PATH/train/roses/*.jpg  PATH/test/...  PATH/val/...    the given parts (val, valid or validation)

Class names are the subfolders' names, sorted. Hidden files and files that are not named like pictures are
passed over. Files that cannot be read as pictures are left out and listed in `Dataset.unreadable`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib.format import open_memmap

from regraft.data.converted import BLOCK_IMAGES, write_info
from regraft.data.home import write_file
from regraft.data.pictures import DECODER_VERSION, SUFFIXES, decode_pictures
from regraft.errors import DataDamaged, DataUnavailable, StudyError, TooFewImages

PART_NAMES = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
TEST_SHARE = 0.2
HIDDEN = (".", "__MACOSX")  # how names begin that are passed over
# A file changed within this time of being hashed could change again without its time stamp moving
# (file systems count in milliseconds), so its hash is not kept: git's "racy" rule.
SETTLED_AFTER_NS = 2 * 10**9


@dataclass(frozen=True)
class Listing:
    """The picture files of a folder: nothing was opened yet."""

    root: Path
    classes: tuple[str, ...]
    parts: dict[str, tuple[tuple[Path, int], ...]]  # train, test[, validation] -> (file, label), in order

    def counts(self, part: str) -> tuple[int, ...]:
        labels = [label for _, label in self.parts[part]]
        return tuple(np.bincount(np.array(labels, np.int64), minlength=len(self.classes)).tolist())


def list_folder(path: str | Path) -> Listing:
    """The pictures below `path`, by part and class.

    Without a test folder, the test part is a fifth of each class (at least one picture): those whose relative
    paths have the smallest sha256. So it is the same on every machine, and a picture that is added later
    moves few others. Raises DataUnavailable without such a folder, StudyError for a folder of another form.
    """
    root = folder_root(path)
    try:
        folders = part_folders(root)
        found = {part: pictures_by_class(folder) for part, folder in folders.items()}
    except OSError as error:  # no permission, a path longer than the system allows
        raise DataUnavailable(f"folder:{path}: cannot be read: {error.filename}: {error.strerror}") from error
    classes = tuple(found["train"])
    _check_classes(root, classes, found)
    if "test" not in found:
        found["train"], found["test"] = _carve_test(root, found["train"])
    parts = {
        part: tuple((file, label) for label, name in enumerate(classes) for file in by_class.get(name, []))
        for part, by_class in found.items()
    }
    return Listing(root, classes, parts)


def folder_root(path: str | Path, *, option: str = "") -> Path:
    """The folder, ~ and links followed.  option: that named it, for the message; default, a data set's `folder:`.

    Raises DataUnavailable if there is none, or it may not be looked into."""
    said = f"{option} {path}" if option else f"folder:{path}"
    try:
        root = Path(path).expanduser()
        if root.is_dir():
            return root.resolve()
    except RuntimeError as error:  # ~NAME of nobody
        raise DataUnavailable(f"{said}: {error}") from None
    except OSError as error:  # a name longer than the system allows, a folder that may not be looked into
        raise DataUnavailable(f"{said}: cannot be read: {error.strerror}") from None
    needed = "" if option else "; give a folder with one subfolder per class"
    raise DataUnavailable(f"{said}: there is no folder {root.absolute()}{needed}")


def part_folders(root: Path) -> dict[str, Path]:
    """train, test and validation folders if `root` has them; else `root` itself as the training pool."""
    # A class may be called "train" (a railway's): a part holds folders, a class holds pictures.
    parts = [d for d in _subfolders(root) if d.name.lower() in PART_NAMES and _subfolders(d)]
    named = {PART_NAMES[d.name.lower()]: d for d in parts}
    if not named:
        return {"train": root}
    if "train" not in named or len(named) < len(parts):
        raise StudyError(
            f"folder:{root}: has the parts {', '.join(d.name for d in parts)}, but needs exactly one train, "
            "at most one test and at most one of val, valid, validation"
        )
    return named


def _subfolders(folder: Path) -> list[Path]:
    """Sorted. A link to a folder counts, unless it leads back to where it lies: a circle is no class."""
    above = folder.resolve()
    found = [
        d
        for d in folder.iterdir()
        if d.is_dir() and not d.name.startswith(HIDDEN) and not (d.is_symlink() and above.is_relative_to(d.resolve()))
    ]
    return sorted(found, key=lambda d: normal(d.name))


def pictures_by_class(folder: Path) -> dict[str, list[Path]]:
    subfolders = _subfolders(folder)
    found = {normal(d.name): list(_pictures(d)) for d in subfolders}
    if len(found) < len(subfolders):
        raise StudyError(f"folder:{folder}: two subfolders have the same name in Unicode's normal form; rename one")
    return found


def _pictures(folder: Path) -> Iterator[Path]:
    """Files named like pictures, at any depth, sorted; links to folders can be circles: not followed."""
    for parent, folders, files in os.walk(folder, onerror=_told):
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        for name in sorted(files):
            file = Path(parent) / name
            hidden = name.startswith(".") or file.suffix.lower() not in SUFFIXES
            # A broken link is kept, to be reported; a pipe or socket, which would block a reader, is not.
            if not hidden and (file.is_file() or not file.exists()):
                yield file


def _told(error: OSError) -> NoReturn:
    """A folder that cannot be read would silently be a class of fewer pictures."""
    raise error


def normal(name: str) -> str:
    """macOS stores é as e + accent; the same class must have the same name everywhere."""
    return unicodedata.normalize("NFC", name)


def _relative(root: Path, file: Path) -> str:
    return normal(file.relative_to(root).as_posix())


def _path_sha256(root: Path, file: Path) -> bytes:
    return hashlib.sha256(_relative(root, file).encode("utf-8", "surrogateescape")).digest()


def _check_classes(root: Path, classes: tuple[str, ...], found: dict[str, dict[str, list[Path]]]) -> None:
    form = "A data set is a folder with one subfolder of pictures per class, or train/, test/ and val/ of such."
    if len(classes) < 2:
        got = f"only the class {classes[0]!r}" if classes else "no subfolder"
        deeper = [d for d in _subfolders(root) if len(_subfolders(d)) > 1]
        hint = f" Did you mean folder:{deeper[0]}?" if deeper else ""
        raise StudyError(f"folder:{root}: {got}; at least two classes are needed.{hint} {form}")
    for part, by_class in found.items():
        if extra := [name for name in by_class if name not in classes]:
            raise StudyError(f"folder:{root}: {part} has the class {extra[0]!r}, which train lacks. {form}")
    if empty := [name for name, files in found["train"].items() if not files]:
        raise TooFewImages(
            f"folder:{root}: no pictures in {', '.join(map(repr, empty[:10]))} "
            f"(files named {' '.join(sorted(SUFFIXES))} count). Fill or remove such folders."
        )
    for part in ("test", "validation"):
        if part in found and not any(found[part].values()):
            raise TooFewImages(f"folder:{root}: no pictures in the {part} folder; fill or remove it")


def _carve_test(root: Path, pool: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    if short := [name for name, files in pool.items() if len(files) < 2]:
        raise TooFewImages(
            f"folder:{root}: class {short[0]!r} has one picture; without a test folder each class needs two, "
            "one to train and one to test"
        )
    train, test = {}, {}
    for name, files in pool.items():
        order = sorted(files, key=lambda file: _path_sha256(root, file))
        n = max(1, round(TEST_SHARE * len(files)))
        test[name], train[name] = sorted(order[:n]), sorted(order[n:])
    return train, test


def files_digest(listing: Listing, home: Path) -> str:
    """sha256 over every picture's part, relative path and bytes. Known files are not read again."""
    entries = _hashes(listing, home, read=True)
    assert entries is not None
    return _digest_of_files(listing, entries)


def known_files_digest(listing: Listing, home: Path) -> str | None:
    """The same if every picture was hashed before and has not changed since; else None. Reads no picture."""
    entries = _hashes(listing, home, read=False)
    return None if entries is None else _digest_of_files(listing, entries)


def folder_digest(files: str, image_size: int) -> str:
    """Digest of the data set that the files give when decoded to `image_size`."""
    words = json.dumps(["regraft folder", DECODER_VERSION, image_size, files])
    return hashlib.sha256(words.encode()).hexdigest()


def _digest_of_files(listing: Listing, hashes: dict[Path, str]) -> str:
    rows = sorted(
        [part, _relative(listing.root, file), hashes[file]]
        for part, files in listing.parts.items()
        for file, _ in files
    )
    return hashlib.sha256(json.dumps([listing.classes, rows]).encode()).hexdigest()


def _hashes(listing: Listing, home: Path, *, read: bool) -> dict[Path, str] | None:
    """File -> sha256 of its bytes, from the index in `home` where size and times still fit."""
    name = hashlib.sha256(str(listing.root).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    index_file = home / "data" / "folder-index" / f"{name}.json"
    index = _read_index(index_file)
    hashes: dict[Path, str] = {}
    kept: dict[str, list[Any]] = {}
    for file in (file for files in listing.parts.values() for file, _ in files):
        relative, stamp = str(file.relative_to(listing.root)), _stamp(file)
        known = index.get(relative)
        if known is not None and known[:3] == stamp:
            hashes[file], kept[relative] = known[3], known
            continue
        if not read:
            return None
        hashes[file] = _file_sha256(file)
        if time.time_ns() - max(stamp[1:]) > SETTLED_AFTER_NS:
            kept[relative] = [*stamp, hashes[file]]
    if kept != index:
        with contextlib.suppress(OSError):  # a home folder that cannot be written costs the next reading some time
            write_file(index_file, json.dumps({"files": kept, "sha256": _index_digest(kept)}).encode())
    return hashes


def _stamp(file: Path) -> list[int]:
    try:
        state = file.stat()
    except OSError:  # a broken link; it will be among the unreadable
        return [0, 0, 0]
    # The inode's own change time as well: tools that copy or restore set the modification time back.
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _file_sha256(file: Path) -> str:
    try:
        if file.stat().st_size == 0:  # not opened: files of /proc state no size, and some wait for ever when read
            return hashlib.sha256().hexdigest()
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:  # no permission, a broken link: it will be among the unreadable
        return f"unreadable, error {error.errno}"


def _read_index(file: Path) -> dict[str, list[Any]]:
    try:
        index = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}  # none yet, or cut off: the files are hashed again
    files = index.get("files") if isinstance(index, dict) else None
    if not isinstance(files, dict) or index.get("sha256") != _index_digest(files):
        return {}  # of an older version, or damaged
    sound = all(isinstance(e, list) and len(e) == 4 for e in files.values())
    return files if sound else {}


def _index_digest(files: dict[str, Any]) -> str:
    """A changed digest in the index would put the pictures under a wrong name."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def decode_folder(
    listing: Listing, image_size: int, into: Path, home: Path, *, name: str, files: str,
    report: Callable[[int, int | None], None] | None = None,
) -> None:  # fmt: skip
    """Decode every picture to `image_size` and write the arrays and their record into the folder `into`.

    files: `files_digest` of the listing, taken before. Raises DataDamaged when the pictures have another one
    afterwards: arrays never stand under the digest of pictures that they were not made from.
    """
    unreadable: list[str] = []
    for part, pictures in listing.parts.items():
        reasons = _decode_part(listing, part, image_size, into, report)
        unreadable += [f"{_relative(listing.root, pictures[i][0])}: {reason}" for i, reason in reasons.items()]
    if files_digest(listing, home) != files:  # reads again only what changed or is quite new
        raise DataDamaged(
            f"folder:{listing.root}: pictures changed while they were read; nothing was kept. "
            "Start again when nothing else writes there."
        )
    write_info(
        into, name=name, classes=listing.classes, digest=folder_digest(files, image_size), origin=str(listing.root),
        unreadable=tuple(unreadable),
    )  # fmt: skip


def _decode_part(
    listing: Listing, part: str, size: int, into: Path, report: Callable[[int, int | None], None] | None
) -> dict[int, str]:
    """Write one part's arrays; return position -> reason of the pictures that could not be read."""
    files = listing.parts[part]
    target = into / f"{part}_images.npy"
    images = open_memmap(target, mode="w+", dtype=np.uint8, shape=(len(files), size, size, 3))
    reasons: dict[int, str] = {}
    labels: list[int] = []
    for i, picture in enumerate(decode_pictures([file for file, _ in files], size, report)):
        if isinstance(picture, str):
            reasons[i] = picture
        else:
            images[len(labels)] = picture
            labels.append(files[i][1])
    _check_readable(listing, part, labels, reasons)
    images.flush()
    if reasons:  # the array was made for all files: write it again with the readable ones alone
        shorter = into / "shorter.npy"
        fewer = open_memmap(shorter, mode="w+", dtype=np.uint8, shape=(len(labels), size, size, 3))
        for start in range(0, len(labels), BLOCK_IMAGES):
            stop = min(start + BLOCK_IMAGES, len(labels))
            fewer[start:stop] = images[start:stop]
        fewer.flush()
        del fewer, images
        shorter.replace(target)
    np.save(into / f"{part}_labels.npy", np.array(labels, np.int64))
    return reasons


def _check_readable(listing: Listing, part: str, labels: list[int], reasons: dict[int, str]) -> None:
    needed = range(len(listing.classes)) if part == "train" else {label for _, label in listing.parts[part]}
    readable = set(labels)
    for label in needed:
        if label not in readable:
            first = next(i for i in reasons if listing.parts[part][i][1] == label)
            raise DataDamaged(
                f"folder:{listing.root}: no picture of class {listing.classes[label]!r} in the {part} part "
                "can be read, for instance "
                f"{_relative(listing.root, listing.parts[part][first][0])}: {reasons[first]}"
            )
