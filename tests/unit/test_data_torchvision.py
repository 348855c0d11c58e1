"""Sets that torchvision reads: fetched whole or not at all, converted, and refused where they are not as published."""

from __future__ import annotations

import bz2
import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.data import dataset_info, load_dataset
from regraft.data.torchvision_sets import TORCHVISION_SETS, File
from regraft.errors import DataDamaged, DataUnavailable
from tests.unit.hosts import NOWHERE, serving

WNIDS = ("n01440764", "n02979186")  # of Imagenette: "tench" with a synonym, "cassette player" without


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGRAFT_DATA", raising=False)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "host").mkdir()
    with serving(tmp_path / "host") as address:
        yield address


def usps(labels: list[int]) -> bytes:
    """In libsvm's format: labels from 1, the i-th picture of one grey, i / 4 of the way from black to white."""
    rows = (f"{label} " + " ".join(f"{k}:{i / 2 - 1}" for k in range(1, 257)) for i, label in enumerate(labels))
    return bz2.compress("".join(f"{row}\n" for row in rows).encode())


def put_usps(folder: Path, train: list[int], test: list[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "usps.bz2").write_bytes(usps(train))
    (folder / "usps.t.bz2").write_bytes(usps(test))
    return folder


def from_host(monkeypatch: pytest.MonkeyPatch, name: str, host: str, files: dict[str, bytes]) -> None:
    """The set as if `files`, in the order of the published ones, were published there."""
    entry = TORCHVISION_SETS[name]
    ours = tuple(
        dataclasses.replace(file, url=f"{host}{path}", md5=hashlib.md5(content).hexdigest())
        for file, (path, content) in zip(entry.files, files.items(), strict=True)
    )
    monkeypatch.setitem(TORCHVISION_SETS, name, dataclasses.replace(entry, files=ours))


def gtsrb(labels: tuple[int, ...] = (0, 1)) -> dict[str, bytes]:
    """The three archives: two training pictures a class, a test picture for each of `labels`."""
    archives: dict[str, bytes] = {}
    for archive in ("GTSRB-Training_fixed.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as opened:
            if archive.endswith("GT.zip"):
                rows = "".join(f"{i}.ppm;{label}\n" for i, label in enumerate(labels))
                opened.writestr("GT-final_test.csv", f"Filename;ClassId\n{rows}")
            elif "Test" in archive:
                for i in range(len(labels)):
                    opened.writestr(f"GTSRB/Final_Test/Images/{i}.ppm", picture("PPM"))
            else:
                for name in ("00000/0", "00000/1", "00001/0", "00001/1"):
                    opened.writestr(f"GTSRB/Training/{name}.ppm", picture("PPM"))
        archives[archive] = file.getvalue()
    return archives


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def put_imagenette(folder: Path) -> Path:
    for part in ("train", "val"):
        for wnid in WNIDS:
            (folder / "imagenette2-160" / part / wnid).mkdir(parents=True)
            (folder / "imagenette2-160" / part / wnid / "a.JPEG").write_bytes(picture("JPEG"))
    return folder


# --- the ways -----------------------------------------------------------------------------------------------------


def test_files_of_the_host_are_fetched_once_and_read_without_it_afterwards(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_usps(tmp_path / "host", [1, 2, 3, 3], [2, 1])
    from_host(monkeypatch, "usps", host, {n: (tmp_path / "host" / n).read_bytes() for n in ("usps.bz2", "usps.t.bz2")})
    done: list[int] = []
    data = load_dataset("usps", home=tmp_path / "home", report=lambda n, total: done.append(n))
    assert done
    assert data.classes == ("0", "1", "2")
    assert data.train.labels.tolist() == [0, 1, 2, 2]
    assert data.train.images.shape == (4, 16, 16, 1)
    assert data.train.images[:, 3, 3, 0].tolist() == [0, 63, 127, 191]
    for file in (tmp_path / "host").iterdir():
        file.unlink()
    (tmp_path / "home" / "data" / "usps" / "info.json").unlink()  # converted again, from what was fetched
    assert load_dataset("usps", home=tmp_path / "home").digest == data.digest


def test_archives_of_the_host_are_unpacked_and_not_kept(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_host(monkeypatch, "gtsrb", host, gtsrb())
    for name, content in gtsrb().items():
        (tmp_path / "host" / name).write_bytes(content)
    data = load_dataset("gtsrb", 8, tmp_path / "home")
    assert (data.train.labels.tolist(), len(data.test)) == ([0, 0, 1, 1], 2)
    raw = tmp_path / "home" / "data" / "raw" / "gtsrb"
    assert (raw / "gtsrb" / "GTSRB" / "Training" / "00001" / "1.ppm").is_file()
    assert not list(raw.rglob("*.zip"))


def test_a_file_of_other_bytes_than_published_leaves_nothing(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = gtsrb()
    from_host(monkeypatch, "gtsrb", host, files)
    for name, content in files.items():
        (tmp_path / "host" / name).write_bytes(content + b"\0" * name.endswith("GT.zip"))
    with pytest.raises(DataDamaged, match=r"GTSRB_Final_Test_GT\.zip.* is damaged or another version: md5"):
        load_dataset("gtsrb", 8, tmp_path / "home")
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_where_the_host_does_not_answer_the_reason_and_three_ways_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = TORCHVISION_SETS["usps"]
    nowhere = (File(f"{NOWHERE}usps.bz2", "0" * 32, unpack=False),)
    monkeypatch.setitem(TORCHVISION_SETS, "usps", dataclasses.replace(entry, files=nowhere))
    with pytest.raises(DataUnavailable) as caught:
        load_dataset("usps", home=tmp_path / "home")
    assert f"tried {NOWHERE}usps.bz2: " in str(caught.value)
    for way in ("1. with internet", "2. a package mirror: none", f"3. put the files there: {NOWHERE}usps.bz2 (md5 0"):
        assert way in str(caught.value)


def test_a_set_of_which_half_is_here_is_not_taken_for_whole(tmp_path: Path) -> None:
    put = put_usps(tmp_path / "put", [1, 2], [1])
    (put / "usps.bz2").unlink()
    with pytest.raises(DataUnavailable, match=r"usps is not in .*put and could not be fetched"):
        load_dataset("usps", home=tmp_path / "home", source_dir=put)


def test_what_was_fetched_and_is_no_longer_whole_is_not_written_over(tmp_path: Path) -> None:
    raw = put_usps(tmp_path / "home" / "data" / "raw" / "usps", [1, 2], [1])
    (raw / "usps.bz2").unlink()
    with pytest.raises(DataDamaged, match=r"cannot read what lies in .*usps; delete that folder to fetch it again"):
        load_dataset("usps", home=tmp_path / "home")
    assert [path.name for path in raw.iterdir()] == ["usps.t.bz2"]


# --- what lies there ----------------------------------------------------------------------------------------------


def test_synonyms_of_a_class_are_one_name(tmp_path: Path) -> None:
    data = load_dataset("imagenette", 8, tmp_path / "home", source_dir=put_imagenette(tmp_path / "put"))
    assert data.classes == ("tench/Tinca tinca", "cassette player")
    assert dataset_info("imagenette", tmp_path / "home").classes == data.classes


def test_a_picture_that_is_cut_off_is_named_as_damage(tmp_path: Path) -> None:
    put = put_imagenette(tmp_path / "put")
    cut = put / "imagenette2-160" / "train" / WNIDS[1] / "a.JPEG"
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(
        DataDamaged, match=r"imagenette: a picture of the published set cannot be read .*fetch it again"
    ):
        load_dataset("imagenette", 8, tmp_path / "home", source_dir=put)
    assert not (tmp_path / "home" / "data" / "imagenette-8").exists()


def put_gtsrb(folder: Path, archives: dict[str, bytes]) -> Path:
    for content in archives.values():
        zipfile.ZipFile(io.BytesIO(content)).extractall(folder / "gtsrb")
    return folder


def test_a_list_that_torchvision_cannot_read_is_damage(tmp_path: Path) -> None:
    put = put_gtsrb(tmp_path / "put", gtsrb())
    (put / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;first\n")
    with pytest.raises(DataDamaged, match=r"torchvision cannot read it as GTSRB \(ValueError: .*'first'\); fetch it"):
        load_dataset("gtsrb", 8, tmp_path / "home", source_dir=put)


def test_labels_beyond_the_classes_of_the_training_part_are_damage(tmp_path: Path) -> None:
    put = put_gtsrb(tmp_path / "put", gtsrb((0, 7)))
    with pytest.raises(DataDamaged, match="gtsrb: test labels from 0 to 7 for 2 classes"):
        load_dataset("gtsrb", 8, tmp_path / "home", source_dir=put)


def test_a_label_that_no_published_set_has_makes_no_million_classes(tmp_path: Path) -> None:
    put = put_usps(tmp_path / "put", [1, 5_000_001], [1])
    with pytest.raises(DataDamaged, match="usps: a label of 5,000,000; this is not the published data set"):
        load_dataset("usps", home=tmp_path / "home", source_dir=put)


def test_a_part_without_pictures_is_damage(tmp_path: Path) -> None:
    put = put_usps(tmp_path / "put", [1, 2], [])
    with pytest.raises(DataDamaged, match=r"usps: no pictures in the test part of .*put; fetch it again"):
        load_dataset("usps", home=tmp_path / "home", source_dir=put)
