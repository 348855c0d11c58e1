"""Data sets by name: what is known without data, converted once, and safe against half-written folders."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from numpy.typing import NDArray

from regraft.data import converted, dataset_digest, dataset_info, dataset_names, home, load_dataset, verify_dataset
from regraft.data.catalogue import PUBLISHED
from regraft.data.home import new_folder
from regraft.data.torchvision_sets import TORCHVISION_SETS
from regraft.errors import DataDamaged, DataUnavailable, StudyError, UnknownName

PINNED = ("digits", "cifar10", "cifar100", "mnist", "fashion-mnist")


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGRAFT_DATA", raising=False)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    load_dataset("digits", home=folder)
    return folder


def test_digits_are_1797_images_with_a_fixed_test_fifth(shared_home: Path) -> None:
    data = load_dataset("digits", home=shared_home)
    assert (len(data.train), len(data.test)) == (1442, 355)
    assert data.train.images.shape[1:] == (8, 8, 1)
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert data.train.class_counts == dataset_info("digits").train_counts
    assert data.classes == tuple("0123456789")


def test_digits_match_scikit_learn(shared_home: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_dataset("digits", home=shared_home)
    ours = sorted(image.tobytes() for image in np.concatenate([data.train.images, data.test.images]))
    theirs = sorted(np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images)
    assert ours == theirs


@pytest.mark.parametrize("name", PINNED)
def test_the_usual_sets_are_described_without_any_data(name: str, tmp_path: Path) -> None:
    info = dataset_info(name, tmp_path / "nowhere")
    assert info.known
    assert len(info.classes) == len(set(info.classes)) == len(info.train_counts)
    assert info.test_images is not None
    assert info.image_size is not None
    assert info.digest == dataset_digest(name, home=tmp_path / "nowhere")
    assert re.fullmatch("[0-9a-f]{64}", info.digest)
    assert info.available == (name == "digits")
    assert not (tmp_path / "nowhere").exists()


def test_each_pinned_digest_is_another() -> None:
    assert len({PUBLISHED[name].digest for name in PINNED}) == len(PINNED)


def test_fixed_size_sets_come_at_their_own_size(shared_home: Path) -> None:
    assert load_dataset("digits", 224, shared_home).image_size == 8


def test_names_are_found_whatever_their_case(shared_home: Path) -> None:
    assert load_dataset("Digits", home=shared_home).name == "digits"
    assert dataset_info("CIFAR-10").name == "cifar10"


@pytest.mark.parametrize("ask", [load_dataset, dataset_info, dataset_digest, verify_dataset])
def test_an_unknown_name_is_refused_with_the_nearest_and_the_list(ask: object, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"'cifar1000'; did you mean 'cifar100'.*regraft data list"):
        ask("cifar1000", home=tmp_path)  # type: ignore[operator]


def test_a_data_set_is_read_only_once(shared_home: Path) -> None:
    before = (shared_home / "data" / "digits" / "info.json").stat().st_mtime_ns
    load_dataset("digits", home=shared_home)
    assert (shared_home / "data" / "digits" / "info.json").stat().st_mtime_ns == before


def test_a_half_written_folder_is_made_again(tmp_path: Path) -> None:
    """A killed process leaves a temporary folder, a crash of the machine a folder without its record."""
    (tmp_path / "data" / ".unfinished-digits-abc").mkdir(parents=True)
    (tmp_path / "data" / "digits").mkdir()
    (tmp_path / "data" / "digits" / "train_images.npy").write_bytes(b"\x93NUMPY half")
    assert len(load_dataset("digits", home=tmp_path).train) == 1442
    verify_dataset("digits", home=tmp_path)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "final") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_of_two_writers_the_first_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "final") as late:
        (late / "x").write_text("late")
        with new_folder(tmp_path / "final") as early:
            (early / "x").write_text("early")
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "x").read_text() == "early"


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, np.int64), np.zeros(1442, np.int64), np.array([{}] * 1442, object)],
    ids=["shape", "bytes", "objects"],
)
def test_damaged_arrays_are_set_aside_and_made_anew(array: NDArray[Any], tmp_path: Path) -> None:
    before = load_dataset("digits", home=tmp_path)
    np.save(tmp_path / "data" / "digits" / "train_labels.npy", array, allow_pickle=True)
    after = load_dataset("digits", home=tmp_path)
    assert np.array_equal(after.train.labels, before.train.labels)
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    verify_dataset("digits", home=tmp_path)


def test_a_damaged_record_of_arrays_costs_no_arrays(tmp_path: Path) -> None:
    """What is moved aside can be looked at; it may have been fetched over hours."""
    load_dataset("digits", home=tmp_path)
    (tmp_path / "data" / "digits" / "info.json").write_text("{")
    load_dataset("digits", home=tmp_path)
    (aside,) = (tmp_path / "damaged").iterdir()
    assert (aside / "train_images.npy").is_file()


def test_large_arrays_are_compared_again_only_when_their_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "READ_ALWAYS_BYTES", 0)
    load_dataset("digits", home=tmp_path)
    load_dataset("digits", home=tmp_path)  # compared, and noted
    with monkeypatch.context() as once:
        once.setattr(converted, "array_sha256", lambda array: "not looked at")
        load_dataset("digits", home=tmp_path)
    file = tmp_path / "data" / "digits" / "test_images.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    load_dataset("digits", home=tmp_path)
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_one_changed_byte_is_found_by_verifying(tmp_path: Path) -> None:
    load_dataset("digits", home=tmp_path)
    file = tmp_path / "data" / "digits" / "test_images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataDamaged, match=r"test_images\.npy has the sha256"):
        verify_dataset("digits", home=tmp_path)


def test_a_record_with_another_digest_than_the_published_is_found_by_verifying(tmp_path: Path) -> None:
    load_dataset("digits", home=tmp_path)
    file = tmp_path / "data" / "digits" / "info.json"
    info = json.loads(file.read_text())
    del info["sha256"]  # as of a version that sealed no record
    file.write_text(json.dumps({**info, "digest": "0" * 64}))
    with pytest.raises(DataDamaged, match="not the published"):
        verify_dataset("digits", home=tmp_path)


def test_large_arrays_are_memory_mapped_and_equal(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_dataset("digits", home=shared_home)
    monkeypatch.setattr("regraft.data.converted.MAP_BEYOND_BYTES", 1000)
    mapped = load_dataset("digits", home=shared_home)
    assert isinstance(mapped.train.images, np.memmap)
    assert np.array_equal(mapped.train.images, whole.train.images)


def test_offline_without_data_names_the_ways(tmp_path: Path) -> None:
    with pytest.raises(
        DataUnavailable,
        match=r"(?s)cifar100.*1\. .*2\. .*none is known.*3\. .*eb9058c3a382ffc7106e4002c42a8d85",
    ):
        load_dataset("cifar100", home=tmp_path, offline=True)
    with pytest.raises(DataUnavailable, match=r"(?s)svhn.*e26dedcc434d2e4c54c9b2d4a06d8373.*--from DIR"):
        load_dataset("svhn", home=tmp_path, offline=True)


def test_verifying_what_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="regraft data get mnist"):
        verify_dataset("mnist", home=tmp_path)
    with pytest.raises(DataUnavailable, match="regraft data get svhn"):
        dataset_digest("svhn", home=tmp_path)


def test_sets_of_pictures_of_any_size_need_an_image_size(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="image_size is required"):
        load_dataset("food101", home=tmp_path, offline=True)


def test_the_home_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("REGRAFT_HOME")
    assert home().name == "regraft"


def test_naming_data_sets_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys; from regraft.data import dataset_info, dataset_names; "
        "[dataset_info(n) for n in dataset_names()]; "
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(TORCHVISION_SETS))
def test_torchvision_has_each_set_and_its_published_md5s(name: str) -> None:
    """Our table of files agrees with the installed torchvision's."""
    import inspect

    entry = TORCHVISION_SETS[name]
    source = inspect.getsource(inspect.getmodule(getattr(torchvision.datasets, entry.kind)) or torchvision)
    for file in entry.files:
        assert file.md5 in source
        assert file.url.rsplit("/", 1)[-1] in source


