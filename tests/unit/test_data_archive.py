"""Archives and pickles are never trusted."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from regraft.data.archive import extract, gunzip, members, read_cifar_pickle, read_idx, read_members
from regraft.data.formats import read_cifar100_batches
from regraft.errors import DataDamaged


def tar_of(path: Path, *entries: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return path


def zip_of(path: Path, *entries: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_plain_files_are_unpacked(tmp_path: Path, make: object) -> None:
    path = make(tmp_path / "a", ("top/one.txt", b"1"), ("top/deep/two.txt", b"22"))  # type: ignore[operator]
    extract(path, tmp_path / "out")
    assert (tmp_path / "out" / "top" / "deep" / "two.txt").read_bytes() == b"22"
    assert read_members(path, {"top/one.txt"}, 100) == {"top/one.txt": b"1"}


OUTSIDE = ["../evil", "/evil", "a/../../evil", "a/./../..//evil", "..\\evil", "C:evil", "a\nb", "a/../b"]


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(tmp_path: Path, make: object, name: str) -> None:
    path = make(tmp_path / "a", (name, b"x"))  # type: ignore[operator]
    with pytest.raises(DataDamaged, match="leads outside"):
        extract(path, tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a"]


@pytest.mark.parametrize(
    "entry",
    [
        special("link", tarfile.SYMTYPE, "/etc"),
        special("link", tarfile.LNKTYPE, "/etc/passwd"),
        special("pipe", tarfile.FIFOTYPE),
        special("disk", tarfile.BLKTYPE),
        special("terminal", tarfile.CHRTYPE),
        special("sparse", tarfile.GNUTYPE_SPARSE),
    ],
)
def test_links_devices_and_sparse_files_are_refused(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    with pytest.raises(DataDamaged, match="link, device or sparse"):
        extract(tar_of(tmp_path / "a", entry, ("link/passwd", b"x")), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(DataDamaged, match="link, device or encrypted"):
        extract(tmp_path / "a", tmp_path / "out")


def test_a_link_that_lies_in_the_folder_already_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(DataDamaged, match="leads outside"):
        extract(tar_of(tmp_path / "a", ("sub/evil", b"x")), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_bombs_are_refused_before_they_unpack(tmp_path: Path, make: object) -> None:
    path = make(tmp_path / "a", ("zeros", bytes(5_000_000)))  # type: ignore[operator]
    assert path.stat().st_size < 50_000
    with pytest.raises(DataDamaged, match="1,000,000 bytes unpacked"):
        extract(path, tmp_path / "out", max_bytes=1_000_000)
    assert not (tmp_path / "out" / "zeros").exists()
    many = make(tmp_path / "b", *((str(i), b"") for i in range(50)))  # type: ignore[operator]
    with pytest.raises(DataDamaged, match="more than 20 files"):
        list(members(many, max_members=20))


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataDamaged, match="twice"):
        list(members(tar_of(tmp_path / "a", ("x", b"1"), ("x", b"2"))))


def test_a_cut_off_archive_or_no_archive_at_all_is_refused(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a", ("x", np.random.default_rng(0).bytes(200_000))).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("cut", "text", "empty"):
        with pytest.raises(DataDamaged):
            read_members(tmp_path / name, {"x"}, 10**6)


def test_a_member_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataDamaged, match=r"lacks wanted\.bin"):
        read_members(tar_of(tmp_path / "a", ("x", b"1")), {"wanted.bin"}, 100)


def test_a_gzip_bomb_is_refused() -> None:
    assert gunzip(gzip.compress(b"abc"), 3) == b"abc"
    with pytest.raises(DataDamaged, match="more than"):
        gunzip(gzip.compress(bytes(10_000_000)), 1_000_000)
    with pytest.raises(DataDamaged):
        gunzip(gzip.compress(bytes(1000))[:-12], 10_000)
    with pytest.raises(DataDamaged, match="not readable as gzip"):
        gunzip(b"no gzip", 100)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_idx_files_are_read() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(read_idx(idx(array)), array)


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x01\x00\x00\x00\x00", idx(np.zeros(9, np.uint8))[:-1],
             bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 4)],
)  # fmt: skip
def test_idx_files_that_are_not_are_refused(data: bytes) -> None:
    with pytest.raises(DataDamaged):
        read_idx(data)


class Malicious:
    """Runs a command when a trusting reader loads its pickle."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        import os

        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"data": Malicious(tmp_path / "trace")}, protocol)
    with pytest.raises(DataDamaged, match="nothing of it was run"):
        read_cifar_pickle(data)
    assert not (tmp_path / "trace").exists()


GLOBALS = [
    b"cbuiltins\neval\n.", b"cnumpy\nload\n.", b"cnumpy.core.multiarray\nscalar\n.",
    b"cnumpy\nndarray\n(J\x00\x00\x00\x10tR.", b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.", b"ccopyreg\n_reconstructor\n.",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000\ntS'b'\ntR.",
]  # fmt: skip


@pytest.mark.parametrize("data", GLOBALS)
def test_only_arrays_of_bytes_can_be_built(data: bytes) -> None:
    with pytest.raises(DataDamaged):
        read_cifar_pickle(data)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02}q\x00", b"\x80\x02]q\x00.", b"r\xff\xff\xff\xff."])
def test_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(DataDamaged):
        read_cifar_pickle(data)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("spelling", ["core", "_core"])
def test_batches_of_either_python_and_numpy_are_read(protocol: int, spelling: str) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    batch = {"data": planes.tolist(), "fine_labels": [0, 1, 2, 3]}
    data = pickle.dumps({**batch, "data": planes}, protocol)
    own = b"_core" if b"numpy._core" in data else b"core"
    if protocol < 4:  # text protocol: names end at a line, so they can be respelled in place
        data = data.replace(b"numpy." + own, b"numpy." + spelling.encode())
    if protocol == 5:  # numpy then writes other globals than any published batch has
        with pytest.raises(DataDamaged, match="nothing of it was run"):
            read_cifar_pickle(data)
        return
    content = read_cifar_pickle(data)
    assert np.array_equal(content["data"], planes)
    assert content["fine_labels"] == [0, 1, 2, 3]


def test_planes_become_images() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    batch = pickle.dumps({"data": planes, "fine_labels": [0, 1, 2, 3]}, 2)
    content = read_cifar100_batches(lambda name: batch)
    assert content.train.images.shape == (4, 32, 32, 3)
    assert content.train.images[1, 2, 3].tolist() == [planes[1, 2 * 32 + 3 + 1024 * c] for c in range(3)]


def test_a_batch_whose_labels_do_not_fit_is_refused() -> None:
    batch = pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "fine_labels": [0, 1]}, 2)
    with pytest.raises(DataDamaged, match="without a list of 4"):
        read_cifar100_batches(lambda name: batch)
