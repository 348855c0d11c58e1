"""Data sets by name: load, describe and verify them; converted once to arrays and kept in the home folder."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.data import converted, fetch, folders, streams, torchvision_sets
from regraft.data.catalogue import PUBLISHED
from regraft.data.converted import open_converted, read_info, write_content, write_info
from regraft.data.fetch import Report
from regraft.data.formats import read_digits
from regraft.data.home import home as default_home
from regraft.data.home import new_folder
from regraft.data.splits import Dataset
from regraft.data.torchvision_sets import TORCHVISION_SETS
from regraft.errors import DataDamaged, DataUnavailable, StudyError, UnknownName, nearest

ALIASES = {
    "cifar-10": "cifar10", "cifar-100": "cifar100",
    "fashionmnist": "fashion-mnist", "fashion_mnist": "fashion-mnist",
    "oxfordiiitpet": "oxford-pets", "oxford-iiit-pet": "oxford-pets",
}  # fmt: skip
MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without reading an image. Empty or None: not known until it is here."""

    name: str
    classes: tuple[str, ...]
    train_counts: tuple[int, ...]  # images of each class in the training split
    test_images: int | None
    image_size: int | None  # side in pixels; None: of any size, decoded to the one asked for
    channels: int
    digest: str | None
    available: bool  # on this machine
    ways: str  # how it can be had

    @property
    def known(self) -> bool:
        """Whether classes and counts are known."""
        return bool(self.classes)


def dataset_names() -> list[str]:
    """All names that `load_dataset` takes, besides `folder:PATH` and those of `data.streams`."""
    return sorted({*PUBLISHED, *TORCHVISION_SETS})


def load_dataset(
    name: str,
    image_size: int | None = None,
    home: Path | None = None,
    offline: bool = False,
    *,
    source_dir: Path | None = None,
    report: Report | None = None,
) -> Dataset:
    """The data set `name`, fetched and converted to arrays if it is not here yet.

    name: one of `dataset_names()`, folder:PATH, parquet:PATH, webdataset:PATTERN or hf:NAME.
    image_size: side in pixels to which sets of pictures of any size are decoded, required for those; a set of
    fixed-size images (CIFAR, MNIST, ...) always comes at its own size, whatever is asked for, because
    `prepare` resizes on the device.
    home: instead of the default home folder.  offline: fetch nothing.  source_dir: take the published files
    from there.  report(done, total): bytes while fetching, pictures while decoding.

    Of a folder, `digest` is that of the very pictures that were decoded: compare it with an earlier
    `dataset_digest` to know that the folder has not changed since.

    Raises UnknownName, StudyError (no image_size; a folder of another form), DataUnavailable, DataDamaged.
    """
    home = default_home() if home is None else home
    if name.startswith("folder:"):
        return _load_folder(name, image_size, home, report)
    if streams.is_stream(name):
        return _load_stream(name, image_size, home, offline, report)
    name = _canonical(name)
    folder = _converted_folder(name, image_size, home)

    def make(temporary: Path) -> None:
        _convert(name, image_size, temporary, home, source_dir=source_dir, offline=offline, report=report)

    return open_converted(folder, _made(folder, home, make))


def dataset_info(name: str, home: Path | None = None) -> DatasetInfo:
    """What is known of `name`; reads no image. Raises UnknownName, and what `list_folder` raises."""
    home = default_home() if home is None else home
    if name.startswith("folder:"):
        return _folder_info(name, home)
    if streams.is_stream(name):
        return _stream_info(name, home)
    name = _canonical(name)
    if name in PUBLISHED:
        return _published_info(name, home)
    entry = TORCHVISION_SETS[name]
    ways = f"from {entry.files[0].url}"
    for folder in sorted((home / "data").glob(f"{name}-*" if entry.image_size is None else name)):
        if (info := read_info(folder)) is not None:
            return _converted_info(name, info, entry.image_size, ways, single=entry.image_size is not None)
    here = torchvision_sets.found_here(name, (*fetch.search_folders(home, None), home / "data" / "raw" / name))
    return DatasetInfo(name, (), (), None, entry.image_size, entry.channels, None, here, ways)


