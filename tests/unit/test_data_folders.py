"""`folder:PATH`: layouts, the fixed test part, unreadable files, and digests of content."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.data import dataset_digest, dataset_info, folders, load_dataset, verify_dataset
from regraft.data.folders import list_folder
from regraft.errors import DataDamaged, DataUnavailable, StudyError, TooFewImages

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def draw(folder: Path, counts: dict[str, int]) -> Path:
    """A folder per colour with so many pictures of it."""
    for colour, n in counts.items():
        (folder / colour).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (12, 10), COLOURS[colour]).save(folder / colour / f"{i}.png")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return draw(tmp_path / "pictures", {"red": 10, "green": 20, "blue": 3})


def test_a_folder_of_class_folders_is_read(colours: Path, home: Path) -> None:
    data = load_dataset(f"folder:{colours}", 8, home)
    assert data.classes == ("blue", "green", "red")
    assert data.train.images.shape == (26, 8, 8, 3)
    assert data.train.class_counts == (2, 16, 8)
    assert len(data.test) == 1 + 4 + 2
    assert (data.validation, data.unreadable, data.image_size) == (None, (), 8)
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert (image[4, 4] == COLOURS[data.classes[label]]).all()
    true = [
        next(i for i, c in enumerate(data.classes) if (image[4, 4] == COLOURS[c]).all()) for image in data.test.images
    ]
    assert data.test.score(np.eye(3)[true], run="a").accuracy == 1.0


def test_the_test_part_depends_on_paths_alone(colours: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(colours, tmp_path / "elsewhere")
    here, there = list_folder(colours), list_folder(copied)
    assert [f.relative_to(colours) for f, _ in here.parts["test"]] == [
        f.relative_to(copied) for f, _ in there.parts["test"]
    ]


def test_a_new_picture_leaves_nearly_all_test_pictures_where_they_were(colours: Path) -> None:
    before = {f for f, _ in list_folder(colours).parts["test"]}
    shutil.copy(colours / "green" / "0.png", colours / "green" / "new.png")
    after = {f for f, _ in list_folder(colours).parts["test"]}
    assert len(before - after) <= 1


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_given_parts_are_kept(tmp_path: Path, home: Path, validation: str) -> None:
    draw(tmp_path / "p" / "train", {"red": 3, "blue": 2})
    draw(tmp_path / "p" / "test", {"red": 1, "blue": 2})
    draw(tmp_path / "p" / validation, {"red": 1, "blue": 1})
    data = load_dataset(f"folder:{tmp_path / 'p'}", 8, home)
    assert (data.train.class_counts, len(data.test)) == ((2, 3), 3)
    assert data.validation is not None
    assert data.validation.class_counts == (1, 1)
    chosen = data.with_classes(("red", "blue"))
    assert chosen.validation is not None
    assert chosen.validation.labels.tolist() == [1, 0]


def test_without_a_test_folder_a_fifth_of_train_is_held_out(tmp_path: Path) -> None:
    draw(tmp_path / "train", {"red": 10, "blue": 10})
    draw(tmp_path / "val", {"red": 1, "blue": 1})
    listing = list_folder(tmp_path)
    assert [listing.counts(part) for part in ("train", "test", "validation")] == [(8, 8), (2, 2), (1, 1)]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    draw(tmp_path, {"red": 3})
    shutil.copytree(tmp_path / "red", tmp_path / "train")
    assert list_folder(tmp_path).classes == ("red", "train")


def test_hidden_files_other_files_and_system_folders_are_passed_over(colours: Path) -> None:
    counts = list_folder(colours).counts("train")
    for name in (".hidden.png", "._1.png", "notes.txt", "Thumbs.db"):
        (colours / "red" / name).write_bytes(b"x")
    for name in (".git", "__MACOSX"):
        (colours / name).mkdir()
    assert list_folder(colours).counts("train") == counts


def test_pictures_in_subfolders_and_unicode_names_are_read(tmp_path: Path, home: Path) -> None:
    for name in ("école", "日本"):
        (tmp_path / "p" / name / "tiefer").mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (9, 9)).save(tmp_path / "p" / name / "tiefer" / f"bild ä {i}.JPG", "JPEG")
    data = load_dataset(f"folder:{tmp_path / 'p'}", 8, home)
    assert data.classes == ("école", "日本")
    assert len(data.train) == 2


def test_a_circle_of_links_ends(colours: Path) -> None:
    (colours / "red" / "again").symlink_to(colours, target_is_directory=True)
    assert list_folder(colours).counts("train") == (2, 16, 8)


def test_a_pipe_named_like_a_picture_does_not_block(colours: Path, home: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    os.mkfifo(colours / "red" / "pipe.png")
    assert len(load_dataset(f"folder:{colours}", 8, home).train) == 26


def test_unreadable_files_are_left_out_and_listed(colours: Path, home: Path) -> None:
    (colours / "red" / "text.jpg").write_text("hello")
    (colours / "green" / "zero.png").write_bytes(b"")
    (colours / "green" / "link.png").symlink_to("nowhere.png")
    data = load_dataset(f"folder:{colours}", 8, home)
    assert {line.split(":")[0] for line in data.unreadable} == {
        "red/text.jpg",
        "green/zero.png",
        "green/link.png",
    }
    assert len(data.train) + len(data.test) == 33
    assert verify_dataset(f"folder:{colours}", 8, home).unreadable == data.unreadable


def test_a_class_without_a_readable_picture_is_refused_with_an_example(tmp_path: Path, home: Path) -> None:
    draw(tmp_path / "p", {"red": 4})
    (tmp_path / "p" / "odd").mkdir()
    for i in range(3):
        (tmp_path / "p" / "odd" / f"{i}.jpg").write_text("hello")
    with pytest.raises(DataDamaged, match=r"class 'odd' in the train part.*odd/\d.jpg"):
        load_dataset(f"folder:{tmp_path / 'p'}", 8, home)


@pytest.mark.parametrize(
    ("counts", "error", "match"),
    [
        ({}, StudyError, "no subfolder; at least two classes"),
        ({"red": 5}, StudyError, "only the class 'red'"),
        ({"red": 5, "blue": 0}, TooFewImages, "no pictures in 'blue'"),
        ({"red": 5, "blue": 1}, TooFewImages, "'blue' has one picture"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(
    tmp_path: Path, counts: dict[str, int], error: type[Exception], match: str
) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(error, match=match):
        list_folder(draw(tmp_path / "p", counts))


def test_a_folder_one_level_too_high_is_refused_with_the_right_one(colours: Path) -> None:
    with pytest.raises(StudyError, match=f"Did you mean folder:{re.escape(str(colours))}"):
        list_folder(colours.parent)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="there is no folder"):
        dataset_info(f"folder:{tmp_path / 'nowhere'}", tmp_path)


@pytest.mark.parametrize(
    ("parts", "match"), [(("test",), "needs exactly one train"), (("train", "val", "valid"), "at most one")]
)
def test_parts_that_cannot_be_told_apart_are_refused(tmp_path: Path, parts: tuple[str, ...], match: str) -> None:
    for part in parts:
        draw(tmp_path / part, {"red": 3, "blue": 3})
    with pytest.raises(StudyError, match=match):
        list_folder(tmp_path)


def test_a_test_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "train", {"red": 3, "blue": 3})
    draw(tmp_path / "test", {"red": 3, "green": 3})
    with pytest.raises(StudyError, match="test has the class 'green', which train lacks"):
        list_folder(tmp_path)


def test_a_folder_needs_an_image_size(colours: Path, home: Path) -> None:
    with pytest.raises(StudyError, match="image_size is required"):
        load_dataset(f"folder:{colours}", home=home)


def test_the_digest_changes_with_one_byte_of_one_picture(colours: Path, home: Path) -> None:
    digests = {dataset_digest(f"folder:{colours}", 8, home)}
    file = colours / "green" / "7.png"
    content = file.read_bytes()
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=times)  # a change that hides: same size, same modification time
    digests.add(dataset_digest(f"folder:{colours}", 8, home))
    file.write_bytes(content)
    assert dataset_digest(f"folder:{colours}", 8, home) in digests
    assert len(digests) == 2


def test_the_digest_depends_on_size_names_and_parts_but_not_on_the_place(colours: Path, tmp_path: Path) -> None:
    digest = dataset_digest(f"folder:{colours}", 8, tmp_path / "h")
    copied = shutil.copytree(colours, tmp_path / "elsewhere")
    assert dataset_digest(f"folder:{copied}", 8, tmp_path / "other-home") == digest
    assert dataset_digest(f"folder:{colours}", 9, tmp_path / "h") != digest
    (copied / "red" / "1.png").rename(copied / "red" / "x.png")
    assert dataset_digest(f"folder:{copied}", 8, tmp_path / "h") != digest


def test_the_loaded_data_set_has_the_digest_that_was_told_before(colours: Path, home: Path) -> None:
    assert dataset_digest(f"folder:{colours}", 8, home) == load_dataset(f"folder:{colours}", 8, home).digest


def test_pictures_that_change_while_they_are_read_are_kept_under_no_digest(colours: Path, home: Path) -> None:
    before = dataset_digest(f"folder:{colours}", 8, home)

    def change(done: int, total: int | None) -> None:
        Image.new("RGB", (12, 10), (9, 9, 9)).save(colours / "green" / "7.png")

    with pytest.raises(DataDamaged, match="changed while they were read; nothing was kept"):
        load_dataset(f"folder:{colours}", 8, home, report=change)
    assert not list((home / "data").glob("*folder-*-8*"))
    after = load_dataset(f"folder:{colours}", 8, home)
    assert after.digest == dataset_digest(f"folder:{colours}", 8, home) != before
    assert any((image == 9).all() for image in (*after.train.images, *after.test.images))


@pytest.mark.parametrize("settled_after_ns", [-1, 2 * 10**9])
@pytest.mark.parametrize("change", ["repainted", "added", "removed", "renamed", "moved to another class"])
def test_a_folder_changed_between_key_and_load_comes_with_another_digest(
    change: str, settled_after_ns: int, colours: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.data.folders.SETTLED_AFTER_NS", settled_after_ns)
    in_key = load_dataset(f"folder:{colours}", 8, home).digest
    assert in_key == dataset_digest(f"folder:{colours}", 8, home)
    file = colours / "green" / "7.png"
    if change == "repainted":
        Image.new("RGB", (12, 10), (9, 9, 9)).save(file)
    elif change == "added":
        shutil.copy(file, file.with_name("new.png"))
    elif change == "removed":
        file.unlink()
    else:
        file.rename(file.with_name("x.png") if change == "renamed" else colours / "red" / "x.png")
    loaded = load_dataset(f"folder:{colours}", 8, home).digest
    assert loaded == dataset_digest(f"folder:{colours}", 8, home) != in_key


def test_files_that_changed_just_now_are_read_each_time(colours: Path, home: Path) -> None:
    """They could change again within the time stamp's resolution."""
    dataset_digest(f"folder:{colours}", 8, home)
    assert not (home / "data" / "folder-index").exists()


