"""Data sets and weights as files of a limited size, for a machine that the network does not reach.

`pack` writes lossless parts with checksums; `unpack` leaves in the home folder what `data get` would have left.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from regraft.data import converted
from regraft.data.converted import read_info
from regraft.data.datasets import ALIASES, dataset_digest, dataset_info
from regraft.data.fetch import Report
from regraft.data.home import home as default_home
from regraft.data.home import write_file
from regraft.data.mosaics import encode_mosaic, layout_for
from regraft.data.packed import MANIFEST, Manifest, PackedSet, PackedWeights, PartFile, read_manifest, write_manifest
from regraft.data.staging import Staging, installed, problem_of
from regraft.errors import DataUnavailable, StudyError, WeightsUnavailable

PART_BYTES = 60_000_000
MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit


def pack(
    names: Sequence[str],
    folder: Path,
    part_bytes: int = PART_BYTES,
    *,
    weights: Sequence[str] = (),
    image_size: int | None = None,
    home: Path | None = None,
    report: Report | None = None,
) -> Manifest:
    """Write the data sets `names` and the pretrained weights of the networks `weights` into `folder`.

    part_bytes: of each file at most.  image_size: which one of a set that is kept at several.  What else was packed
    into `folder` stays, and what is there already is not made again.  report(done, total): bytes read.
    Raises DataUnavailable and WeightsUnavailable for what is not on this machine, DataDamaged, StudyError."""
    home = default_home() if home is None else home
    if not names and not weights:
        raise StudyError("nothing to pack: name data sets, weights (--weights NETWORK), or both")
    sources = [_converted(name, image_size, home) for name in names]
    files = [file for network in weights for file in _weights_files(network, home)]
    earlier = read_manifest(folder) if (folder / MANIFEST).exists() else Manifest()
    total = sum(p.stat().st_size for source in sources for p in source.glob("*.npy"))
    moved = _moving(report, total + sum(file.stat().st_size for file in files))
    for source in sources:
        earlier = _with_set(earlier, _pack_set(source, folder, part_bytes, earlier, moved), folder)
    for file in files:
        earlier = _with_weights(earlier, _pack_weights(file, folder, part_bytes, moved), folder)
    return earlier


def unpack(folder: Path, home: Path | None = None, report: Report | None = None) -> dict[str, str]:
    """Put everything that `pack` wrote into the home folder; {name: "unpacked" or "there already"}.

    Every part and then the whole content is compared with its digest. What parts hold is kept between calls, so parts
    may come one by one, and an interrupted unpacking goes on. report(done, total): bytes of parts.
    Raises DataUnavailable naming the parts that are missing, DataDamaged for the first that is not as packed."""
    home = default_home() if home is None else home
    manifest = read_manifest(folder)
    moved = _moving(report, manifest.bytes)
    states: dict[str, str] = {}
    missing: list[str] = []
    for item in manifest.items():
        place = home / "data" / item.folder if isinstance(item, PackedSet) else home / "weights" / item.file
        if installed(item, place):
            states[item.name] = "there already"
            moved(sum(part.bytes for part in item.parts))
            continue
        staging = Staging(item, place)
        lacking = staging.take_parts(item, folder, moved)
        missing += lacking
        if not lacking:
            staging.install(item, place)
            states[item.name] = "unpacked"
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataUnavailable(
            f"{folder} lacks {shown}. Copy what is missing there from where it was packed and run this again; the "
            "other parts are unpacked, kept for a day, and need not be there any more."
        )
    return states


def _moving(report: Report | None, total: int) -> Callable[[int], None]:
    """A function that adds bytes to what was reported."""
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if report is not None:
            report(done, total)

    return moved


# --- packing ----------------------------------------------------------------------------------------------------


def _converted(name: str, image_size: int | None, home: Path) -> Path:
    """The folder in which the set `name` lies as arrays."""
    own = ALIASES.get(name.lower(), name.lower())
    info = dataset_info(name, home)  # raises UnknownName
    if name.startswith("folder:"):
        digest = dataset_digest(name, image_size, home)
        found = [f for f in (home / "data").glob("folder-*-*") if (read_info(f) or {}).get("digest") == digest]
    elif info.image_size is not None:
        found = [home / "data" / own] if read_info(home / "data" / own) else []
    else:
        sizes = f"{own}-{image_size}" if image_size else f"{own}-*"
        found = [f for f in sorted((home / "data").glob(sizes)) if (read_info(f) or {}).get("name") == own]
    if not found:
        size = f" --image-size {image_size}" if image_size else ""
        raise DataUnavailable(f"{name} is not on this machine as arrays. First: regraft data get {name}{size}")
    if len(found) > 1:
        raise StudyError(f"{name} is here as {', '.join(f.name for f in found)}; choose one with --image-size")
    return found[0]


def _weights_files(network: str, home: Path) -> list[Path]:
    stored = {file: _network_of(file) for file in sorted((home / "weights").glob("*.safetensors"))}
    found = [file for file, own in stored.items() if own == network]
    if not found:
        here = ", ".join(sorted({own for own in stored.values() if own})) or "none"
        raise WeightsUnavailable(
            f"no pretrained weights of {network!r} in {home / 'weights'}; those of: {here}. Run a study that uses them "
            "once where the network is reached; they are then kept there."
        )
    return found


def _network_of(file: Path) -> str | None:
    """From the header of a safetensors file: 8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length)) if length < MAX_HEADER_BYTES else {}
    network = header.get("__metadata__", {}).get("network")
    return network if isinstance(network, str) else None


