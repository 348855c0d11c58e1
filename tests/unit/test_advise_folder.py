"""Laws of looking at a person's folder, and of the data set that is made of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.analysis.findings import class_gains, confused_pairs, expected_accuracy
from regraft.data import load_dataset
from regraft.errors import DataUnavailable, StudyError
from regraft.predictor.advise.folder import Looked, look
from regraft.predictor.advise.stage import stage
from tests.unit.deep import deepen


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))


def picture(file: Path, seed: int, size: tuple[int, int] = (40, 36)) -> Path:
    """A picture that is like no other: coarse random colours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(file)
    return file


def folder(root: Path, *, classes: str = "ab", each: int = 10, part: str = "") -> Path:
    for label, name in enumerate(classes):
        for i in range(each):
            picture(root / part / name / f"{i}.png", 1000 * label + i + (500 if part == "test" else 0))
    return root


def said(looked: Looked) -> str:
    return " | ".join(f"{p.text}: {', '.join(p.files)}" for p in looked.problems)


def test_a_fifth_of_each_class_is_held_back_and_nothing_is_lost(tmp_path: Path) -> None:
    looked = look(folder(tmp_path / "p"))
    assert [sum(p.label == k for p in looked.of("test")) for k in (0, 1)] == [2, 2]
    assert len(looked.pictures) == 20
    assert not {p.name for p in looked.of("test")} & {p.name for p in looked.of("train")}
    assert looked.side == 36


def test_the_same_pictures_are_held_back_when_others_come(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    before = {p.name for p in look(root).of("test")}
    picture(root / "a" / "new.png", 77)
    after = {p.name for p in look(root).of("test")}
    assert len(before & after) >= 3


def test_odd_files_are_named_and_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "b" / "text.jpg").write_text("no picture")
    (root / "a" / ".hidden.png").write_bytes(b"")
    (root / "hollow").mkdir()
    picture(root / "alone" / "one.png", 4321)
    picture(root / "a" / "long.png", 6, (400, 40))
    looked = look(root)
    assert looked.classes == ("a", "b")
    for name in ("a/empty.png", "b/text.jpg", "hollow", "alone", "a/long.png"):
        assert name in said(looked)
    assert "1 class with one usable picture, left out: two are needed: alone" in said(looked)
    assert "hidden" not in said(looked)
    assert {p.name for p in looked.pictures} >= {"a/long.png"}
    assert not {p.name for p in looked.pictures} & {"a/empty.png", "b/text.jpg", "alone/one.png"}


def test_copies_count_once_and_a_picture_under_two_labels_not_at_all(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    (root / "a" / "copy.png").write_bytes((root / "a" / "3.png").read_bytes())
    (root / "b" / "torn.png").write_bytes((root / "a" / "4.png").read_bytes())
    looked = look(root)
    names = {p.name for p in looked.pictures}
    assert len(names & {"a/3.png", "a/copy.png"}) == 1
    assert not names & {"a/4.png", "b/torn.png"}
    assert any(problem.serious and "two labels" in problem.text for problem in looked.problems)


def test_a_test_part_of_the_folders_own_is_kept_but_for_pictures_that_were_learned(tmp_path: Path) -> None:
    root = folder(folder(tmp_path / "p", part="train"), each=4, part="test")
    folder(root, each=3, part="val")  # the same pictures as the first of train: each is counted once
    (root / "test" / "a" / "seen.png").write_bytes((root / "train" / "a" / "7.png").read_bytes())
    looked = look(root)
    assert looked.own_test
    assert {p.name for p in looked.of("test")} == {f"test/{name}/{i}.png" for name in "ab" for i in range(4)}
    assert len(looked.of("train")) == 20


def test_folders_that_cannot_be_used_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="one subfolder per class"):
        look(tmp_path / "none")
    with pytest.raises(StudyError, match="two such classes are needed"):
        look(folder(tmp_path / "one", classes="a"))


@pytest.mark.parametrize("name", ["~nobody-of-this-name", "x" * 5000])
def test_a_name_that_can_be_no_folder_s_is_told(name: str) -> None:
    with pytest.raises(DataUnavailable, match="folder:"):
        look(name)


