"""`parquet:PATH`, `webdataset:PATTERN`, `hf:NAME`: parts, classes, the same arrays as folders, and shards that lie."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.data import dataset_digest, dataset_info, load_dataset, verify_dataset
from regraft.data.streams import find_stream
from regraft.errors import DataDamaged, DataUnavailable, RegraftError, StudyError, TooFewImages

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


PNG = {colour: png(colour) for colour in COLOURS}


def write_parquet(file: Path, labels: list[int] | list[str], *, names: list[str] | None = None) -> None:
    """As `datasets` writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    order = list(COLOURS)
    pictures = [{"bytes": PNG[label if isinstance(label, str) else order[label]], "path": None} for label in labels]
    table = pyarrow.table({"image": pictures, "label": labels})
    if names:
        told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    parquet.write_table(table, file)


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))


def samples(labels: list[str], *, start: int = 0) -> list[tuple[str, bytes]]:
    return [
        member
        for i, label in enumerate(labels, start)
        for member in ((f"{i:06}.png", PNG[label]), (f"{i:06}.cls", label.encode()))
    ]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def check_colours(name: str, home: Path, *, train: tuple[int, ...], test: int) -> None:
    info = dataset_info(name, home)
    assert (info.classes, info.train_counts, info.test_images) == (tuple(COLOURS), train, test)
    data = load_dataset(name, 8, home)
    assert (data.classes, data.train.class_counts, len(data.test)) == (info.classes, train, test)
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert (image[4, 4] == COLOURS[data.classes[label]]).all()
    true = [next(i for i, c in enumerate(COLOURS.values()) if (image[4, 4] == c).all()) for image in data.test.images]
    assert data.test.score(np.eye(3)[true], run="a").accuracy == 1.0
    assert dataset_digest(name, 8, home) == data.digest == verify_dataset(name, 8, home).digest


def test_parquet_files_are_read_by_part_with_the_names_of_their_classes(tmp_path: Path, home: Path) -> None:
    names = list(COLOURS)
    for i in range(2):
        write_parquet(tmp_path / "set" / "data" / f"train-0000{i}-of-00002.parquet", [0, 1, 2, 2], names=names)
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", [2, 1, 0], names=names)
    check_colours(f"parquet:{tmp_path / 'set'}", home, train=(2, 2, 4), test=3)


def test_of_shards_without_parts_every_fifth_record_of_a_class_is_for_test(tmp_path: Path, home: Path) -> None:
    shards = [["red"] * 6 + ["green"] * 5, ["blue"] * 11 + ["red"] * 4]
    for i, labels in enumerate(shards):
        write_tar(tmp_path / f"shard-{i:03}.tar", samples(labels, start=100 * i))
    check_colours(f"webdataset:{tmp_path}/shard-{{000..001}}.tar", home, train=(9, 4, 8), test=5)
    assert find_stream(f"webdataset:{tmp_path}/*.tar").parts == find_stream(f"webdataset:{tmp_path}").parts


def test_a_stream_decodes_to_the_arrays_of_a_folder(tmp_path: Path, home: Path) -> None:
    rng = np.random.default_rng(0)
    rows: dict[str, list[tuple[bytes, str]]] = {"train": [], "test": []}
    for part, count in (("train", 12), ("test", 4)):
        for i in range(count):
            label, file = ("a", "b")[i >= count // 2], io.BytesIO()
            pixels = rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "JPEG")
            rows[part].append((file.getvalue(), label))
            folder = tmp_path / "folder" / part / label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:03}.jpg").write_bytes(file.getvalue())
        table = pyarrow.table({"image": [r[0] for r in rows[part]], "label": [r[1] for r in rows[part]]})
        parquet.write_table(table, tmp_path / f"{part}.parquet", row_group_size=5)
    a, b = (
        load_dataset(f"folder:{tmp_path / 'folder'}", 16, home),
        load_dataset(f"parquet:{tmp_path}/*.parquet", 16, home),
    )
    assert a.classes == b.classes
    for one, other in ((a.train, b.train),):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(a.test.images, b.test.images)


def test_pictures_that_cannot_be_read_are_left_out_and_listed(tmp_path: Path, home: Path) -> None:
    broken = [(name, content[:40] if name == "000002.png" else content) for name, content in samples(["red"] * 9)]
    write_tar(tmp_path / "a.tar", [*broken, *samples(["green"] * 9, start=50)])
    data = load_dataset(f"webdataset:{tmp_path}", 8, home)
    assert len(data.unreadable) == 1
    assert "000002" in data.unreadable[0]
    assert data.train.class_counts == (8, 7)
    assert data.train.images.shape == (15, 8, 8, 3)


