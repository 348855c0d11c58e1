"""`parquet:PATH`, `webdataset:PATTERN` and `hf:NAME`: labelled pictures in shards, read as a stream.

    parquet:PATH        a .parquet file, a folder of them at any depth, or a pattern with *; columns `image` and `label`
    webdataset:PATTERN  tars with KEY.jpg and KEY.cls (or KEY.json), as shards/train-{000..099}.tar, or with *
    hf:OWNER/NAME       the Parquet files of a data set on the Hugging Face Hub, or hf:OWNER/NAME@REVISION

Which part a shard belongs to is read off its name or folder (train, test, val, valid, validation); without such names,
every fifth record of each class is for test. Shards are decoded once, record by record, into the arrays that folders
are decoded into: neither pictures nor arrays are ever whole in memory. No code that comes with a data set is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from regraft.data.converted import write_info
from regraft.data.fetch import Report
from regraft.data.folders import PART_NAMES, Listing, files_digest, known_files_digest
from regraft.data.home import write_file
from regraft.data.pictures import DECODER_VERSION, Unreadable, in_threads, square_of
from regraft.data.shards import (
    MAX_PICTURE_BYTES,
    Label,
    Record,
    parquet_labels,
    parquet_names,
    parquet_records,
    tar_labels,
    tar_records,
)
from regraft.errors import DataDamaged, DataUnavailable, StudyError, TooFewImages, shown

STREAMS = ("parquet:", "webdataset:", "hf:")  # how names begin
MAX_SHARDS = 100_000
MAX_CLASSES = 100_000
BLOCK, BLOCK_BYTES = 256, 2**26  # records, and their bytes, that are decoded side by side
EVERY = 5  # record of a class is for test, where there are no parts
REVISION = re.compile(r"[\w.-]{1,100}/[\w.-]{1,100}(@[\w./-]{1,100})?")
T = TypeVar("T")
RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")

READERS: dict[str, tuple[str, Callable[[Path], Iterator[Label]], Callable[[Path], Iterator[Record]]]] = {
    "parquet": (".parquet", parquet_labels, parquet_records),
    "webdataset": (".tar", tar_labels, tar_records),
}


@dataclass(frozen=True)
class Stream:
    """The shards of a data set: nothing was opened yet."""

    name: str  # as it was asked for
    kind: str  # of READERS
    files: Listing  # by part; classes and labels are not known

    @property
    def parts(self) -> dict[str, tuple[Path, ...]]:
        return {part: tuple(file for file, _ in files) for part, files in self.files.parts.items()}


@dataclass(frozen=True)
class Summary:
    """What the labels alone tell."""

    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]  # part -> records of each class; test too where it is carved out of train


def is_stream(name: str) -> bool:
    return name.startswith(STREAMS)


def find_stream(name: str, *, offline: bool = True) -> Stream:
    """The shards that `name` stands for. Raises DataUnavailable where there are none, StudyError for parts that do
    not go together."""
    kind, _, place = name.partition(":")
    if kind == "hf":
        root, found = _from_hub(name, place, offline)
        kind = "parquet"
    else:
        root, found = _matching(name, place, READERS[kind][0])
    return Stream(name, kind, Listing(root, (), _by_part(name, root, found)))


def stream_files_digest(stream: Stream, home: Path) -> str:
    """sha256 over every shard's part, relative path and bytes. Known files are not read again."""
    return files_digest(stream.files, home)


def stream_digest(stream: Stream, files: str, image_size: int) -> str:
    """Digest of the data set that the shards give when decoded to `image_size`."""
    words = json.dumps(["regraft stream", 1, stream.kind, DECODER_VERSION, image_size, files])
    return hashlib.sha256(words.encode()).hexdigest()


def summary(stream: Stream, home: Path) -> Summary:
    """Classes and counts, from the labels; kept in `home` as long as the shards do not change."""
    digest = known_files_digest(stream.files, home)
    file = None if digest is None else home / "data" / "stream-index" / f"{digest}.json"
    if file is not None and (known := _read_summary(file)) is not None:
        return known
    found = _summed(stream)
    if file is not None:
        content = {"classes": found.classes, "counts": found.counts}
        write_file(file, json.dumps({**content, "sha256": _sealed(content)}).encode())
    return found