def _pack_set(
    source: Path, folder: Path, part_bytes: int, earlier: Manifest, moved: Callable[[int], None]
) -> PackedSet:
    info = read_info(source)
    assert info is not None
    layout = layout_for(info["arrays"]["train_images"]["shape"][1], part_bytes)
    same = next(
        (p for p in earlier.datasets if (p.folder, p.info, p.columns) == (source.name, info, layout.columns)), None
    )
    if same is not None and all(part.bytes <= part_bytes and problem_of(folder, part) is None for part in same.parts):
        moved(sum((source / f"{array}.npy").stat().st_size for array in info["arrays"]))
        return same
    converted.verify(source, info)
    parts: list[PartFile] = []
    for array, entry in info["arrays"].items():
        n = entry["shape"][0]
        step = layout.images if array.endswith("images") else n
        for number, start in enumerate(range(0, n, step)):
            # Opened anew for each part: pages that were read would add up to the whole array.
            rows = np.load(source / f"{array}.npy", mmap_mode="r", allow_pickle=False)[start : start + step]
            if array.endswith("images"):
                name, data = f"{source.name}-{array}-{number:03}.webp", encode_mosaic(rows, layout.columns)
            else:
                name, data = f"{source.name}-{array}.zlib", zlib.compress(rows.astype("<i8").tobytes(), 9)
            parts.append(_write_part(folder, name, data, part_bytes, array=array, start=start, count=len(rows)))
            moved(rows.nbytes)
    return PackedSet(source.name, info, layout.columns, tuple(parts))


def _pack_weights(file: Path, folder: Path, part_bytes: int, moved: Callable[[int], None]) -> PackedWeights:
    digest, start = hashlib.sha256(), 0
    parts: list[PartFile] = []
    with file.open("rb") as opened:
        while data := opened.read(part_bytes):
            digest.update(data)
            name = f"{file.name}.{len(parts):03}"
            parts.append(_write_part(folder, name, data, part_bytes, array="", start=start, count=len(data)))
            start += len(data)
            moved(len(data))
    return PackedWeights(file.name, start, digest.hexdigest(), tuple(parts))


def _write_part(
    folder: Path, name: str, data: bytes, part_bytes: int, *, array: str, start: int, count: int
) -> PartFile:
    if len(data) > part_bytes:
        raise StudyError(f"{name} takes {len(data):,} bytes, more than --part-size {part_bytes:,}; give a larger one")
    part = PartFile(name, len(data), hashlib.sha256(data).hexdigest(), array, start, count)
    if problem_of(folder, part) is not None:
        write_file(folder / name, data)
    return part


def _with_set(manifest: Manifest, packed: PackedSet, folder: Path) -> Manifest:
    others = tuple(other for other in manifest.datasets if other.folder != packed.folder)
    return _rewritten(manifest, replace(manifest, datasets=(*others, packed)), folder)


def _with_weights(manifest: Manifest, packed: PackedWeights, folder: Path) -> Manifest:
    others = tuple(other for other in manifest.weights if other.file != packed.file)
    return _rewritten(manifest, replace(manifest, weights=(*others, packed)), folder)


def _rewritten(before: Manifest, after: Manifest, folder: Path) -> Manifest:
    """Write the manifest, then remove the parts that it no longer names (of another part size)."""
    write_manifest(folder, after)
    kept = {part.file for item in after.items() for part in item.parts}
    for name in {part.file for item in before.items() for part in item.parts} - kept:
        (folder / name).unlink(missing_ok=True)
    return after
