"""Shards of labelled pictures, read one record after the other: Parquet files and WebDataset's tars.

Nothing that a shard says is trusted: names lead nowhere, sizes are bounded before they are read, a picture is decoded
by `data.pictures` alone, and no code of a data set is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from regraft.data.archive import READ_ERRORS, Member, members
from regraft.data.pictures import SUFFIXES
from regraft.errors import DataDamaged, DataUnavailable, StudyError, shown

MAX_PICTURE_BYTES = 64 * 2**20  # of a file; larger ones are no pictures to learn from
MAX_LABEL_BYTES = 2**20
MAX_LABEL_LETTERS = 200
BATCH = 64  # records of a Parquet file that are in memory at once
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "picture"), ("label", "labels", "fine_label", "class", "target")

Label = int | str


@dataclass(frozen=True)
class Record:
    """A picture file as it lies in a shard, not decoded, and what it shows."""

    name: str  # for messages
    picture: bytes
    label: Label


# --- Parquet ------------------------------------------------------------------------------------------------------


def parquet_labels(file: Path) -> Iterator[Label]:
    """The label of every record, reading no picture."""
    opened = _open_parquet(file)
    column = _column(file, opened, LABEL_COLUMNS, "labels")
    for batch in _batches(file, opened, [column], 64 * BATCH):
        yield from (_checked_label(file, label) for label in batch.column(0).to_pylist())


def parquet_records(file: Path) -> Iterator[Record]:
    """Every record, in order; a few at once are in memory."""
    opened = _open_parquet(file)
    label, image = _column(file, opened, LABEL_COLUMNS, "labels"), _column(file, opened, IMAGE_COLUMNS, "pictures")
    i = 0
    for batch in _batches(file, opened, [image, label], BATCH):
        for picture, name in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
            content = picture.get("bytes") if isinstance(picture, dict) else picture
            if not isinstance(content, bytes):
                raise DataDamaged(
                    f"{file}: record {i} of column {image!r} holds no bytes of a picture (a path is not followed)"
                )
            yield Record(f"{file.name} record {i}", content, _checked_label(file, name))
            i += 1


def parquet_names(file: Path) -> tuple[str, ...] | None:
    """Names of the classes that whole numbers stand for, as `datasets` writes them beside the columns; None: none."""
    opened = _open_parquet(file)
    column = _column(file, opened, LABEL_COLUMNS, "labels")
    try:
        told = json.loads((opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        names = told["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(str(_checked_label(file, name)) for name in names) if sound else None


def _open_parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataUnavailable(
            f"{file}: to read Parquet files pyarrow is needed; install it with: python -m pip install 'regraft[hf]'"
        ) from None
    return _arrow(file, lambda: pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False))


def _batches(file: Path, opened: Any, columns: list[str], size: int) -> Iterator[Any]:
    batches = _arrow(file, lambda: opened.iter_batches(batch_size=size, columns=columns, use_threads=False))
    while (batch := _arrow(file, lambda: next(batches, None))) is not None:
        yield batch


def _arrow(file: Path, work: Callable[[], Any]) -> Any:
    """What pyarrow gives. Raises DataDamaged for what it refuses to read."""
    from pyarrow import ArrowException

    try:
        return work()
    except (ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataDamaged(f"{file}: not readable as Parquet ({shown(str(error), 200)}); fetch it again") from None


def _column(file: Path, opened: Any, wanted: Sequence[str], what: str) -> str:
    names = list(opened.schema_arrow.names)
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise StudyError(
            f"{file}: no column of {what}; it is one of {', '.join(wanted)}, and the file has {shown(names, 200)}. "
            "Rename the column"
        )
    return found


# --- WebDataset ---------------------------------------------------------------------------------------------------


def tar_labels(file: Path) -> Iterator[Label]:
    """The label of every record, reading no picture."""
    for _, parts in _samples(file):
        yield _tar_label(file, parts)


def tar_records(file: Path) -> Iterator[Record]:
    """Every record, in order: members whose names are the same up to the first dot, a picture and a label each."""
    for key, parts in _samples(file, pictures=True):
        name = next(end for end in parts if f".{end.rpartition('.')[2]}" in SUFFIXES)
        yield Record(f"{file.name} {key}", parts[name], _tar_label(file, parts))


def _samples(file: Path, *, pictures: bool = False) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, ending -> content) of consecutive members; of pictures b"" unless `pictures`."""
    key, parts = "", dict[str, bytes]()
    for member in members(file):
        path = PurePosixPath(member.name)
        stem, _, ending = path.name.partition(".")
        ending, own = ending.lower(), str(path.parent / stem)
        picture = f".{ending.rpartition('.')[2]}" in SUFFIXES
        if not picture and ending not in ("cls", "json"):
            continue  # captions, masks and so on
        if own != key and parts:
            yield key, _whole(file, key, parts)
            parts = {}
        key = own
        parts[ending] = _content(file, member, MAX_PICTURE_BYTES if picture else MAX_LABEL_BYTES) if (
            pictures or not picture
        ) else b""  # fmt: skip
    if parts:
        yield key, _whole(file, key, parts)


def _content(file: Path, member: Member, most: int) -> bytes:
    if member.size > most:
        raise DataDamaged(f"{file}: {member.name!r} states {member.size:,} bytes, at most {most:,} are read")
    try:
        with member.open() as opened:
            return opened.read(member.size)
    except READ_ERRORS as error:
        raise DataDamaged(f"{file}: {member.name!r} cannot be read ({error}); fetch the shard again") from None


def _whole(file: Path, key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
    has_picture = any(f".{ending.rpartition('.')[2]}" in SUFFIXES for ending in parts)
    if not has_picture or not parts.keys() & {"cls", "json"}:
        lacks = "label (KEY.cls, or KEY.json with a `label`)" if has_picture else "picture"
        raise StudyError(f"{file}: {key!r} has no {lacks}; every record needs both, one after the other")
    return parts


def _tar_label(file: Path, parts: dict[str, bytes]) -> Label:
    try:
        if "cls" in parts:
            text = parts["cls"].decode().strip()
            return _checked_label(file, int(text) if text.isdecimal() and text.isascii() else text)
        told = json.loads(parts["json"])
        return _checked_label(file, next(told[name] for name in (*LABEL_COLUMNS, "cls") if name in told))
    except (ValueError, RecursionError, TypeError, StopIteration):
        given = parts["cls"] if "cls" in parts else parts["json"]
        raise DataDamaged(
            f"{file}: a record's label cannot be read: {shown(given)}. It is a number or name in KEY.cls, or one of "
            f"{', '.join(LABEL_COLUMNS)}, cls in KEY.json"
        ) from None


def _checked_label(file: Path, label: object) -> Label:
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return label
    if isinstance(label, str) and 0 < len(label) <= MAX_LABEL_LETTERS:
        return label
    raise DataDamaged(
        f"{file}: {shown(str(label), 80)} is no label: a whole number from 0, or a name of at most "
        f"{MAX_LABEL_LETTERS} letters"
    )