def test_the_digest_follows_the_bytes_of_the_shards(tmp_path: Path, home: Path) -> None:
    write_parquet(tmp_path / "s" / "x.parquet", [0, 1] * 5)
    before = dataset_digest(f"parquet:{tmp_path / 's'}", 8, home)
    assert dataset_digest(f"parquet:{tmp_path / 's'}", 9, home) != before
    write_parquet(tmp_path / "s" / "x.parquet", [0, 1] * 6)
    assert dataset_digest(f"parquet:{tmp_path / 's'}", 8, home) != before


@pytest.mark.parametrize(
    ("members", "error", "said"),
    [
        ([("../a.png", PNG["red"]), ("../a.cls", b"1")], DataDamaged, "outside"),
        ([("a.png", PNG["red"])], StudyError, "no label"),
        ([("a.cls", b"1")], StudyError, "no picture"),
        ([("a.png", PNG["red"]), ("a.cls", b"-1" * 200)], DataDamaged, "no label"),
        ([("a.png", PNG["red"]), ("a.json", b"[" * 100_000)], DataDamaged, "cannot be read"),
        ([("a.png", PNG["red"]), ("a.cls", b"x" * 2**21)], DataDamaged, "at most"),
        ([*samples(["red"] * 5), *samples(["red"])], DataDamaged, "twice"),
        (samples(["red"] * 20), StudyError, "two are needed"),
        (samples(["red", "green"]), TooFewImages, "for test"),
        ([("a.png", b""), ("a.cls", b"99999999999")], DataDamaged, "below"),
    ],
)
def test_shards_that_lie_are_refused(
    members: list[tuple[str, bytes]], error: type[RegraftError], said: str, tmp_path: Path, home: Path
) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(error, match=said):
        load_dataset(f"webdataset:{tmp_path}", 8, home)


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.98])
def test_a_parquet_file_that_is_cut_off_or_overwritten_is_refused(keep: float, tmp_path: Path, home: Path) -> None:
    file = tmp_path / "x.parquet"
    write_parquet(file, [0, 1] * 20)
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(DataDamaged, match="fetch it again"):
        load_dataset(f"parquet:{file}", 8, home)


def test_names_that_stand_for_nothing_are_refused(tmp_path: Path, home: Path) -> None:
    for name in (f"parquet:{tmp_path}/none", f"webdataset:{tmp_path}/a{{0..3}}.tar", "hf:nobody/nothing"):
        with pytest.raises(DataUnavailable):
            load_dataset(name, 8, home, offline=True)
    for name in ("parquet:", f"webdataset:{tmp_path}/{{5..3}}.tar", "webdataset:{0..999999999}", "hf:../../etc"):
        with pytest.raises(StudyError):
            load_dataset(name, 8, home, offline=True)
    assert not dataset_info("hf:nobody/nothing", home).available


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """The arrays of the larger set are 900 MB, its file about as much."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from regraft.data import load_dataset
data = load_dataset("parquet:" + sys.argv[1], 224, Path(sys.argv[2]))
print(len(data.train), [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""
    if not Path("/proc/self/status").is_file():
        pytest.skip("reads a process's peak memory as Linux tells it")
    peaks = []
    for count in (500, 6000):
        rng, file = np.random.default_rng(0), tmp_path / f"{count}.parquet"
        schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())])
        with parquet.ParquetWriter(file, schema, compression="none") as writer:
            for start in range(0, count, 500):
                noise = rng.integers(0, 256, (500, 224, 224, 3), dtype=np.uint8)
                pictures = []
                for pixels in noise:
                    one = io.BytesIO()
                    Image.fromarray(pixels).save(one, "BMP")
                    pictures.append(one.getvalue())
                labels = [i % 2 for i in range(start, start + 500)]
                writer.write_table(pyarrow.table({"image": pictures, "label": labels}, schema=schema))
        out = subprocess.run(
            [sys.executable, "-c", script, str(file), str(tmp_path / f"home{count}")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        read, peak = map(int, out.stdout.split())
        assert read == count * 4 // 5
        peaks.append(peak / 1024)
        file.unlink()
    assert peaks[1] - peaks[0] < 300, peaks  # MiB


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_read_from_its_cache_without_a_network(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "datasets--somebody--colours"
    for part, labels in (("train", [0, 1, 2] * 2), ("test", [0, 1, 2])):
        write_parquet(cache / "snapshots" / ("a" * 40) / "data" / f"{part}-00000-of-00001.parquet", labels)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    script = """
import sys
from pathlib import Path
from regraft.data import dataset_info, load_dataset
print(dataset_info("hf:somebody/colours", Path(sys.argv[1])).train_counts)
print(load_dataset("hf:somebody/colours", 8, Path(sys.argv[1]), offline=True).test.images.shape)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "home")],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert out.stdout.splitlines() == ["(2, 2, 2)", "(3, 8, 8, 3)"]
