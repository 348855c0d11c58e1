"""Further classification sets with a train/test split, read through torchvision.datasets.

regraft fetches and unpacks the published files itself (md5 compared, archives checked), lays them out as
torchvision expects, and lets torchvision read them with `download=False`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from regraft.data.archive import extract
from regraft.data.converted import write_info
from regraft.data.fetch import Report, download, search_folders
from regraft.data.formats import MOST_CLASSES
from regraft.data.home import new_folder
from regraft.data.pictures import Unreadable, fit_square, in_threads
from regraft.errors import DataDamaged, DataUnavailable

MAX_DOWNLOAD_BYTES = 32 * 2**30
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"


@dataclass(frozen=True)
class File:
    """A published file that torchvision wants to find."""

    url: str
    md5: str
    folder: str = ""  # below torchvision's root: where the file, or what is in it, belongs
    unpack: bool = True


@dataclass(frozen=True)
class TorchvisionSet:
    """How torchvision.datasets reads a data set, and what it reads."""

    kind: str  # class in torchvision.datasets
    train: tuple[dict[str, Any], ...]  # its arguments; several parts are joined
    test: dict[str, Any]
    files: tuple[File, ...]
    marker: str  # a path below torchvision's root that is there when the set is
    image_size: int | None  # side of its images; None when they differ
    channels: int = 3


def _split(*names: str) -> tuple[dict[str, Any], ...]:
    return tuple({"split": name} for name in names)


# Where a set has an official validation part, it counts as training data: regraft carves validation images
# out of the budget itself.
TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "svhn": TorchvisionSet(
        "SVHN", _split("train"), {"split": "test"}, marker="test_32x32.mat", image_size=32,
        files=(
            File("http://ufldl.stanford.edu/housenumbers/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373",
                 unpack=False),
            File("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3",
                 unpack=False),
        ),
    ),
    "usps": TorchvisionSet(
        "USPS", ({"train": True},), {"train": False}, marker="usps.t.bz2", image_size=16, channels=1,
        files=(
            File("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.bz2",
                 "ec16c51db3855ca6c91edd34d0e9b197", unpack=False),
            File("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.t.bz2",
                 "8ea070ee2aca1ac39742fdd1ef5ed118", unpack=False),
        ),
    ),
    "stl10": TorchvisionSet(
        "STL10", _split("train"), {"split": "test"}, marker="stl10_binary", image_size=96,
        files=(
            File("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                 "91f7769df0f17e558f3565bffb0c7dfb"),
        ),
    ),
    "flowers102": TorchvisionSet(
        "Flowers102", _split("train", "val"), {"split": "test"}, marker="flowers-102/jpg", image_size=None,
        files=(
            File(f"{_VGG}flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
            File(f"{_VGG}flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102",
                 unpack=False),
            File(f"{_VGG}flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102",
                 unpack=False),
        ),
    ),
    "oxford-pets": TorchvisionSet(
        "OxfordIIITPet", _split("trainval"), {"split": "test"},
        marker="oxford-iiit-pet/images", image_size=None,
        files=(
            File(f"{_VGG}pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet"),
            File(f"{_VGG}pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f",
                 "oxford-iiit-pet"),
        ),
    ),
    "gtsrb": TorchvisionSet(
        "GTSRB", _split("train"), {"split": "test"}, marker="gtsrb/GTSRB", image_size=None,
        files=(
            File(f"{_GTSRB}GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478", "gtsrb"),
            File(f"{_GTSRB}GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", "gtsrb"),
            File(f"{_GTSRB}GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", "gtsrb"),
        ),
    ),
    "food101": TorchvisionSet(
        "Food101", _split("train"), {"split": "test"}, marker="food-101/images", image_size=None,
        files=(
            File("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),
        ),
    ),
    "dtd": TorchvisionSet(
        "DTD", _split("train", "val"), {"split": "test"}, marker="dtd/dtd", image_size=None,
        files=(File(f"{_VGG}dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd"),),
    ),
    "country211": TorchvisionSet(
        "Country211", _split("train", "valid"), {"split": "test"}, marker="country211", image_size=None,
        files=(
            File("https://openaipublic.azureedge.net/clip/data/country211.tgz",
                 "84988d7644798601126c29e9877aab6a"),
        ),
    ),
    "imagenette": TorchvisionSet(
        "Imagenette", ({"split": "train", "size": "160px"},), {"split": "val", "size": "160px"},
        marker="imagenette2-160", image_size=None,
        files=(
            File("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
                 "e793b78cc4c9e9a4ccc0c1155377a412"),
        ),
    ),
}  # fmt: skip


class Reader(Protocol):
    """What a torchvision data set is to us."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


