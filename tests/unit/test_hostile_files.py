"""Files that mean ill are refused, and nothing of them runs. In full: tests.harness.hostile_files."""

from __future__ import annotations

import ast
import gzip
import io
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.data.archive import extract, members, read_cifar_pickle
from regraft.data.folders import list_folder
from regraft.errors import DataDamaged, DataUnavailable, StudyError, WeightsMismatch, WeightsUnavailable
from regraft.networks import build, obtain_weights
from regraft.networks.build import build_skeleton
from regraft.networks.keras import convert_resnet50
from regraft.networks.weights import read_state
from tests.harness import hostile_files
from tests.unit.test_architecture import SOURCES, calls, keyword, tree
from tests.unit.test_weights import file_source

NETWORK = "timm/test_resnet"


@pytest.mark.slow
def test_a_file_that_means_ill_is_refused_or_harmless() -> None:
    tried = hostile_files.run(300, seed=1)
    assert len(tried) == 300
    assert [one for one in tried if one.outcome == "FAILED"] == []


def test_weights_are_read_as_tensors_or_not_at_all() -> None:
    """No reader of regraft runs a pickle's code: neither first nor when another reader failed."""
    loaders = {"torch.load": "weights_only", "np.load": "allow_pickle", "numpy.load": "allow_pickle"}
    for name, path in SOURCES.items():
        for called, call in calls(path):
            where = f"{name}:{call.lineno}: {called}"
            if called == "torch.load":
                assert keyword(call, "weights_only") is True, where
            elif called in loaders:
                assert keyword(call, loaders[called]) is not True, where
            ending = called.rpartition(".")[2]
            assert ending not in ("load_lua", "read_pickle", "load_legacy", "loads_pickle", "jit_load"), where
            assert called not in ("torch.jit.load", "pickle.load", "pickle.loads", "torch.package.PackageImporter"), (
                where
            )
            assert called != "pickle.Unpickler", where
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                inside = [ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)]
                assert "torch.load" not in inside, f"{name}:{node.lineno}: a second way to read, once the first failed"


def saved(state: object, path: Path, *, packed: bool = False) -> Path:
    torch.save(state, path)
    if packed:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", 8) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    return path


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(1).expand(2**40), "larger than its own numbers"),
        (torch.zeros(3, device="meta"), "plain tensors"),
        (torch.zeros(3, dtype=torch.complex64), "plain tensors"),
        (torch.zeros(3).to(torch.float8_e4m3fn), "plain tensors"),
    ],
    ids=["expanded", "meta", "complex", "float8"],
)
def test_only_plain_tensors_of_numbers_that_the_file_holds_are_weights(
    tmp_path: Path, tensor: Tensor, said: str
) -> None:
    with pytest.raises(WeightsMismatch, match=said):
        read_state(saved({"weight": tensor}, tmp_path / "w.pth"))


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = saved({"weight": torch.zeros(10**6)}, tmp_path / "w.pth", packed=True)
    assert path.stat().st_size < 50_000
    with pytest.raises(WeightsMismatch, match="packed zip"):
        read_state(path)


def test_shapes_and_kinds_of_numbers_are_compared_before_a_study_starts(tmp_path: Path) -> None:
    state = build(NETWORK, seed=0).state_dict()
    name = next(n for n, t in state.items() if t.ndim == 4)
    for wrong in (state[name][:1].clone(), state[name].to(torch.int8)):
        path = saved({**state, name: wrong}, tmp_path / "w.pth")
        with pytest.raises(WeightsMismatch, match="has shape"):
            obtain_weights(file_source(path, NETWORK))


@pytest.mark.parametrize("path", ["x" * 3000, "~nobody-of-that-name/w.pth", "/dev/null"])
def test_a_path_that_no_file_can_have_is_no_file(path: str) -> None:
    with pytest.raises(WeightsUnavailable, match="there is no weights file"):
        obtain_weights(file_source(Path(path), NETWORK))
    with pytest.raises(DataUnavailable, match="folder:"):
        list_folder(path)


def test_a_stem_that_does_not_exist_is_not_the_usual_one() -> None:
    with pytest.raises(StudyError, match="there is no stem"):
        build(NETWORK, seed=0, stem="../x")
    with pytest.raises(StudyError, match="there is no stem"):
        build_skeleton(NETWORK, stem="")


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b'{"weightsManifest": 1}', b"[" * 100_000, b'{"weightsManifest": [{}]}']
)
def test_a_manifest_of_another_form_is_no_resnet(manifest: bytes) -> None:
    with pytest.raises(WeightsMismatch, match="does not describe"):
        convert_resnet50(manifest, lambda name: b"")


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02]r\x00\x00\x00\x30.", b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
     b"\x80\x02}(" + b")" + b"\x85" * 10**6 + b"K\x01u.", b"cnumpy\nndarray\n(N}S'x'\nNstb.",
     b"c_codecs\nencode\n)\x81."],
    ids=["memo", "length", "nested tuples", "attributes", "new"],
)  # fmt: skip
def test_a_small_pickle_neither_fills_the_memory_nor_the_stack_nor_changes_its_reader(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(DataDamaged):
        read_cifar_pickle(data)
    assert time.process_time() - started < 2


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_states_gigabytes_is_not_taken_into_memory(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(header(kind, 2**32) + bytes(2**20)))
    with pytest.raises(DataDamaged, match="a header that states"):
        list(members(tmp_path / "a"))


def test_the_checksum_of_a_packed_tar_is_compared(tmp_path: Path) -> None:
    out: Any = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("x")
        info.size = 1000
        archive.addfile(info, io.BytesIO(bytes(1000)))
    packed = bytearray(gzip.compress(out.getvalue()))
    packed[-8] ^= 1  # the first byte of the CRC
    (tmp_path / "a").write_bytes(packed)
    with pytest.raises(DataDamaged, match="not readable"):
        extract(tmp_path / "a", tmp_path / "out")


def test_a_file_in_a_file_and_a_name_too_long_are_refused(tmp_path: Path) -> None:
    for i, names in enumerate((("a", "a/b"), ("x" * 300,), ("x/" * 600 + "y",))):
        with zipfile.ZipFile(tmp_path / f"{i}.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        with pytest.raises(DataDamaged):
            extract(tmp_path / f"{i}.zip", tmp_path / f"out{i}")