def decode_stream(
    stream: Stream, image_size: int, into: Path, home: Path, *, files: str, report: Report | None = None
) -> None:
    """Decode every record to `image_size` and write the arrays and their record into the folder `into`.

    files: `stream_files_digest`, taken before. Raises DataDamaged when the shards have another one afterwards."""
    told = summary(stream, home)
    place = {name: i for i, name in enumerate(told.classes)}
    total, unreadable = sum(sum(counts) for counts in told.counts.values()), list[str]()
    with contextlib.ExitStack() as opened:  # closed as well where a shard is refused
        made = {part: _Arrays(opened, into, part, sum(counts), image_size) for part, counts in told.counts.items()}
        for done, (part, record, picture) in enumerate(_decoded(stream, image_size), 1):
            if isinstance(picture, str):
                unreadable.append(f"{record.name}: {picture}")
            else:
                made[part].append(picture, place[_class_of(record.label, told.classes)])
            if report is not None and done % BLOCK == 0:
                report(done, total)
        for arrays in made.values():
            arrays.close()
    if stream_files_digest(stream, home) != files:
        raise DataDamaged(f"{stream.name}: shards changed while they were read; nothing was kept. Start again.")
    for part, arrays in made.items():
        read = set(arrays.labels)
        missing = [label for i, label in enumerate(told.classes) if i not in read]
        if missing and (part == "train" or not read):
            raise TooFewImages(f"{stream.name}: no picture of class {missing[0]!r} in {part} can be read")
    write_info(
        into, name=stream.name, classes=told.classes, digest=stream_digest(stream, files, image_size),
        origin=str(stream.files.root), unreadable=tuple(unreadable),
    )  # fmt: skip


# --- which shards -------------------------------------------------------------------------------------------------


def _matching(name: str, place: str, ending: str) -> tuple[Path, list[Path]]:
    """The folder that all lie in, and the files."""
    if not place:
        raise StudyError(f"{name}: no path; give {name}PATH, with PATH a {ending} file, a folder or a pattern")
    patterns = [Path(text).expanduser() for text in _ranges(name, place)]
    found: list[Path] = []
    for pattern in patterns:
        base = Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), pattern.parts))
        rest = str(pattern.relative_to(base)) if base != pattern else ""
        if not rest and base.is_dir():
            rest = f"**/*{ending}"
        found += sorted(base.glob(rest)) if rest else [base] * base.is_file()
        if len(found) > MAX_SHARDS:
            raise StudyError(f"{name}: more than {MAX_SHARDS:,} shards; name fewer, larger ones")
    # Not resolved: a link's own name tells its part. Once each: patterns may overlap.
    files = list(dict.fromkeys(file.absolute() for file in found if file.is_file()))
    if not files or (len(patterns) > 1 and len(files) < len(patterns)):
        raise DataUnavailable(
            f"{name}: {len(files)} of {len(patterns)} files are there; give a {ending} file, a folder of them, or a "
            "pattern"
        )
    parents = [file.parent for file in files]
    root = next(
        folder for folder in (parents[0], *parents[0].parents) if all(p.is_relative_to(folder) for p in parents)
    )
    return root, files


def _ranges(name: str, place: str) -> list[str]:
    """WebDataset's {000..009} written out; of several ranges, every combination."""
    counts = [int(last) - int(first) + 1 for first, last in RANGE.findall(place)]
    if not all(0 < count <= MAX_SHARDS for count in counts) or math.prod(counts) > MAX_SHARDS:
        ranges = shown([found[0] for found in RANGE.finditer(place)], 200)
        raise StudyError(f"{name}: the ranges {ranges} stand for no shard, or for more than {MAX_SHARDS:,}")
    return _written_out(place)


