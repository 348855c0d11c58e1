"""Packed data sets and weights: lossless, checked, in files of limited size, and unpacked as if fetched."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

from regraft.cli_data import add_to, bytes_of
from regraft.data import dataset_digest, load_dataset, verify_dataset
from regraft.data.converted import write_info
from regraft.data.mosaics import decode_mosaic, encode_mosaic, layout_for
from regraft.data.pack import pack, unpack
from regraft.data.packed import MANIFEST, read_manifest
from regraft.errors import DataDamaged, DataUnavailable, StudyError, UnknownName, WeightsUnavailable
from regraft.seeding import stream

PART_BYTES = 20_000
WEIGHTS = "tiny-V1-0.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits (grey), svhn (made up here, in colour, three channels of noise), and weights."""
    home = tmp_path_factory.mktemp("home")
    load_dataset("digits", home=home)
    rng = stream(0, "pack")
    made = home / "data" / "svhn"
    made.mkdir(parents=True)
    for part, n in (("train", 61), ("test", 23)):
        np.save(made / f"{part}_images.npy", rng.integers(0, 256, (n, 32, 32, 3), np.uint8))
        np.save(made / f"{part}_labels.npy", rng.integers(0, 10, n))
    write_info(made, name="svhn", classes=tuple("0123456789"), digest=None, origin="made up")
    (home / "weights").mkdir()
    save_file({"w": torch.arange(12_000.0)}, home / "weights" / WEIGHTS, {"digest": "0", "network": "tiny"})
    return home


@pytest.fixture(scope="module")
def packed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(["digits", "svhn"], folder, PART_BYTES, weights=["tiny"], home=home)
    return folder


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copied")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- there and back ---------------------------------------------------------------------------------------------