def test_the_published_md5s_agree_with_torchvision() -> None:
    for name, kind in {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}.items():
        for file, md5 in getattr(torchvision.datasets, kind).resources:
            assert PUBLISHED[name].bundles[0].md5[file] == md5
    for name, kind in {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}.items():
        theirs = getattr(torchvision.datasets, kind)
        bundle = PUBLISHED[name].bundles[0]
        assert bundle.archive_digest == f"md5:{theirs.tgz_md5}"
        assert bundle.md5 == dict([*theirs.train_list, *theirs.test_list])


def test_a_torchvision_set_is_converted_through_torchvision(tmp_path: Path) -> None:
    """A GTSRB of four pictures, laid out as published."""
    from PIL import Image

    root = tmp_path / "put" / "gtsrb"
    images = root / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    for label in range(2):
        (root / "GTSRB" / "Training" / f"0000{label}").mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (30 + i, 20), (0, 200 * label, 0)).save(root / f"GTSRB/Training/0000{label}/{i}.ppm")
        Image.new("RGB", (25, 25), (0, 200 * label, 0)).save(images / f"{label}.ppm")
    (root / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;0\n1.ppm;1\n")
    data = load_dataset("gtsrb", 16, tmp_path / "home", source_dir=tmp_path / "put")
    assert data.train.images.shape == (4, 16, 16, 3)
    assert data.classes == ("0", "1")
    assert data.train.images[:, 8, 8, 1].tolist() == [200 * label for label in data.train.labels]
    assert data.test.score(np.eye(2), run="a").accuracy == 1.0
    info = dataset_info("gtsrb", tmp_path / "home")
    assert (info.train_counts, info.test_images, info.available) == ((2, 2), 2, True)
    assert dataset_digest("gtsrb", 16, tmp_path / "home") == data.digest


def test_the_list_of_names_is_sorted_and_complete() -> None:
    assert dataset_names() == sorted(dataset_names())
    assert {*PINNED, "svhn", "food101"} <= set(dataset_names())