def dataset_digest(name: str, image_size: int | None = None, home: Path | None = None) -> str:
    """The digest that `load_dataset(name, image_size).digest` has, without reading images where it is known.

    Raises DataUnavailable for a set without a pinned digest that is not here yet."""
    home = default_home() if home is None else home
    if name.startswith("folder:"):
        listing = folders.list_folder(name.removeprefix("folder:"))
        return folders.folder_digest(folders.files_digest(listing, home), _required_size(name, image_size))
    if streams.is_stream(name):
        shards = streams.find_stream(name)
        size = _required_size(name, image_size)
        return streams.stream_digest(shards, streams.stream_files_digest(shards, home), size)
    name = _canonical(name)
    if name in PUBLISHED and (pinned := PUBLISHED[name].digest) is not None:
        return pinned
    info = read_info(_converted_folder(name, image_size, home))
    if info is None:
        raise DataUnavailable(
            f"{name}: its digest is not known before it is on this machine. Fetch it: regraft data get {name}"
        )
    return str(info["digest"])


def verify_dataset(name: str, image_size: int | None = None, home: Path | None = None) -> Dataset:
    """Read every byte of the arrays that are here and compare with the digests; return the data set.

    Raises DataUnavailable when it is not here, DataDamaged for the first difference."""
    home = default_home() if home is None else home
    if name.startswith("folder:"):
        listing = folders.list_folder(name.removeprefix("folder:"))
        folder = _decoded_folder(folders.files_digest(listing, home), _required_size(name, image_size), home)
    elif streams.is_stream(name):
        files = streams.stream_files_digest(streams.find_stream(name), home)
        folder = _decoded_stream(files, _required_size(name, image_size), home)
    else:
        name = _canonical(name)
        folder = _converted_folder(name, image_size, home)
    info = read_info(folder)
    if info is None:
        raise DataUnavailable(f"{name} is not on this machine ({folder}). Fetch it: regraft data get {name}")
    converted.verify(folder, info)
    pinned = PUBLISHED[name].digest if name in PUBLISHED else None
    if pinned is not None and info["digest"] != pinned:
        raise DataDamaged(f"{folder}: the digest {info['digest']} is not the published {pinned}. Delete that folder.")
    return open_converted(folder, info)


def _canonical(name: str) -> str:
    lower = name.lower()
    lower = ALIASES.get(lower, lower)
    known = dataset_names()
    if lower not in known:
        raise UnknownName(
            f"no data set {name!r}{nearest(lower, known)} Known: {', '.join(known)}, and folder:PATH, "
            "parquet:PATH, webdataset:PATTERN, hf:NAME. "
            "List them with: regraft data list"
        )
    return lower


def _required_size(name: str, image_size: int | None) -> int:
    if image_size is None:
        raise StudyError(
            f"{name}: its pictures have any size, so image_size is required (the side in pixels that they "
            "are decoded to, for instance 224)"
        )
    if not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise StudyError(f"{name}: image_size from 1 to {MAX_IMAGE_SIZE} pixels, got {image_size}")
    return image_size


def _converted_folder(name: str, image_size: int | None, home: Path) -> Path:
    fixed = PUBLISHED[name].image_size if name in PUBLISHED else TORCHVISION_SETS[name].image_size
    return home / "data" / (name if fixed is not None else f"{name}-{_required_size(name, image_size)}")


def _decoded_folder(files: str, image_size: int, home: Path) -> Path:
    return home / "data" / f"folder-{files[:32]}-{image_size}"


def _decoded_stream(files: str, image_size: int, home: Path) -> Path:
    return home / "data" / f"stream-{files[:32]}-{image_size}"


def _made(folder: Path, home: Path, make: Callable[[Path], None]) -> dict[str, Any]:
    """The record of the arrays in `folder`, which `make` writes unless they are there and as they were written.

    Damaged ones are set aside in home/damaged, and made anew. Raises what `make` raises; if that is that nothing can be
    had here, the damage is named as well."""
    damaged = ""
    info = read_info(folder)
    try:
        if info is not None:
            converted.verify_once(folder, info)
            return info
        if folder.exists():
            raise DataDamaged(f"{folder} has no record of its arrays that can be read.")
    except DataDamaged as error:
        aside = home / "damaged" / f"{folder.name}.{secrets.token_hex(4)}"
        aside.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process was first
            folder.rename(aside)
        damaged = f"{error} It has been moved to {aside}. "
    try:
        with new_folder(folder) as temporary:
            make(temporary)
    except DataUnavailable as error:
        raise DataUnavailable(f"{damaged}{error}") from None
    info = read_info(folder)
    assert info is not None
    return info


