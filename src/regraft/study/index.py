"""What finished artifacts say, kept in one SQLite file so that a study of very many is read in seconds.

The index is a convenience, never the truth. An entry holds what was read from an artifact's files and verified; it is
believed only while all of them have the size, times and inode that they had then, and is itself checked by a digest. A
missing, damaged or locked index costs time and nothing else: the artifacts are read, and it is written anew. It lies
in the home folder, not in the store: a store may be shared by machines, and SQLite on a network's disk may not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from regraft.data.home import home
from regraft.study.disk import canonical
from regraft.study.store import FILES, Artifact, Store

VERSION = 1  # of the file; another one is begun anew
PENDING = 1000  # entries that wait in memory to be written together
RECENT = 64  # artifacts kept as they were read
WAIT_SECONDS = 1.0  # for another process that is writing
# A file changed within this time of being read could change again without its times moving: git's "racy" rule.
SETTLED_AFTER_NS = 2 * 10**9
CREATE = "CREATE TABLE IF NOT EXISTS artifact (key TEXT PRIMARY KEY, stamp TEXT, digest BLOB, content BLOB)"

Entry = tuple[str, str, bytes, bytes]  # key, stamp, sha256 of the content, content


class Index:
    """Reads artifacts of one store as `Store.get` does, and what it has read before at a fifth of the time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._objects = os.fspath(store.path("0" * 64).parents[1])
        self._recent: dict[str, tuple[Stamp, Artifact]] = {}  # a cell's fits are looked at twice: chosen, then told
        self._pending: list[Entry] = []
        self._connection: sqlite3.Connection | None = None
        self._usable = True

    def get(self, key: str) -> Artifact | None:
        """The artifact, or None if it is absent or was damaged (then it has been set aside)."""
        before = self._stamp(key)
        if before is not None and (known := self._recalled(key, before) or self._known(key, before)) is not None:
            return known
        artifact = self.store.get(key)
        if artifact is not None and before is not None and before.settled and self._stamp(key) == before:
            content = zlib.compress(canonical([artifact.spec, artifact.values, artifact.record]).encode(), 1)
            self._pending.append((key, before.text, hashlib.sha256(content).digest(), content))
            if len(self._pending) >= PENDING:
                self.save()
        return artifact

    def save(self) -> None:
        """Write what waits in memory. Where that is not possible, the artifacts will simply be read again."""
        entries, self._pending = self._pending, []
        connection = self._open() if entries else None
        if connection is not None:
            with self._failing(), connection:
                connection.executemany("INSERT OR REPLACE INTO artifact VALUES (?, ?, ?, ?)", entries)

    def _recalled(self, key: str, stamp: Stamp) -> Artifact | None:
        before, artifact = self._recent.get(key, (None, None))
        return artifact if before == stamp and stamp.settled else None

    def _known(self, key: str, stamp: Stamp) -> Artifact | None:
        connection = self._open()
        row = None
        if connection is not None:
            with self._failing():
                row = connection.execute("SELECT stamp, digest, content FROM artifact WHERE key = ?", (key,)).fetchone()
        if row is None or row[0] != stamp.text or hashlib.sha256(row[2]).digest() != row[1]:
            return None
        spec, values, record = json.loads(zlib.decompress(row[2]))
        artifact = Artifact(key, Path(self._folder(key)), spec, values, record)
        if len(self._recent) >= RECENT:
            self._recent.clear()
        self._recent[key] = (stamp, artifact)
        return artifact

    def _folder(self, key: str) -> str:
        """`store.path(key)`, where a Path would take as long as all else."""
        return os.path.join(self._objects, key[:2], key)

    def _stamp(self, key: str) -> Stamp | None:
        """None if one of the artifact's files is not there, or cannot be looked at."""
        folder = self._folder(key)
        try:
            states = [os.stat(f"{folder}/{name}") for name in (*FILES, "record.json")]
        except OSError:
            return None
        newest = max(max(state.st_mtime_ns, state.st_ctime_ns) for state in states)
        text = " ".join(f"{s.st_size},{s.st_mtime_ns},{s.st_ctime_ns},{s.st_ino}" for s in states)
        return Stamp(text, newest < time.time_ns() - SETTLED_AFTER_NS)

    def _open(self) -> sqlite3.Connection | None:
        """The connection; None where there can be none."""
        if self._connection is None and self._usable:
            self._connection = _connected(index_path(self.store))
            self._usable = self._connection is not None
            if self._connection is not None:
                weakref.finalize(self, self._connection.close)
        return self._connection

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """After an error the index is left alone; a damaged one is removed, and made again by the next."""
        try:
            yield
        except sqlite3.Error as error:
            connection, self._connection, self._usable = self._connection, None, False
            assert connection is not None
            connection.close()
            if not isinstance(error, sqlite3.OperationalError):  # that would be: locked, read-only, a full disk
                remove_index(self.store)


@dataclass(frozen=True)
class Stamp:
    """How an artifact's files were found."""

    text: str  # size, times and inode of each
    settled: bool = field(compare=False)  # none was written just now


def index_path(store: Store) -> Path:
    """Where the index of the store lies."""
    name = hashlib.sha256(os.fsencode(store.root)).hexdigest()[:32]
    return home() / "index" / f"{name}.sqlite"


def remove_index(store: Store) -> None:
    """What it knew is read from the artifacts again."""
    _remove(index_path(store))


def _connected(path: Path) -> sqlite3.Connection | None:
    """An index of this version, begun anew where there is none, or none that can be read. None: not possible here."""
    for _ in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=WAIT_SECONDS, check_same_thread=False)
        except (OSError, sqlite3.Error):
            return None
        try:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if tables and version == VERSION:
                return connection
            if not tables:
                connection.execute("PRAGMA synchronous = OFF")  # after a power cut it is made again
                connection.execute(CREATE)
                connection.execute(f"PRAGMA user_version = {VERSION}")
                return connection
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked for long, read-only, a full disk
                connection.close()
                return None
        connection.close()
        _remove(path)
    return None


def _remove(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}-journal")):
        with contextlib.suppress(OSError):  # none there, or not ours to remove: then it is not used either
            file.unlink()