def test_a_test_part_without_pictures_is_said_to_be_empty(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", part="train")
    for name in "ab":
        (root / "test" / name).mkdir(parents=True)
    with pytest.raises(StudyError, match="test part has no picture that can be read"):
        look(root)
    for name in "ab":
        (root / "test" / name / "copy.png").write_bytes((root / "train" / name / "0.png").read_bytes())
    with pytest.raises(StudyError, match="in the training part as well"):
        look(root)


def versions(file: Path, count: int) -> None:
    """The same picture in files that differ in one pixel."""
    pixels = np.asarray(Image.open(file)).copy()
    for i in range(count):
        pixels[0, 0] = i
        Image.fromarray(pixels).save(file.with_name(f"{file.stem}-{i}.png"))


def test_twins_are_learned_both_while_the_class_has_others(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    held = next(p for p in look(root).of("test") if p.label == 0)
    versions(held.file, 2)
    looked = look(root)
    assert "3 pairs of nearly the same picture in one class" in said(looked)
    assert not [p.name for p in looked.of("test") if p.name.startswith(held.name.removesuffix(".png"))]
    assert not any(problem.serious for problem in looked.problems)


def test_twins_on_both_sides_are_told_where_a_class_has_nothing_else(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    versions(picture(root / "c" / "0.png", 9999), 9)
    looked = look(root)
    (problem,) = (one for one in looked.problems if one.serious)
    assert "the accuracy is too high" in problem.text
    part = {p.name: p.part for p in looked.pictures}
    pairs = [pair.split(" ~ ") for pair in problem.files]
    assert all({part[name] for name in pair} == {"train", "test"} for pair in pairs)
    tested = {p.name for p in looked.of("test") if p.name.startswith("c/")}
    assert {name for pair in pairs for name in pair if part[name] == "test"} == tested
    assert len(tested) == 2


def test_nearly_the_same_picture_under_two_labels_is_told_as_grave(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    with Image.open(root / "a" / "3.png") as opened:
        pixels = np.asarray(opened).copy()
    pixels[0, 0] = 0
    Image.fromarray(pixels).save(root / "b" / "twin.png")
    (problem,) = (one for one in look(root).problems if "of nearly the same picture under two labels" in one.text)
    assert problem.serious
    assert problem.text.startswith("1 pair ")
    (pair,) = problem.files
    assert sorted(pair.split(" ~ ")) == ["a/3.png (a)", "b/twin.png (b)"]


def test_among_too_many_pictures_copies_alone_are_looked_for_and_that_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    versions(root / "a" / "3.png", 1)
    (root / "a" / "copy.png").write_bytes((root / "a" / "4.png").read_bytes())
    assert "nearly the same picture in one class" in said(look(root, compared=22))
    looked = said(look(root, compared=21))
    assert "there is time for 21 pictures, and there are 22" in looked
    assert "of nearly the same picture" not in looked
    assert "1 picture there more than once, each counted once: a/4.png = a/copy.png" in looked


def test_a_folder_of_pictures_without_classes_is_refused_with_what_to_do(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "one.png", 1)
    with pytest.raises(StudyError, match="has no subfolder; put the pictures of each class into a folder named after"):
        look(tmp_path / "p")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs paths of a POSIX system")
def test_a_class_that_cannot_be_read_to_its_end_is_told_and_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    """A path longer than the system takes, which holds for the superuser as well."""
    deepen(folder(tmp_path / "p") / "a")
    with pytest.raises(DataUnavailable, match=r"p cannot be read: .*File name too long"):
        look(tmp_path / "p")


def test_classes_of_very_different_sizes_are_told(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    for i in range(2):
        picture(root / "rare" / f"{i}.png", 7000 + i)
    told = said(look(root))
    assert "1 classes have fewer than 10 pictures: expect wide intervals: rare: 2" in told
    assert "classes are unbalanced" not in told  # 10 is no more than five times 2
    picture(root / "a" / "more.png", 8000)
    assert "classes are unbalanced: the largest has 11 pictures, the smallest 2" in said(look(root))


def test_the_data_set_holds_the_pictures_in_the_order_that_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    looked = look(root)
    staged = stage(looked)
    data = load_dataset(staged.data, 32)
    for part, count in (("train", 16), ("test", 4)):
        pictures = staged.read(part, data.unreadable)
        images = data.train.images if part == "train" else data.test.images
        assert len(pictures) == len(images) == count
        for one, image in zip(pictures, images, strict=True):
            with Image.open(root / one.name) as opened:
                square = opened.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC, box=(2, 0, 38, 36))
            assert np.abs(np.asarray(square).astype(int) - image.astype(int)).max() <= 1
    assert [p.label for p in staged.read("train", ())] == data.train.labels.tolist()
    assert stage(looked).root == staged.root
    assert len(stage(looked, everything=True).parts["train"]) == 20


def test_old_folders_of_links_go_and_those_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[stage.__module__], "KEPT", 1)
    first, second = (stage(look(folder(tmp_path / name))) for name in "ab")
    assert first.root.is_dir()  # one too many, but of today
    long_ago = time.time() - 10 * 24 * 3600
    for one in (first, second):
        os.utime(one.root, (long_ago, long_ago))
    stage(look(tmp_path / "b"))  # is used again
    third = stage(look(folder(tmp_path / "c")))
    assert (first.root.is_dir(), second.root.is_dir(), third.root.is_dir()) == (False, True, True)
    assert all(file.is_file() for file in (tmp_path / "a").rglob("*.png"))  # what they led to is there


def test_the_person_s_folder_is_not_written_to(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    stage(look(root))
    assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == before


def test_the_interval_holds_the_test_sample_and_the_seeds() -> None:
    one, same, spread = (expected_accuracy(each, 100) for each in ([0.8], [0.8, 0.8, 0.8], [0.74, 0.8, 0.86]))
    assert one.low == pytest.approx(0.7112, abs=1e-3)  # Wilson of 80 of 100
    assert (same.low, same.high) == (one.low, one.high)
    assert spread.low < one.low < one.high < spread.high
    assert "100 held-back" in spread.how()


def test_confusions_and_gains_are_counted_by_class() -> None:
    labels, predicted = [0, 0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 0, 1, 1, 2, 0]
    pairs = confused_pairs(predicted, labels, "abc")
    assert [(p.true, p.predicted, p.count, p.of) for p in pairs] == [("a", "b", 2, 4), ("c", "a", 1, 2)]
    gains = class_gains(predicted, labels, "abc", exponent=0.5)
    assert {one.name: one.error for one in gains} == {"a": 0.5, "b": 0.0, "c": 0.5}
    assert gains[-1].name == "b"
    assert gains[-1].gain == 0


def test_a_class_without_training_pictures_has_no_error_to_lose() -> None:
    gains = class_gains([0, 1, 1], [0, 1, 0], ["a", "b", "none left"], exponent=0.5)
    assert [one.name for one in gains] == ["a", "b"]
    assert {one.more for one in gains} == {1}  # the median of the classes that have any
