"""What shards hold: labels of every form, and records, parts and ranges that are refused with the reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from regraft.data import dataset_info, load_dataset
from regraft.data.shards import MAX_PICTURE_BYTES
from regraft.errors import DataDamaged, DataUnavailable, RegraftError, StudyError, TooFewImages
from tests.unit.test_data_streams import COLOURS, PNG, samples, write_parquet, write_tar

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def write_table(file: Path, columns: dict[str, list[Any]], about: bytes | None = None) -> str:
    table = pyarrow.table(columns)
    parquet.write_table(table if about is None else table.replace_schema_metadata({"huggingface": about}), file)
    return f"parquet:{file}"


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["label", "fine_label", "cls"])
def test_labels_may_stand_in_json_and_other_members_are_passed_over(field: str, tmp_path: Path, home: Path) -> None:
    members = [
        member
        for i in range(10)
        for member in (
            (f"{i}.txt", b"a caption"),
            (f"{i}.png", PNG["red"]),
            (f"{i}.json", json.dumps({"width": 12, field: i % 2}).encode()),
        )
    ]
    write_tar(tmp_path / "a.tar", members)
    assert load_dataset(f"webdataset:{tmp_path}", 8, home).train.class_counts == (4, 4)


@pytest.mark.parametrize(
    "about",
    [
        None,
        b"{",
        b'{"info": {}}',
        b'{"info": {"features": {"label": {"names": "abc"}}}}',
        b'{"info": {"features": {"label": {"names": [1, 2, 3]}}}}',
        b'{"info": {"features": {"label": {"names": ["a", "b"]}}}}',
        b'{"info": {"features": {"label": {"names": ["a", "b", "a"]}}}}',
    ],
    ids=["none", "cut", "missing", "text", "numbers", "too few", "twice"],
)
def test_numbers_without_sound_names_are_their_own_names(about: bytes | None, tmp_path: Path, home: Path) -> None:
    labels = [0, 1, 2] * 5
    name = write_table(tmp_path / "a.parquet", {"image": [b""] * 15, "label": labels}, about)
    info = dataset_info(name, home)
    assert (info.classes, info.train_counts, info.test_images) == (("0", "1", "2"), (4, 4, 4), 3)


def test_a_number_that_no_record_has_is_a_class_without_pictures(tmp_path: Path, home: Path) -> None:
    name = write_table(tmp_path / "a.parquet", {"image": [b""] * 10, "label": [0, 2] * 5})
    with pytest.raises(TooFewImages, match=r"a\.parquet: no training record of class '1'"):
        dataset_info(name, home)


def test_as_many_labels_as_records_are_no_classes(tmp_path: Path, home: Path) -> None:
    """A column of file names, say."""
    count = 100_001
    name = write_table(tmp_path / "a.parquet", {"image": [None] * count, "label": [f"file{i}" for i in range(count)]})
    with pytest.raises(StudyError, match="more than 100,000 different labels; these are no classes"):
        dataset_info(name, home)


@pytest.mark.parametrize(
    ("columns", "error", "said"),
    [
        (
            {"image": [b""], "kind": [1]},
            StudyError,
            r"no column of labels; it is one of label, .*has \['image', 'kind'\]",
        ),
        (
            {"photo": [b""] * 2, "label": [0, 1]},
            StudyError,
            r"no column of pictures; it is one of image, .* Rename the column",
        ),
        (
            {"image": [{"bytes": None, "path": "/etc/passwd"}] * 2, "label": [0, 1]},
            DataDamaged,
            "a path is not followed",
        ),
        ({"image": [b""], "label": [True]}, DataDamaged, "'True' is no label"),
        ({"image": [b""], "label": [1.5]}, DataDamaged, "'1.5' is no label: a whole number from 0, or a name"),
    ],
)
def test_columns_that_hold_something_else_are_refused(
    columns: dict[str, list[Any]], error: type[RegraftError], said: str, tmp_path: Path, home: Path
) -> None:
    name = write_table(tmp_path / "a.parquet", {key: values * 12 for key, values in columns.items()})
    with pytest.raises(error, match=said):
        load_dataset(name, 8, home)


@pytest.mark.parametrize("content", [b'{"width": 3}', b"[]", b"7", b"{", b"\xff"])
def test_json_without_a_label_is_shown(content: bytes, tmp_path: Path, home: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", PNG["red"]), ("a.json", content)])
    with pytest.raises(DataDamaged) as caught:
        load_dataset(f"webdataset:{tmp_path}", 8, home)
    assert f"label cannot be read: {content!r}. It is a number or name in KEY.cls, or one of label," in str(
        caught.value
    )


# --- files that are cut off, too large, or changing ---------------------------------------------------------------


def test_a_tar_that_ends_within_a_label_is_refused(tmp_path: Path, home: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", PNG["red"]), ("a.json", b" " * 5000 + b'{"label": 1}')])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b" " * 4000) + 3000])
    with pytest.raises(DataDamaged, match=r"'a\.json' cannot be read .*fetch the shard again"):
        load_dataset(f"webdataset:{tmp_path}", 8, home)


def test_a_picture_too_large_to_be_one_is_left_out_and_listed(tmp_path: Path, home: Path) -> None:
    huge = bytes(MAX_PICTURE_BYTES + 1)
    pictures = [PNG["red"]] * 9 + [huge]
    name = write_table(tmp_path / "a.parquet", {"image": pictures, "label": ["a"] * 5 + ["b"] * 5})
    data = load_dataset(name, 8, home)
    assert data.unreadable == (f"a.parquet record 9: a file of {len(huge):,} bytes",)
    assert (data.train.class_counts, len(data.test)) == ((4, 4), 1)


def test_a_class_of_which_no_training_picture_can_be_read_is_told(tmp_path: Path, home: Path) -> None:
    pictures = [PNG["red"]] * 5 + [b"no picture"] * 4 + [PNG["red"]]
    name = write_table(tmp_path / "a.parquet", {"image": pictures, "label": ["a"] * 5 + ["b"] * 5})
    with pytest.raises(TooFewImages, match="no picture of class 'b' in train can be read"):
        load_dataset(name, 8, home)
    assert not list((home / "data").glob("stream-*-8"))


def test_shards_that_change_while_they_are_read_give_nothing(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "a.tar"
    write_tar(file, samples(["red", "blue"] * 300))
    said: list[tuple[int, int | None]] = []

    def change(done: int, total: int | None) -> None:
        said.append((done, total))
        file.write_bytes(file.read_bytes() + bytes(512))

    with pytest.raises(DataDamaged, match=r"shards changed while they were read; nothing was kept. Start again"):
        load_dataset(f"webdataset:{tmp_path}", 8, home, report=change)
    assert said == [(256, 600), (512, 600)]
    assert not list((home / "data").glob("stream-*-8"))
    assert len(load_dataset(f"webdataset:{tmp_path}", 8, home).train) == 480


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_what_the_labels_tell_is_kept_and_a_damaged_record_of_it_is_made_again(
    damage: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.data.folders.SETTLED_AFTER_NS", -1)  # files this new are hashed each time
    write_parquet(tmp_path / "s" / "x.parquet", [0, 1, 2] * 5, names=list(COLOURS))
    name = f"parquet:{tmp_path / 's'}"
    load_dataset(name, 8, home)
    (index,) = (home / "data" / "stream-index").iterdir()
    before, info = index.read_text(), dataset_info(name, home)
    index.write_text(before.replace("blue", "blau") if damage == "changed" else before[:20])
    assert dataset_info(name, home) == info
    assert index.read_text() == before
    stamp = index.stat().st_mtime_ns
    assert dataset_info(name, home) == info
    assert index.stat().st_mtime_ns == stamp


def test_without_pyarrow_the_error_says_how_to_get_it(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "x.parquet", [0, 1] * 5)
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(DataUnavailable, match=r"pyarrow is needed; install it with: .*'regraft\[hf\]'"):
        load_dataset(f"parquet:{tmp_path / 'x.parquet'}", 8, home)


# --- parts and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train-0", "more"], "more.parquet is named after no part, others are; name all shards train, test or val"),
        (["test-0", "val-0"], "has the parts test, validation, and needs train"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(files: list[str], said: str, tmp_path: Path, home: Path) -> None:
    for file in files:
        write_parquet(tmp_path / "s" / f"{file}.parquet", [0, 1])
    with pytest.raises(StudyError, match=said):
        dataset_info(f"parquet:{tmp_path / 's'}", home)


def test_ranges_of_more_shards_than_there_can_be_are_refused_before_they_are_written_out(home: Path) -> None:
    with pytest.raises(StudyError, match=r"the ranges \['{0..99999}', '{0..99999}'\] stand for .* more than 100,000"):
        dataset_info("webdataset:a{0..99999}-{0..99999}.tar", home)


def test_patterns_that_overlap_name_a_shard_once_and_too_many_are_refused(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in (1, 2, 12):
        write_tar(tmp_path / f"s-{i}.tar", samples(["red", "blue"] * 5))
    name = f"webdataset:{tmp_path}/s-*{{1..2}}*.tar"
    info = dataset_info(name, home)
    assert (info.train_counts, info.test_images) == ((12, 12), 6)
    monkeypatch.setattr("regraft.data.streams.MAX_SHARDS", 2)
    with pytest.raises(StudyError, match="more than 2 shards; name fewer, larger ones"):
        dataset_info(name, home)


# --- the Hub's cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set somebody/colours in the cache, without files yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))  # where HF_HOME leads
    repository = tmp_path / "hub" / "datasets--somebody--colours"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    return repository / "snapshots" / ("a" * 40)


def test_a_data_set_of_the_hub_is_read_from_its_cache(cached: Path, home: Path) -> None:
    write_parquet(cached / "data" / "train-0.parquet", [0, 1, 2] * 2, names=list(COLOURS))
    write_parquet(cached / "data" / "test-0.parquet", [0, 1, 2], names=list(COLOURS))
    data = load_dataset("hf:somebody/colours", 8, home, offline=True)
    assert (data.name, data.classes, data.train.class_counts) == ("hf:somebody/colours", tuple(COLOURS), (2, 2, 2))


@pytest.mark.parametrize(
    ("folders", "error", "said"),
    [
        ([], DataUnavailable, "has no Parquet files; give its pictures as folder:PATH"),
        (
            ["plain", "cropped"],
            StudyError,
            "several configurations, in cropped and plain; name one by its folder: parq",
        ),
    ],
)
def test_of_a_data_set_of_the_hub_one_configuration_is_read(
    folders: list[str], error: type[RegraftError], said: str, cached: Path, home: Path
) -> None:
    (cached / "README.md").write_text("colours")
    for folder in folders:
        write_parquet(cached / folder / "train-0.parquet", [0, 1, 2])
    with pytest.raises(error, match=said):
        load_dataset("hf:somebody/colours", 8, home, offline=True)