def _convert(
    name: str, image_size: int | None, into: Path, home: Path, *, source_dir: Path | None, offline: bool,
    report: Report | None,
) -> None:  # fmt: skip
    if name not in PUBLISHED:
        size = TORCHVISION_SETS[name].image_size or _required_size(name, image_size)
        torchvision_sets.convert(name, size, into, home, source_dir=source_dir, offline=offline, report=report)
        return
    known = PUBLISHED[name]
    if name == "digits":
        content, origin = read_digits(), "scikit-learn"
        fetch.check_content(name, known, content)
    else:
        content, origin = fetch.read_published(name, known, home, source_dir=source_dir, offline=offline, report=report)
    write_content(into, content)
    write_info(into, name=name, classes=known.classes, digest=None, origin=origin)


def _load_folder(name: str, image_size: int | None, home: Path, report: Report | None) -> Dataset:
    size = _required_size(name, image_size)
    listing = folders.list_folder(name.removeprefix("folder:"))
    files = folders.files_digest(listing, home)
    folder = _decoded_folder(files, size, home)

    def make(temporary: Path) -> None:
        folders.decode_folder(listing, size, temporary, home, name=name, files=files, report=report)

    info = _made(folder, home, make)
    if info["digest"] != folders.folder_digest(files, size):
        raise DataDamaged(f"{folder} holds other pictures than its name says. Delete that folder; it is made again.")
    # The arrays are shared by every folder with this content; the name is the one that was asked for.
    return open_converted(folder, {**info, "name": name})


def _load_stream(name: str, image_size: int | None, home: Path, offline: bool, report: Report | None) -> Dataset:
    size = _required_size(name, image_size)
    shards = streams.find_stream(name, offline=offline)
    files = streams.stream_files_digest(shards, home)
    folder = _decoded_stream(files, size, home)

    def make(temporary: Path) -> None:
        streams.decode_stream(shards, size, temporary, home, files=files, report=report)

    info = _made(folder, home, make)
    return open_converted(folder, {**info, "name": name})


def _stream_info(name: str, home: Path) -> DatasetInfo:
    """Counts of the records; of those of the Hub that are not here, that they can be fetched."""
    try:
        shards = streams.find_stream(name)
    except DataUnavailable:
        if not name.startswith("hf:"):
            raise
        return DatasetInfo(name, (), (), None, None, 3, None, False, "from the Hugging Face Hub: Parquet files alone")
    told = streams.summary(shards, home)
    ways = f"your own shards in {shards.files.root}"
    return DatasetInfo(name, told.classes, told.counts["train"], sum(told.counts["test"]), None, 3, None, True, ways)


def _published_info(name: str, home: Path) -> DatasetInfo:
    known = PUBLISHED[name]
    available = (
        name == "digits"
        or read_info(home / "data" / name) is not None
        or fetch.found_here(known, fetch.search_folders(home, None))
    )
    return DatasetInfo(
        name, known.classes, known.train_counts, known.test_images, known.image_size, known.channels,
        known.digest, available, "part of scikit-learn" if name == "digits" else fetch.ways(known),
    )  # fmt: skip


def _converted_info(name: str, info: dict[str, Any], image_size: int | None, ways: str, *, single: bool) -> DatasetInfo:
    return DatasetInfo(
        name, tuple(info["classes"]), tuple(info["train_counts"]),
        info["arrays"]["test_images"]["shape"][0], image_size, info["arrays"]["train_images"]["shape"][3],
        info["digest"] if single else None, True, ways,
    )  # fmt: skip


def _folder_info(name: str, home: Path) -> DatasetInfo:
    """Counts of the files; where they were decoded before, counts of those that could be read."""
    listing = folders.list_folder(name.removeprefix("folder:"))
    ways = f"your own pictures in {listing.root}"
    files = folders.known_files_digest(listing, home)
    for folder in sorted((home / "data").glob(f"folder-{files[:32]}-*")) if files is not None else []:
        if (info := read_info(folder)) is not None:
            return _converted_info(name, info, None, ways, single=False)
    return DatasetInfo(
        name, listing.classes, listing.counts("train"), sum(listing.counts("test")), None, 3, None, True, ways
    )
