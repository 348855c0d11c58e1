"""Arrays on disk and their record: what was not written by regraft, or not whole, is refused or made again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.data import remembered as remembered_module
from regraft.data.converted import open_converted, read_info, verify_once, write_content, write_info
from regraft.data.formats import Arrays, Content
from regraft.data.home import ABANDONED_AFTER_SECONDS, TEMPORARY_PREFIX, new_folder, write_file
from regraft.data.remembered import remembered
from regraft.errors import DataDamaged

CLASSES = ("a", "b")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    rng = np.random.default_rng(0)
    parts = [Arrays(rng.integers(0, 256, (n, 4, 4, 3), np.uint8), np.arange(n, dtype=np.int64) % 2) for n in (6, 4)]
    write_content(folder, Content(*parts))
    write_info(folder, name="tiny", classes=CLASSES, digest=None, origin="made up")
    return folder


def known(folder: Path) -> dict[str, Any]:
    info = read_info(folder)
    assert info is not None
    return info


# --- the record ---------------------------------------------------------------------------------------------------


def unsealed(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Change the record as one of an earlier version, which had no seal."""
    info = json.loads((folder / "info.json").read_text())
    del info["sha256"]
    how(info)
    (folder / "info.json").write_text(json.dumps(info))


def test_a_record_of_an_earlier_version_without_a_seal_is_read(folder: Path) -> None:
    before = known(folder)
    unsealed(folder, lambda info: None)
    assert read_info(folder) == before
    assert open_converted(folder, before).train.class_counts == (3, 3)


@pytest.mark.parametrize(
    "how",
    [
        lambda info: info.update(version=0),
        lambda info: info.update(arrays=[]),
        lambda info: info.update(classes="ab"),
        lambda info: info.update(classes=["a", 1]),
        lambda info: info.update(train_counts=None),
        lambda info: info.update(train_counts=[3, 3.0]),
        lambda info: info.update(unreadable={}),
        lambda info: info.update(digest=None),
        lambda info: info["arrays"].update(test_labels=[4]),
        lambda info: info["arrays"]["test_labels"].update(shape=4),
        lambda info: info["arrays"]["test_labels"].update(shape=["4"]),
        lambda info: info["arrays"]["test_labels"].pop("sha256"),
        lambda info: info["arrays"].pop("test_labels"),
        lambda info: info["arrays"].update({"../x": info["arrays"]["test_labels"]}),
        lambda info: info.update(more=1),
        lambda info: info.update(sha256="0" * 64),
    ],
)
def test_a_record_of_another_form_counts_as_none(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    unsealed(folder, how)
    assert read_info(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null"])
def test_a_record_that_is_cut_off_or_no_record_counts_as_none(folder: Path, text: str) -> None:
    (folder / "info.json").write_text(text)
    assert read_info(folder) is None


# --- the arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("train_images", np.zeros((6, 4, 4, 3), np.float32), "train_images.npy holds 4-dimensional float32"),
        ("test_images", np.zeros((4, 48), np.uint8), "test_images.npy holds 2-dimensional uint8"),
        ("test_labels", np.zeros(3, np.int64), r"test_labels.npy holds int64 of shape \(3,\) for 4 pictures"),
        ("test_labels", np.zeros(4), r"test_labels.npy holds float64 of shape \(4,\) for 4 pictures"),
    ],
)
def test_arrays_of_another_kind_are_refused_though_the_record_fits_them(
    folder: Path, name: str, array: np.ndarray[Any, np.dtype[Any]], said: str
) -> None:
    np.save(folder / f"{name}.npy", array)
    write_info(folder, name="tiny", classes=CLASSES, digest=None, origin="made up")
    with pytest.raises(DataDamaged, match=f"{folder}: {said}. Delete that folder; it is made again"):
        open_converted(folder, known(folder))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 0, 1, 0, 2], "labels outside 0 to 1"),
        ([0, 1, 0, 1, 0, -1], "labels outside 0 to 1"),
        ([0, 1, 0, 1, 0, 0], "does not have the numbers of pictures that the record states"),
    ],
)
def test_labels_that_do_not_fit_the_record_are_refused(folder: Path, labels: list[int], said: str) -> None:
    np.save(folder / "train_labels.npy", np.array(labels))
    with pytest.raises(DataDamaged, match=f"train_labels.npy .*{said}"):
        open_converted(folder, known(folder))


def test_a_record_whose_digest_is_not_of_what_it_says_is_refused(folder: Path) -> None:
    unsealed(folder, lambda info: info.update(digest="0" * 64))
    with pytest.raises(DataDamaged, match=r"its record has the digest '000.*, what it says has [1-9a-f]"):
        open_converted(folder, known(folder))


def test_an_array_that_is_gone_is_told_before_any_is_read(folder: Path) -> None:
    (folder / "test_images.npy").unlink()
    with pytest.raises(DataDamaged, match=r"an array cannot be read \(No such file or directory\). Delete that folder"):
        verify_once(folder, known(folder))


# --- writing ------------------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_a_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "final") as folder:
            (folder / "x").write_text("new")
            (tmp_path / "final").write_text("a person's")

    with pytest.raises(OSError, match="final"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final").read_text() == "a person's"


def test_what_killed_processes_left_is_removed_after_a_day_and_not_before(tmp_path: Path) -> None:
    for name in ("old", "young"):
        (tmp_path / f"{TEMPORARY_PREFIX}{name}").mkdir()
        for path in (tmp_path / f"{TEMPORARY_PREFIX}{name}" / "x", tmp_path / f"{TEMPORARY_PREFIX}{name}-file"):
            path.write_text("half")
            if name == "old":
                before = path.stat().st_mtime - ABANDONED_AFTER_SECONDS - 1
                os.utime(path, (before, before))
    write_file(tmp_path / "new", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-young", ".unfinished-young-file", "new"]


def test_answers_are_remembered_where_no_package_states_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a source tree beside a bundle of packages: a version is looked for along the path."""
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    with_versions = remembered(["question"], lambda: "of these versions")
    remembered_module._installed.cache_clear()
    try:
        with monkeypatch.context() as bare:
            bare.setattr(sys, "path", [str(tmp_path)])
            got = [remembered(["question"], lambda: answer) for answer in ("first", "second")]  # noqa: B023
    finally:
        remembered_module._installed.cache_clear()
    assert got == ["first", "first"]
    assert remembered(["question"], lambda: "asked again") == with_versions
