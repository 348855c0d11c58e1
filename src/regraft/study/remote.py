"""A store behind a URL (s3://, gs://, sftp://, ...), with a local copy of what was used.

Any number of machines share it without a common file system. Locks, checkpoints and half-written artifacts stay on the
machine: they are of use there only, and two machines that compute the same result store the same one. An artifact is
one object, an uncompressed tar of its files, since object stores put one object whole or not at all and know no rename:

    objects/ab/abcd....tar    groups/GROUP/abcd...    damaged/abcd....XXXX.tar

The first to put an artifact stays. What comes back is verified as a local artifact is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.data.home import home
from regraft.errors import ArtifactDamaged, RegraftError, StoreError
from regraft.study.store import FILES, Artifact, Payload, Store

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

NAMES = (*FILES, "record.json")


class RemoteStore(Store):
    """As `Store`; what is not in the local copy is fetched, and what is computed is put there as well."""

    def __init__(self, url: str, cache: str | Path | None = None) -> None:
        """cache: folder of the local copy; default, one for each URL in the home folder.

        Raises StoreError for a protocol that nothing installed can speak."""
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        super().__init__(cache or home() / "remote-stores" / name)
        self.url = url.rstrip("/")
        self._fs, self._base = _filesystem(self.url)

    @property
    def location(self) -> str:
        return self.url

    def has(self, key: str) -> bool:
        with self._talking():
            return super().has(key) or bool(self._fs.exists(self._object(key)))

    def read(self, key: str) -> Artifact:
        if not super().has(key):
            self._fetch(key)
        return super().read(key)

    def keys(self) -> list[str]:
        with self._talking():
            there = self._names(f"{self._base}/objects", depth=2)
        return sorted({*super().keys(), *(name.removesuffix(".tar") for name in there if name.endswith(".tar"))})

    def link(self, group: str, key: str) -> None:
        super().link(group, key)
        with self._talking():
            self._put(f"{self._base}/groups/{group}/{key}", b"")

    def linked(self, group: str) -> list[str]:
        with self._talking():
            there = self._names(f"{self._base}/groups/{group}", depth=1)
            return sorted(key for key in {*super().linked(group), *there} if self.has(key))

    def _write(self, key: str, spec: Mapping[str, Any], payload: Payload, record: dict[str, Any]) -> Artifact:
        artifact = super()._write(key, spec, payload, record)
        with self._talking():
            if not self._fs.exists(self._object(key)):
                self._put(self._object(key), packed(artifact.path))
        return artifact

    def _fetch(self, key: str) -> None:
        """Bring an artifact here, if it is there and whole; else move it aside there."""
        with self._talking():
            if not self._fs.exists(self._object(key)):
                return
            content = self._fs.cat_file(self._object(key))
        with self.writing():
            folder = self.root / "tmp" / f"{key}.{secrets.token_hex(8)}"
            folder.mkdir(parents=True)
            try:
                unpack(content, folder)
                self._publish(folder, self.path(key))
                self.verify(key)
            except ArtifactDamaged as error:
                with self._talking():
                    self._put(f"{self._base}/damaged/{key}.{secrets.token_hex(4)}.tar", content)
                    self._fs.rm_file(self._object(key))
                if super().has(key):
                    self.set_aside(key, str(error))
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _object(self, key: str) -> str:
        return f"{self._base}/objects/{key[:2]}/{key}.tar"

    def _put(self, path: str, content: bytes) -> None:
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)  # nothing, where there are no folders
        self._fs.pipe_file(path, content)

    def _names(self, folder: str, *, depth: int) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [path.rpartition("/")[2] for path in self._fs.find(folder, maxdepth=depth)]
        return []

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RegraftError:
            raise
        except Exception as error:  # each file system has errors of its own, from those of sockets to those of botocore
            raise StoreError(
                f"the store {self.url} does not answer: {type(error).__name__}: {error}. What is finished is kept; "
                "check the address, your credentials and the network, and run again."
            ) from error


def packed(folder: Path) -> bytes:
    """The files of an artifact as an uncompressed tar; the same artifact gives the same bytes."""
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in NAMES:
            content = (folder / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return into.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Raises ArtifactDamaged for anything but a tar of an artifact's files, each once."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            members = tar.getmembers()
            if sorted(one.name for one in members) != sorted(NAMES) or not all(one.isreg() for one in members):
                raise ArtifactDamaged(f"it holds {', '.join(one.name for one in members)[:200]}, no artifact's files")
            for one in members:
                file = tar.extractfile(one)
                assert file is not None
                (folder / one.name).write_bytes(file.read())
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArtifactDamaged(f"it is no archive of an artifact: {error}") from None


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Of fsspec, and the path that the URL has in it."""
    import fsspec

    try:
        fs, base = fsspec.core.url_to_fs(url, use_listings_cache=False)  # others write there too
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"--store {url}: {error}. A store is a folder, or a URL of a file system that fsspec knows "
            "(s3:// needs `pip install s3fs`, gs:// needs gcsfs)"
        ) from None
    return fs, base.rstrip("/")