def test_settled_files_are_not_read_again(colours: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.data.folders.SETTLED_AFTER_NS", -1)
    digest = dataset_digest(f"folder:{colours}", 8, home)
    assert dataset_digest(f"folder:{colours}", 8, home) == digest
    index = next((home / "data" / "folder-index").iterdir())
    kept = json.loads(index.read_text())
    kept["files"]["red/1.png"][3] = "another"
    index.write_text(json.dumps(kept))
    assert dataset_digest(f"folder:{colours}", 8, home) == digest  # a damaged index is not believed
    kept["sha256"] = folders._index_digest(kept["files"])
    index.write_text(json.dumps(kept))
    assert dataset_digest(f"folder:{colours}", 8, home) != digest  # what the index says was taken


def test_info_of_a_decoded_folder_counts_readable_pictures(
    colours: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.data.folders.SETTLED_AFTER_NS", -1)
    (colours / "red" / "text.jpg").write_text("hello")
    data = load_dataset(f"folder:{colours}", 8, home)
    info = dataset_info(f"folder:{colours}", home)
    assert info.train_counts == data.train.class_counts
    assert info.test_images == len(data.test)


def test_a_decoded_folder_is_opened_again_without_its_pictures_being_decoded(colours: Path, home: Path) -> None:
    reports: list[tuple[int, int | None]] = []
    for _ in range(2):
        load_dataset(f"folder:{colours}", 8, home, report=lambda done, total: reports.append((done, total)))
    assert reports == [(26, 26), (7, 7)]


def test_two_processes_may_decode_at_once(colours: Path, home: Path) -> None:
    code = "import sys, pathlib, regraft.data as d; d.load_dataset(sys.argv[1], 8, pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, f"folder:{colours}", str(home)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(list((home / "data").glob("*folder-*-8*"))) == 1
    verify_dataset(f"folder:{colours}", 8, home)


def test_info_counts_files_without_opening_one(colours: Path, home: Path) -> None:
    (colours / "red" / "text.jpg").write_text("hello")
    info = dataset_info(f"folder:{colours}", home)
    assert info.classes == ("blue", "green", "red")
    assert sum(info.train_counts) + (info.test_images or 0) == 34
    assert (info.image_size, info.channels, info.digest, info.available) == (None, 3, None, True)