def test_unpacking_leaves_what_fetching_left_byte_for_byte(home: Path, packed: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert unpack(packed, there) == {"digits": "unpacked", "svhn": "unpacked", WEIGHTS: "unpacked"}
    assert files_below(there) == files_below(home)
    for name in ("digits", "svhn"):
        assert verify_dataset(name, home=there).digest == dataset_digest(name, home=home)


def test_unpacking_again_changes_nothing(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "there")
    before = files_below(tmp_path / "there")
    assert set(unpack(packed, tmp_path / "there").values()) == {"there already"}
    assert files_below(tmp_path / "there") == before


def test_every_file_keeps_to_the_part_size(packed: Path) -> None:
    parts = [path for path in packed.iterdir() if path.name != MANIFEST]
    assert len(parts) > 10
    assert max(path.stat().st_size for path in parts) <= PART_BYTES
    assert {p.file for item in read_manifest(packed).items() for p in item.parts} == {path.name for path in parts}


def test_a_folder_of_pictures_is_not_decoded_again_where_it_was_unpacked(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for colour in ("red", "blue"):
        (pictures / colour).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (12, 10), colour).save(pictures / colour / f"{i}.png")
    name, here, there = f"folder:{pictures}", tmp_path / "here", tmp_path / "there"
    with pytest.raises(DataUnavailable, match="data get"):
        pack([name], tmp_path / "packed", image_size=8, home=here)
    data = load_dataset(name, 8, here)
    pack([name], tmp_path / "packed", image_size=8, home=here)
    unpack(tmp_path / "packed", there)
    again = load_dataset(name, 8, there, report=lambda done, total: pytest.fail("decoded"))
    assert again.digest == data.digest
    assert np.array_equal(again.train.images, data.train.images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_a_mosaic_gives_its_images_back(count: int, channels: int) -> None:
    images = stream(count, "mosaic").integers(0, 256, (count, 5, 5, channels), np.uint8)
    data = encode_mosaic(images, 4)
    assert np.array_equal(decode_mosaic(data, (count, 5, 5, channels), 4, "it"), images)
    with pytest.raises(DataDamaged, match="manifest"):
        decode_mosaic(data, (count + 4, 5, 5, channels), 4, "it")
    with pytest.raises(DataDamaged, match="cannot be read"):
        decode_mosaic(data[:30], (count, 5, 5, channels), 4, "it")


@pytest.mark.parametrize(("side", "part_bytes"), [(8, 4_400), (32, 20_000), (32, 60_000_000), (50, 200_000)])
def test_noise_which_nothing_shrinks_stays_within_the_part_size(side: int, part_bytes: int) -> None:
    layout = layout_for(side, part_bytes)
    assert layout.images >= 1
    count = min(layout.images, 40)
    few = encode_mosaic(stream(0, "noise").integers(0, 256, (count, side, side, 3), np.uint8), layout.columns)
    assert len(few) * layout.images / count <= part_bytes or count < layout.images
    assert layout.columns * side <= 3200
    assert layout_for(32, 60_000_000).images == 10_000


# --- in steps ---------------------------------------------------------------------------------------------------


def test_parts_may_come_one_by_one(packed: Path, home: Path, tmp_path: Path) -> None:
    there, some = tmp_path / "there", tmp_path / "some"
    parts = [part.file for item in read_manifest(packed).items() for part in item.parts]
    for i in range(0, len(parts), 6):
        shutil.rmtree(some, ignore_errors=True)
        some.mkdir()
        for file in (MANIFEST, *parts[i : i + 6]):
            shutil.copy(packed / file, some)
        if i + 6 < len(parts):
            with pytest.raises(DataUnavailable, match=f"lacks .*{parts[-1] if i + 11 >= len(parts) else ''}"):
                unpack(some, there)
    unpack(some, there)
    assert files_below(there) == files_below(home)


def test_a_missing_part_is_named_and_the_others_are_kept(copied: Path, home: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    gone = copied / "svhn-train_images-001.webp"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(DataUnavailable, match=gone.name):
        unpack(copied, there)
    assert verify_dataset("digits", home=there)
    assert not (there / "data" / "svhn").exists()
    for path in copied.glob("svhn*"):
        path.unlink()
    gone.write_bytes(content)
    assert unpack(copied, there)["svhn"] == "unpacked"
    assert files_below(there) == files_below(home)


def test_a_killed_unpacking_goes_on_where_it_was(copied: Path, home: Path, tmp_path: Path) -> None:
    there, seen = tmp_path / "there", 0

    def killed(done: int, total: int | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(copied, there, killed)
    assert not (there / "data" / "digits").exists()
    first = read_manifest(copied).datasets[0].parts[0].file
    (copied / first).unlink()  # it was taken before
    unpack(copied, there)
    assert files_below(there) == files_below(home)


def test_progress_ends_with_all_bytes(packed: Path, home: Path, tmp_path: Path) -> None:
    for work in (
        lambda report: unpack(packed, tmp_path / "there", report),
        lambda report: pack(["digits"], tmp_path / "again", PART_BYTES, home=home, report=report),
        lambda report: pack(["digits"], tmp_path / "again", PART_BYTES, home=home, report=report),
    ):
        said: list[tuple[int, int | None]] = []
        work(lambda done, total: said.append((done, total)))  # noqa: B023
        assert said == sorted(said)
        assert said[-1][0] > 0
        assert abs(said[-1][0] - (said[-1][1] or 0)) < 1000  # heads of files


def test_packing_again_makes_nothing_new_and_another_size_leaves_no_old_part(home: Path, copied: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in copied.iterdir() if path.name != MANIFEST}
    pack(["digits"], copied, PART_BYTES, home=home)
    assert {path: path.stat().st_mtime_ns for path in copied.iterdir() if path.name != MANIFEST} == stamps
    pack(["svhn"], copied, 10 * PART_BYTES, weights=["tiny"], home=home)
    manifest = read_manifest(copied)
    assert {p.file for item in manifest.items() for p in item.parts} | {MANIFEST} == {p.name for p in copied.iterdir()}
    assert len(list(copied.glob("svhn-*"))) == 5  # 61 training images in two mosaics
    assert [item.name for item in manifest.items()] == ["digits", "svhn", WEIGHTS]


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["digits-train_images-000.webp", "digits-test_labels.zlib", f"{WEIGHTS}.001"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_part_is_named(copied: Path, tmp_path: Path, file: str, cut: bool) -> None:
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / file).write_bytes(content[:-1] if cut else content)
    with pytest.raises(DataDamaged, match=f"{file} has .*Copy this part again"):
        unpack(copied, tmp_path / "there")


def change(copied: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((copied / MANIFEST).read_text())
    how(content)
    (copied / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "how",
    [
        lambda c: c.update(version=2),
        lambda c: c.pop("weights"),
        lambda c: c["datasets"][0].update(folder="../elsewhere"),
        lambda c: c["datasets"][0].update(folder="cifar10"),
        lambda c: c["datasets"][0]["parts"][0].update(file="../../secret"),
        lambda c: c["datasets"][0]["parts"].pop(1),
        lambda c: c["datasets"][0]["info"]["arrays"].update({"../x_images": {"shape": [1, 1, 1, 1]}}),
        lambda c: c["weights"][0].update(file="../x.safetensors"),
        lambda c: c["weights"][0]["parts"].reverse(),
        lambda c: c["weights"][0]["parts"][0].update(start=-1),
        lambda c: c["weights"][0]["parts"][0].update(start=0.0),
        lambda c: c["weights"][0]["parts"].pop(),
        lambda c: c["datasets"][0].update(columns=0),
        lambda c: c["datasets"][0].update(columns="4"),
        lambda c: c["datasets"][0]["info"]["arrays"]["test_labels"].update(shape=["355"]),
        lambda c: c["datasets"][0]["info"]["arrays"]["test_images"].update(shape=[355, 64]),
        lambda c: c["datasets"][0]["info"]["arrays"]["test_images"].update(shape=[355, 0, 8, 1]),
        lambda c: c["datasets"][0]["info"]["arrays"].update({"x_images": {"shape": [1, 1, 1, 1]}}),
    ],
)
def test_a_manifest_that_leads_elsewhere_or_has_gaps_is_refused(
    copied: Path, tmp_path: Path, how: Callable[[dict[str, Any]], object]
) -> None:
    change(copied, how)
    with pytest.raises(DataDamaged, match="manifest of version 1"):
        unpack(copied, tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "how",
    [
        lambda s: s["info"].update(digest="0" * 64),
        lambda s: s["info"]["classes"].reverse(),
        lambda s: s["info"]["arrays"]["test_labels"].update(sha256="0" * 64),
        lambda s: s["info"]["arrays"]["test_labels"].update(shape=[354]) or s["parts"][1].update(count=354),
    ],
)
def test_content_without_its_digest_is_not_installed(
    copied: Path, tmp_path: Path, how: Callable[[dict[str, Any]], object]
) -> None:
    change(copied, lambda content: how(content["datasets"][0]))
    with pytest.raises(DataDamaged):
        unpack(copied, tmp_path / "there")
    assert not (tmp_path / "there" / "data" / "digits").exists()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_a_manifest_that_is_cut_off_is_told(copied: Path, tmp_path: Path, text: str) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(DataDamaged, match=r"is no JSON .*; copy it again"):
        unpack(copied, tmp_path / "there")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no labels", "cannot be read .*; pack the set again"),
        (zlib.compress(bytes(8 * 354)), "does not hold 355 labels; pack the set again"),
        (zlib.compress(bytes(8 * 100_000_000))[:-4], "does not hold 355 labels; pack the set again"),
    ],
    ids=["noise", "too few", "a bomb"],
)
def test_labels_that_were_packed_wrongly_are_refused(copied: Path, tmp_path: Path, content: bytes, said: str) -> None:
    file = "digits-test_labels.zlib"
    (copied / file).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(copied, lambda c: next(p for p in c["datasets"][0]["parts"] if p["file"] == file).update(entry))
    with pytest.raises(DataDamaged, match=f"{file} {said}"):
        unpack(copied, tmp_path / "there")


def test_weights_whose_parts_are_together_another_file_are_not_installed(copied: Path, tmp_path: Path) -> None:
    change(copied, lambda c: c["weights"][0].update(sha256="0" * 64))
    with pytest.raises(
        DataDamaged, match=f"{WEIGHTS}: the parts together are not the file that was packed: it has sha"
    ):
        unpack(copied, tmp_path / "there")
    assert not list((tmp_path / "there" / "weights").iterdir())


@pytest.mark.parametrize("lost", ["digits-*/test_images.npy", f"{WEIGHTS}-*/{WEIGHTS}"])
def test_what_a_power_cut_left_empty_is_unpacked_anew(copied: Path, home: Path, tmp_path: Path, lost: str) -> None:
    there, parts = tmp_path / "there", [part for item in read_manifest(copied).items() for part in item.parts]
    last = {p.file: (copied / p.file).read_bytes() for p in parts if p.file.endswith(("test_labels.zlib", ".001"))}
    for file in last:
        (copied / file).unlink()
    with pytest.raises(DataUnavailable, match="lacks"):
        unpack(copied, there)
    (half,) = there.glob(f"*/.unfinished-unpack-{lost}")
    half.write_bytes(b"") if half.suffix == ".npy" else half.unlink()
    for file, content in last.items():
        (copied / file).write_bytes(content)
    unpack(copied, there)
    assert files_below(there) == files_below(home)


def test_arrays_without_their_record_are_replaced(packed: Path, home: Path, tmp_path: Path) -> None:
    """Left by a crash of the machine."""
    there = tmp_path / "there"
    (there / "data" / "digits").mkdir(parents=True)
    (there / "data" / "digits" / "train_images.npy").write_bytes(b"half")
    assert unpack(packed, there)["digits"] == "unpacked"
    assert files_below(there) == files_below(home)


def test_other_content_under_the_same_name_is_not_replaced(copied: Path, home: Path, tmp_path: Path) -> None:
    there = shutil.copytree(home, tmp_path / "there")
    (there / "weights" / WEIGHTS).write_bytes(b"other")
    with pytest.raises(DataDamaged, match="Delete it"):
        unpack(copied, there)
    assert (there / "weights" / WEIGHTS).read_bytes() == b"other"


def test_what_is_not_here_is_refused_with_the_way_to_get_it(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    with pytest.raises(DataUnavailable, match="regraft data get mnist"):
        pack(["digits", "mnist"], folder, home=home)
    with pytest.raises(UnknownName, match="did you mean 'cifar10'"):
        pack(["cifar1O"], folder, home=home)
    with pytest.raises(WeightsUnavailable, match="those of: tiny"):
        pack([], folder, weights=["resnet50"], home=home)
    with pytest.raises(StudyError, match="at least"):
        pack(["digits"], folder, 10, home=home)
    with pytest.raises(StudyError, match="nothing to pack"):
        pack([], folder, home=home)
    with pytest.raises(DataUnavailable, match=MANIFEST):
        unpack(folder, home)
    assert not folder.exists()  # known before anything was written


# --- the commands -----------------------------------------------------------------------------------------------


def test_the_commands_pack_and_unpack(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()
    add_to(app)
    monkeypatch.setenv("REGRAFT_HOME", str(home))
    words = ["pack", "digits", "svhn", "--weights", "tiny", "--part-size", "20k", str(tmp_path / "packed")]
    app(words, standalone_mode=False)
    assert "svhn" in capsys.readouterr().out
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "there"))
    app(["unpack", str(tmp_path / "packed")], standalone_mode=False)
    assert capsys.readouterr().out.count("unpacked") == 3
    assert files_below(tmp_path / "there") == files_below(home)


def test_sizes_are_read_as_people_write_them() -> None:
    assert [bytes_of(text) for text in ("500", "60M", "60MB", "1.5k", "64MiB", "2 G")] == [
        500, 60_000_000, 60_000_000, 1500, 64 * 2**20, 2 * 10**9,
    ]  # fmt: skip
    for text in ("", "M", "60 apples", "-1"):
        with pytest.raises(typer.BadParameter, match="60M"):
            bytes_of(text)
