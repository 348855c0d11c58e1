"""The manifest of a packed folder: what is in it, which files hold it, and what each must contain."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.data.catalogue import PUBLISHED
from regraft.data.home import write_file
from regraft.data.torchvision_sets import TORCHVISION_SETS
from regraft.errors import DataDamaged, DataUnavailable

MANIFEST = "regraft-pack.json"
VERSION = 1
# Names in a manifest become names of files here: plain ones only.
PART_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
WEIGHTS_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*\.safetensors")
DECODED_FOLDER = re.compile(r"folder-[0-9a-f]{32}-\d+")


@dataclass(frozen=True)
class PartFile:
    """One file of a pack."""

    file: str
    bytes: int
    sha256: str
    array: str  # "train_images", "test_labels", ...; of weights: ""
    start: int  # of images or labels in the array; of weights: of bytes in the file
    count: int


@dataclass(frozen=True)
class PackedSet:
    """A data set as it lies in home/data/FOLDER."""

    folder: str
    info: dict[str, Any]  # its info.json
    columns: int  # images in a row of a mosaic
    parts: tuple[PartFile, ...]

    @property
    def name(self) -> str:
        return str(self.info["name"])

    def shape(self, array: str) -> tuple[int, ...]:
        return tuple(self.info["arrays"][array]["shape"])

    @property
    def by_files(self) -> bool:
        """A folder of pictures: its digest is of the picture files, which are not in the pack."""
        return DECODED_FOLDER.fullmatch(self.folder) is not None


@dataclass(frozen=True)
class PackedWeights:
    """A file of pretrained weights as it lies in home/weights."""

    file: str
    bytes: int
    sha256: str
    parts: tuple[PartFile, ...]

    @property
    def name(self) -> str:
        return self.file


@dataclass(frozen=True)
class Manifest:
    """All that a packed folder holds."""

    datasets: tuple[PackedSet, ...] = ()
    weights: tuple[PackedWeights, ...] = ()
    regraft: str = field(default_factory=lambda: version("regraft"))

    def items(self) -> Iterator[PackedSet | PackedWeights]:
        yield from self.datasets
        yield from self.weights

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for item in self.items() for part in item.parts)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {"format": "regraft pack", "version": VERSION, **asdict(manifest)}
    write_file(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """Raises DataUnavailable without one, DataDamaged for one that cannot be trusted."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataUnavailable(
            f"{folder} has no {MANIFEST}, the list of what was packed. Name the folder that `regraft data pack` wrote, "
            "and copy that file along with the parts."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataDamaged(f"{path} is no JSON ({error}); copy it again") from None
    try:
        return _parsed(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataDamaged(
            f"{path} is not a manifest of version {VERSION} ({type(error).__name__}: {error}). Copy it again, or pack "
            "and unpack with the same version of regraft."
        ) from None


def _parsed(content: dict[str, Any]) -> Manifest:
    if (content["format"], content["version"]) != ("regraft pack", VERSION):
        raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
    sets = tuple(PackedSet(**{**entry, "parts": _parts(entry["parts"])}) for entry in content["datasets"])
    weights = tuple(PackedWeights(**{**entry, "parts": _parts(entry["parts"])}) for entry in content["weights"])
    for packed in sets:
        _check_set(packed)
    for file in weights:
        if not WEIGHTS_NAME.fullmatch(file.file):
            raise ValueError(f"a file of weights named {file.file!r}")
        _check_cover(file.file, file.parts, file.bytes)
    return Manifest(sets, weights, str(content["regraft"]))


def _parts(entries: list[dict[str, Any]]) -> tuple[PartFile, ...]:
    parts = tuple(PartFile(**entry) for entry in entries)
    if odd := [part.file for part in parts if not PART_NAME.fullmatch(part.file)]:
        raise ValueError(f"a part named {odd[0]!r}")
    if any(type(number) is not int for part in parts for number in (part.bytes, part.start, part.count)):
        raise ValueError("a part whose place is no whole number")
    return parts


def _check_set(packed: PackedSet) -> None:
    if type(packed.columns) is not int or packed.columns < 1:
        raise ValueError(f"{packed.name}: a mosaic of {packed.columns!r:.80} columns")
    if not all(type(side) is int for array in packed.info["arrays"] for side in packed.shape(array)):
        raise ValueError(f"{packed.name}: a side of an array that is no whole number")
    own = packed.folder in (packed.name, *([] if packed.name in PUBLISHED else [_sized(packed)]))
    known = packed.name in PUBLISHED or packed.name in TORCHVISION_SETS
    if not (packed.by_files and packed.name.startswith("folder:")) and not (own and known):
        raise ValueError(f"a data set {packed.name!r} for the folder {packed.folder!r}")
    for array in packed.info["arrays"]:
        if not re.fullmatch(r"(train|test|validation)_(images|labels)", array):
            raise ValueError(f"an array named {array!r}")
        parts = tuple(part for part in packed.parts if part.array == array)
        shape = packed.shape(array)
        if len(shape) != (4 if array.endswith("images") else 1) or math.prod(shape) < 1:
            raise ValueError(f"{packed.name}: {array} of shape {shape}")
        _check_cover(f"{packed.name}: {array}", parts, shape[0])


def _sized(packed: PackedSet) -> str:
    return f"{packed.name}-{packed.shape('train_images')[1]}"


def _check_cover(name: str, parts: tuple[PartFile, ...], count: int) -> None:
    """The parts follow one another without a gap."""
    end = 0
    for part in parts:
        if part.start != end or part.count < 1:
            raise ValueError(f"{name}: {part.file} starts at {part.start}, not {end}")
        end += part.count
    if end != count:
        raise ValueError(f"{name}: parts hold {end} of {count}")
