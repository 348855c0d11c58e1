"""NAME.regraft: the same bytes for the same content, and nothing of a file is believed before it was checked."""

from __future__ import annotations

import json
import math
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from regraft.errors import PredictorDamaged, PredictorError, PredictorMismatch
from regraft.predictor import Predictor
from regraft.predictor.bundle import MANIFEST, WEIGHTS, read_bundle
from regraft.seeding import stream
from tests.unit.predictor_example import CLASSES, pictures, repacked, tiny_predictor


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good file."""
    return tiny_predictor().save(tmp_path_factory.mktemp("whole") / "tiny.regraft").read_bytes()


@pytest.fixture
def file(tmp_path: Path, whole: bytes) -> Path:
    target = tmp_path / "tiny.regraft"
    target.write_bytes(whole)
    return target


def test_what_was_saved_answers_as_before_and_is_saved_to_the_same_bytes(file: Path, whole: bytes) -> None:
    before, after = tiny_predictor(), Predictor.load(file, device="cpu", backend="eager")
    assert np.array_equal(before.predict(pictures(5)).logits, after.predict(pictures(5)).logits)
    assert after.save(file.with_name("again.regraft")).read_bytes() == whole
    assert (after.classes, after.manifest.temperature) == (CLASSES, 0.5)


def test_a_file_is_json_and_safetensors_and_nothing_else(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == [MANIFEST, WEIGHTS]
        assert json.loads(archive.read(MANIFEST))["classes"] == list(CLASSES)
        assert load(archive.read(WEIGHTS)).keys() == tiny_predictor().network.tensors().keys()


def test_loading_needs_no_network_and_leaves_nothing_behind(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    assert len(Predictor.load(file, device="cpu").predict(pictures(5))) == 5
    assert not (tmp_path / "home").exists()


def test_any_changed_byte_is_noticed_or_changes_nothing(file: Path, whole: bytes) -> None:
    bundle = read_bundle(file)
    expected = bundle.state()
    noticed = 0
    for position in stream(0, "flips").choice(len(whole), 100, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        try:
            found = read_bundle(file)
            state = found.state()
        except PredictorError:
            noticed += 1
            continue
        assert found.manifest == bundle.manifest
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert noticed > 75  # nearly all of the file is weights


@pytest.mark.parametrize("kept", [0, 10, 200, -100, -1])
def test_a_file_that_is_cut_off_is_damaged(file: Path, whole: bytes, kept: int) -> None:
    file.write_bytes(whole[:kept])
    with pytest.raises(PredictorDamaged, match="not a whole predictor"):
        Predictor.load(file)


def test_no_file_a_folder_and_another_zip_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="there is no predictor"):
        Predictor.load(tmp_path / "none.regraft")
    with pytest.raises(PredictorError, match="cannot read"):
        Predictor.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.regraft", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(PredictorDamaged, match=r"this holds 'word/document.xml'"):
        Predictor.load(tmp_path / "other.regraft")
    with pytest.raises(PredictorError, match="cannot write"):
        tiny_predictor().save(tmp_path)


# --- members -----------------------------------------------------------------------------------------------------


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(file: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def info(name: str, mode: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, mode << 16
    return made


@pytest.mark.parametrize("extra", ["../evil.py", "notes.txt", "weights.safetensors/", "manifest.JSON"])
def test_a_member_that_is_not_listed_is_refused(file: Path, extra: str) -> None:
    packed(file, *members(file).items(), (extra, b"x"))
    with pytest.raises(PredictorDamaged, match="this holds"):
        Predictor.load(file)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's own, when the test writes it
def test_a_member_twice_is_refused(file: Path) -> None:
    packed(file, *members(file).items(), (WEIGHTS, b"x"))
    with pytest.raises(PredictorDamaged, match="this holds"):
        Predictor.load(file)


def test_a_link_is_refused(file: Path) -> None:
    good = members(file)
    packed(file, (MANIFEST, good[MANIFEST]), (info(WEIGHTS, stat.S_IFLNK | 0o777), good[WEIGHTS]))
    with pytest.raises(PredictorDamaged, match="is a link"):
        Predictor.load(file)


def test_other_packings_than_deflate_are_refused_and_deflate_is_read(file: Path) -> None:
    good = members(file)
    packed(file, *good.items(), method=zipfile.ZIP_DEFLATED)
    assert Predictor.load(file, device="cpu").classes == CLASSES
    packed(file, *good.items(), method=zipfile.ZIP_BZIP2)
    with pytest.raises(PredictorDamaged, match="another way"):
        Predictor.load(file)


def test_a_bomb_is_refused_before_it_is_unpacked(file: Path) -> None:
    packed(file, (MANIFEST, members(file)[MANIFEST]), (WEIGHTS, bytes(2**22)), method=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 2**16
    with pytest.raises(PredictorDamaged, match="do not shrink like that"):
        Predictor.load(file)
    packed(file, (MANIFEST, b" " * 2**25), (WEIGHTS, b"x"))
    with pytest.raises(PredictorDamaged, match="at most"):
        Predictor.load(file)


def test_a_member_that_claims_to_be_shorter_than_it_is_is_refused(file: Path, whole: bytes) -> None:
    """The size in the central directory is what is checked; the data behind it cannot be longer."""
    end = whole.rindex(b"PK\x01\x02")
    size = int.from_bytes(whole[end + 24 : end + 28], "little")
    shorter = (size - 1000).to_bytes(4, "little")
    file.write_bytes(whole[: end + 24] + shorter + whole[end + 28 :])
    with pytest.raises(PredictorDamaged):
        Predictor.load(file)


# --- contents that somebody sealed again -----------------------------------------------------------------------------


def setting(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.update(changes)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (setting(format=99, regraft="9.9"), PredictorMismatch, r"format 99.*reads up to 1.*regraft 9\.9"),
        (setting(format=0), PredictorDamaged, "no format 0"),
        (setting(format="1"), PredictorDamaged, "states no format"),
        (setting(network="resnet999"), PredictorMismatch, "cannot be built here"),
        (setting(network="resnet18"), PredictorMismatch, "not those of its network|cannot be built"),
        (setting(stem="cifar"), PredictorMismatch, "cannot be built here"),
        (setting(classes=["cat", "dog"]), PredictorMismatch, "'head/"),
        (setting(classes=["cat", "dog", "owl", "yak"]), PredictorMismatch, "'head/"),
        (setting(classes=["cat", "dog", "dog"]), PredictorDamaged, "each named once"),
        (setting(classes=["cat", "dog", 3]), PredictorDamaged, "text is needed"),
        (setting(temperature=0), PredictorDamaged, "temperature"),
        (setting(temperature="hot"), PredictorDamaged, "temperature"),
        (setting(picture_size=10**6), PredictorDamaged, "whole number"),
        (setting(grey="no"), PredictorDamaged, "grey"),
        (setting(cuts=[]), PredictorDamaged, "0 cuts"),
        (setting(cuts=[{"name": "layer1", "layout": "chw", "shape": [7, 8, 8]}]), PredictorMismatch, "'head/"),
        (setting(cuts=[{"name": "layer1", "layout": "round", "shape": [64, 8, 8]}]), PredictorMismatch, "no layout"),
        (setting(cuts=[{"name": "nowhere", "layout": "chw", "shape": [64, 8, 8]}]), PredictorMismatch, "no cut"),
        (setting(head={"kind": "linear", "pool": "grid-2"}), PredictorMismatch, "'head/"),
        (setting(head={"kind": "magic"}), PredictorDamaged, "kind"),
        (setting(preprocessing={"image_size": 32}), PredictorDamaged, "not as one is written"),
        (setting(more="fields"), PredictorDamaged, "more"),
        (lambda given: given["members"].update(other={"bytes": 1, "sha256": "0"}), PredictorDamaged, "lists"),
        (lambda given: given["members"][WEIGHTS].update(bytes=5), PredictorDamaged, "cut off or was changed"),
        (lambda given: given["members"][WEIGHTS].update(sha256="0" * 64), PredictorDamaged, "does not have the digest"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_refused(
    file: Path, change: Callable[[dict[str, Any]], None], error: type[PredictorError], words: str
) -> None:
    with pytest.raises(error, match=words):
        Predictor.load(repacked(file, manifest=change))


def test_a_manifest_without_its_digest_is_refused(file: Path) -> None:
    with pytest.raises(PredictorDamaged, match="digest"):
        Predictor.load(repacked(file, manifest=setting(classes=["owl", "dog", "cat"]), seal=False))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": NaN}', b'{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(file: Path, content: bytes) -> None:
    packed(file, (MANIFEST, content), (WEIGHTS, members(file)[WEIGHTS]))
    with pytest.raises(PredictorDamaged, match="manifest"):
        Predictor.load(file)


def drop(state: dict[str, Tensor]) -> None:
    del state["head/bias"]


def add(state: dict[str, Tensor]) -> None:
    state["trunk/more"] = torch.zeros(1)


def widen(state: dict[str, Tensor]) -> None:
    state["head/weight"] = torch.zeros(3, 999)


def halve(state: dict[str, Tensor]) -> None:
    state["head/weight"] = state["head/weight"].half()


def poison(state: dict[str, Tensor]) -> None:
    state["head/weight"][0, 0] = math.nan


def overflow(state: dict[str, Tensor]) -> None:
    state["head/bias"][0] = math.inf


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (drop, PredictorMismatch, r"lacking 1, first 'head/bias'"),
        (add, PredictorMismatch, r"too many 1, first 'trunk/more'"),
        (widen, PredictorMismatch, r"'head/weight' is F32 \(3, 999\)"),
        (halve, PredictorMismatch, r"'head/weight' is F16"),
        (poison, PredictorDamaged, r"'head/weight' holds NaN"),
        (overflow, PredictorDamaged, r"'head/bias' holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_the_network_s_are_refused(
    file: Path, change: Callable[[dict[str, Tensor]], None], error: type[PredictorError], words: str
) -> None:
    with pytest.raises(error, match=words):
        Predictor.load(repacked(file, state=change))


def header_of(text: bytes, numbers: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + numbers


def one_tensor(dtype: str = "F32", shape: str = "[1]") -> bytes:
    """A file of one tensor of four bytes, whatever the header says of it."""
    text = f'{{"head/bias":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,4]}}}}'
    return header_of(text.encode(), bytes(4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "a whole number from 1 .* is needed, got 0"),
        (b"\x05", "has no header of tensors"),
        ((2**60).to_bytes(8, "little") + b"{}", "has no header of tensors"),
        (header_of(b"{}"), "lists tensors of 0 bytes and holds 0"),
        (header_of(b"[]"), "header that cannot be read"),
        (header_of(b"[" * 100_000), "header that cannot be read"),
        (header_of(b'{"head/bias":{}}'), "header that cannot be read"),
        (one_tensor(shape="[1e9]"), r"1000000000\.0 is no side of a tensor"),
        (one_tensor(shape="[true]"), "True is no side of a tensor"),
        (one_tensor(shape="[-1]"), "-1 is no side of a tensor"),
        (one_tensor(dtype="F8_E4M3"), "numbers in a format that no network here has"),
        (one_tensor(shape="[1000]"), "lists tensors of 4,000 bytes and holds 4"),
    ],
)
def test_a_header_of_tensors_that_lies_is_refused(file: Path, content: bytes, words: str) -> None:
    """Size and digest are made right, so that the header itself is what is met."""
    with pytest.raises(PredictorDamaged, match=words):
        Predictor.load(repacked(file, content=lambda weights: content))


def test_tensors_that_do_not_lie_where_the_header_says_are_refused(file: Path) -> None:
    """Names, types, shapes and the size of the whole are right."""

    def moved(weights: bytes) -> bytes:
        length = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + length])
        start, end = header["head/bias"]["data_offsets"]
        header["head/bias"]["data_offsets"] = [start + 4, end + 4]
        return header_of(json.dumps(header).encode(), weights[8 + length :])

    assert read_bundle(repacked(file, content=moved)).tensors.keys() == tiny_predictor().network.tensors().keys()
    with pytest.raises(PredictorDamaged, match=r"weights\.safetensors is not readable"):
        Predictor.load(file)