def _written_out(place: str) -> list[str]:
    found = RANGE.search(place)
    if found is None:
        return [place]
    numbers = range(int(found[1]), int(found[2]) + 1)
    texts = (f"{place[: found.start()]}{i:0{len(found[1])}}{place[found.end() :]}" for i in numbers)
    return [whole for text in texts for whole in _written_out(text)]


def _from_hub(name: str, place: str, offline: bool) -> tuple[Path, list[Path]]:
    """Parquet files alone: a data set's scripts are neither fetched nor run."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not REVISION.fullmatch(place):
        raise StudyError(f"{name}: give hf:OWNER/NAME or hf:OWNER/NAME@REVISION, as the Hub has it")
    repository, _, revision = place.partition("@")
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns="*.parquet",
            local_files_only=offline,
        )  # fmt: skip
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        way = f"regraft data get {name}" if offline else "another network, or copy the files and give parquet:PATH"
        raise DataUnavailable(f"{name}: not here ({type(error).__name__}). Try: {way}") from None
    root = Path(folder)
    found = sorted(root.glob("**/*.parquet"))
    if not found:
        raise DataUnavailable(f"{name}: the repository has no Parquet files; give its pictures as folder:PATH")
    places: dict[str, Path] = {}
    for file in found:
        if places.setdefault(_part_of(file.relative_to(root)), file.parent) != file.parent:
            raise StudyError(
                f"{name}: has several configurations, in {places[_part_of(file.relative_to(root))].name} and "
                f"{file.parent.name}; name one by its folder: parquet:{file.parent}"
            )
    return root, found


def _by_part(name: str, root: Path, files: list[Path]) -> dict[str, tuple[tuple[Path, int], ...]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_part_of(file.relative_to(root)), []).append(file)
    if "" in found:
        if len(found) > 1:
            raise StudyError(
                f"{name}: {found[''][0].name} is named after no part, others are; name all shards train, test or val"
            )
        found = {"train": found[""]}
    if "train" not in found:
        raise StudyError(f"{name}: has the parts {', '.join(found)}, and needs train")
    return {part: tuple((file, 0) for file in found[part]) for part in PART_NAMES.values() if part in found}


def _part_of(path: Path) -> str:
    """By the file's own name, else by the nearest folder that is named so; "" if none is."""
    for text in (path.name, *reversed(path.parts[:-1])):
        for word in re.split(r"[-_.]", text.lower()):
            if word in PART_NAMES:
                return PART_NAMES[word]
    return ""


# --- what the labels tell -----------------------------------------------------------------------------------------


def _summed(stream: Stream) -> Summary:
    labels_of = READERS[stream.kind][1]
    by_part: dict[str, Counter[Label]] = {}
    labels_in = ((p, label, None) for p, files in stream.parts.items() for file in files for label in labels_of(file))
    for part, label, _ in _parted(stream, labels_in):
        counted = by_part.setdefault(part, Counter())
        counted[label] += 1
        if len(counted) > MAX_CLASSES:
            raise StudyError(f"{stream.name}: more than {MAX_CLASSES:,} different labels; these are no classes")
    labels = set().union(*by_part.values())
    classes = _classes(stream, labels)
    if len(classes) < 2:
        raise StudyError(f"{stream.name}: {len(classes)} class(es); at least two are needed")
    if "test" not in by_part:
        raise TooFewImages(f"{stream.name}: no class has {EVERY} records, so that none is for test; add a test part")
    counts = {}
    for part, counted in by_part.items():
        named = Counter[str]()
        for label, n in counted.items():
            named[_class_of(label, classes)] += n
        counts[part] = tuple(named[name] for name in classes)
    if lacking := [name for name, n in zip(classes, counts["train"], strict=True) if not n]:
        raise TooFewImages(f"{stream.name}: no training record of class {lacking[0]!r}")
    return Summary(classes, counts)


def _parted(stream: Stream, records: Iterable[tuple[str, Label, T]]) -> Iterator[tuple[str, Label, T]]:
    """The same with the test part carved out, where there is none: every fifth record of each class."""
    carve = "test" not in stream.parts
    seen: Counter[Label] = Counter()
    for part, label, record in records:
        seen[label] += part == "train"
        yield "test" if carve and part == "train" and seen[label] % EVERY == 0 else part, label, record