def convert(
    name: str, image_size: int, into: Path, home: Path, *, source_dir: Path | None, offline: bool,
    report: Report | None,
) -> None:  # fmt: skip
    """Write the set's arrays, decoded to `image_size`, and their record into the folder `into`."""
    entry = TORCHVISION_SETS[name]
    root, origin = _locate(name, entry, home, source_dir, offline or source_dir is not None, report)
    parts: dict[str, list[Reader]] = {
        "train": [_open(entry, root, arguments) for arguments in entry.train],
        "test": [_open(entry, root, entry.test)],
    }
    classes = _class_names(name, parts)
    for part, readers in parts.items():
        n = sum(len(reader) for reader in readers)
        if n == 0:
            raise DataDamaged(f"{name}: no pictures in the {part} part of {root}; fetch it again")
        images = open_memmap(
            into / f"{part}_images.npy", mode="w+", dtype=np.uint8,
            shape=(n, image_size, image_size, entry.channels),
        )  # fmt: skip
        labels = np.empty(n, np.int64)
        start = 0
        for reader in readers:
            _read_all(name, reader, images[start : start + len(reader)], labels[start : start + len(reader)], report)
            start += len(reader)
        images.flush()
        if not 0 <= labels.min() <= labels.max() < len(classes):
            raise DataDamaged(f"{name}: {part} labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
        np.save(into / f"{part}_labels.npy", labels)
    write_info(into, name=name, classes=classes, digest=None, origin=origin)


def found_here(name: str, folders: Sequence[Path]) -> bool:
    """Whether the set seems to lie in one of the folders; torchvision is not asked."""
    return any((folder / TORCHVISION_SETS[name].marker).exists() for folder in folders)


def _locate(
    name: str,
    entry: TorchvisionSet,
    home: Path,
    source_dir: Path | None,
    offline: bool,
    report: Report | None,
) -> tuple[Path, str]:
    own = home / "data" / "raw" / name
    folders = (*search_folders(home, source_dir), *([] if source_dir is not None else [own]))
    if (root := _readable_root(entry, folders)) is not None:
        return root, str(root)
    reason = "not tried (offline, or a folder was named)"
    if not offline:
        try:
            _fetch(entry, own, report)
            return own, entry.files[0].url
        except DataUnavailable as error:
            reason = str(error)
    files = ", ".join(f"{file.url} (md5 {file.md5})" for file in entry.files)
    raise DataUnavailable(
        f"{name} is not in {', '.join(map(str, folders))} and could not be fetched.\n  tried {reason}\n"
        f"Three ways: 1. with internet: regraft data get {name}; 2. a package mirror: none is known for this "
        f"data set; 3. put the files there: {files}, laid out for torchvision.datasets.{entry.kind}(DIR), "
        f"with regraft data get {name} --from DIR."
    )


def _readable_root(entry: TorchvisionSet, folders: Sequence[Path]) -> Path | None:
    return next((folder for folder in folders if folder.is_dir() and _can_open(entry, folder)), None)


def _can_open(entry: TorchvisionSet, root: Path) -> bool:
    if not (root / entry.marker).exists():  # the usual case, told without importing torchvision
        return False
    try:
        for arguments in (*entry.train, entry.test):
            _open(entry, root, arguments)
    except (RuntimeError, FileNotFoundError):  # torchvision's "not found or corrupted"
        return False
    return True


def _open(entry: TorchvisionSet, root: Path, arguments: dict[str, Any]) -> Reader:
    datasets = importlib.import_module("torchvision.datasets")
    try:
        reader: Reader = getattr(datasets, entry.kind)(str(root), download=False, **arguments)
    except (RuntimeError, FileNotFoundError):
        raise  # torchvision's "not found or corrupted"
    except Exception as error:  # of damaged lists, tables and .mat files its readers raise errors of nearly every kind
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataDamaged(f"{root}: torchvision cannot read it as {entry.kind} ({what}); fetch it again") from None
    return reader


def _fetch(entry: TorchvisionSet, root: Path, report: Report | None) -> None:
    """Download and unpack everything, then give the folder its name: it is never there in part."""
    if root.exists():
        raise DataDamaged(f"torchvision cannot read what lies in {root}; delete that folder to fetch it again")
    with new_folder(root) as folder:
        for file in entry.files:
            target = folder / file.folder
            path = target / file.url.rsplit("/", 1)[-1]
            download(file.url, path, f"md5:{file.md5}", MAX_DOWNLOAD_BYTES, report)
            if file.unpack:
                extract(path, target)
                path.unlink()


def _class_names(name: str, parts: dict[str, list[Reader]]) -> tuple[str, ...]:
    """torchvision's names where it has them (a set's synonyms joined by "/"), else the labels as numbers."""
    names = getattr(parts["train"][0], "classes", None)
    if names:
        return tuple(one if isinstance(one, str) else "/".join(one) for one in names)
    labels = [_label(reader, i) for reader in parts["train"] for i in range(len(reader))]
    if not 0 <= max(labels, default=0) < MOST_CLASSES:
        raise DataDamaged(f"{name}: a label of {max(labels):,}; this is not the published data set")
    return tuple(str(label) for label in range(max(labels, default=-1) + 1))


def _label(reader: Reader, index: int) -> int:
    """Without decoding the picture; torchvision keeps the labels under one of these names."""
    kept = next(name for name in ("labels", "_labels", "targets", "_samples") if hasattr(reader, name))
    value = getattr(reader, kept)[index]
    return int(value[1] if kept == "_samples" else value)


def _read_all(
    name: str, reader: Reader, images: NDArray[np.uint8], labels: NDArray[np.int64], report: Report | None
) -> None:
    side, channels = images.shape[1], images.shape[3]

    def read(index: int) -> NDArray[np.uint8] | str:
        picture, labels[index] = reader[index]
        if picture.size == (side, side):
            return np.asarray(picture.convert("RGB" if channels == 3 else "L")).reshape(side, side, channels)
        return fit_square(picture, side)

    try:
        for index, picture in enumerate(in_threads(read, range(len(reader)), report)):
            images[index] = picture
    except (Unreadable, OSError, ValueError) as error:
        raise DataDamaged(f"{name}: a picture of the published set cannot be read ({error}); fetch it again") from None