def _classes(stream: Stream, labels: set[Label]) -> tuple[str, ...]:
    """In the order of their numbers, or sorted by name."""
    numbers = [label for label in labels if isinstance(label, int)]
    if not numbers:
        return tuple(sorted(map(str, labels)))
    if len(numbers) < len(labels) or max(numbers) >= MAX_CLASSES:
        raise DataDamaged(f"{stream.name}: labels are numbers below {MAX_CLASSES:,} or names, got {shown(labels, 200)}")
    names = parquet_names(stream.parts["train"][0]) if stream.kind == "parquet" else None
    if names is not None and len(set(names)) == len(names) > max(numbers):
        return names
    return tuple(map(str, range(max(numbers) + 1)))


def _class_of(label: Label, classes: tuple[str, ...]) -> str:
    return classes[label] if isinstance(label, int) else label


def _sealed(content: dict[str, Any]) -> str:
    """A changed name in the index would become the name of a class."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_summary(file: Path) -> Summary | None:
    try:
        content = json.loads(file.read_text("utf-8"))
        if content.pop("sha256") != _sealed(content):
            return None
        counts = {str(part): tuple(map(int, numbers)) for part, numbers in content["counts"].items()}
        return Summary(tuple(map(str, content["classes"])), counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # none yet, cut off, or of an older version: the labels are read again


# --- pictures -----------------------------------------------------------------------------------------------------


def _decoded(stream: Stream, size: int) -> Iterator[tuple[str, Record, NDArray[np.uint8] | str]]:
    """(part, record, picture or the reason why it cannot be read) of every record, a block at a time."""
    records_of = READERS[stream.kind][2]
    whole = (
        (part, record.label, record)
        for part, files in stream.parts.items() for file in files for record in records_of(file)
    )  # fmt: skip
    for block in _blocks(_parted(stream, whole)):
        pictures = in_threads(lambda one: _picture(one[2], size), block)
        for (part, _, record), picture in zip(block, pictures, strict=True):
            yield part, record, picture


def _blocks(records: Iterator[tuple[str, Label, Record]]) -> Iterator[list[tuple[str, Label, Record]]]:
    """Few enough records, of few enough bytes, to be in memory together."""
    block: list[tuple[str, Label, Record]] = []
    held = 0
    for one in records:
        block.append(one)
        held += len(one[2].picture)
        if len(block) == BLOCK or held > BLOCK_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block


def _picture(record: Record, size: int) -> NDArray[np.uint8] | str:
    if len(record.picture) > MAX_PICTURE_BYTES:
        return f"a file of {len(record.picture):,} bytes"
    try:
        return square_of(io.BytesIO(record.picture), size)
    except Unreadable as error:
        return str(error)


class _Arrays:
    """PART_images.npy, written as it comes and never mapped, and PART_labels.npy."""

    def __init__(self, opened: contextlib.ExitStack, folder: Path, part: str, most: int, size: int) -> None:
        self.labels: list[int] = []
        self._labels_file, self._size, self._most = folder / f"{part}_labels.npy", size, most
        self._file = opened.enter_context((folder / f"{part}_images.npy").open("xb"))
        self._start = _header(self._file, most, size)

    def append(self, picture: NDArray[np.uint8], label: int) -> None:
        self._file.write(np.ascontiguousarray(picture).data)
        self.labels.append(label)

    def close(self) -> None:
        """The header once more, with as many pictures as could be read."""
        self._file.seek(0)
        assert _header(self._file, len(self.labels), self._size) == self._start
        self._file.close()
        np.save(self._labels_file, np.array(self.labels, np.int64))


def _header(file: IO[bytes], count: int, size: int) -> int:
    """Of an array (count, size, size, 3) of bytes; numpy leaves room in it for any count. Returns its length."""
    described: dict[str, Any] = {"shape": (count, size, size, 3), "fortran_order": False, "descr": "|u1"}
    write_array_header_1_0(file, described)
    return file.tell()
