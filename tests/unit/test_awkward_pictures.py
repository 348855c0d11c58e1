"""Pictures as they come: what becomes of each kind of file, in one table, for prediction and for data folders.

Every kind is read as a person expects, named with a reason, or passed over; none ends in a traceback.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.data import load_dataset
from regraft.data.folders import list_folder
from regraft.errors import DataDamaged, StudyError, TooFewImages
from regraft.predictor import Predictor
from regraft.predictor.answers import Answer, answer_files
from regraft.predictor.files import find_pictures
from tests.unit.predictor_example import SIZE, tiny_predictor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and names that Windows has not got")

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
ROTATED = 6  # EXIF: the camera was turned by a quarter
ODD_EXIF = b"Exif\0\0MM\0\x2a\xff\xff\xff\xff\0\x01"


def flag(size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return picture


def coded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def animation(kind: str) -> bytes:
    others = [Image.new("RGB", (48, 48), WHITE) for _ in range(3)]
    return coded(flag(), kind, save_all=True, append_images=others, duration=50, lossless=True)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    return coded(flag().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def sixteen_bits(kind: str) -> bytes:
    values = np.zeros((48, 48), np.uint16)
    values[:, 24:] = 65535
    return coded(Image.fromarray(values), kind)


def see_through() -> bytes:
    palette = flag().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    return coded(palette, "PNG", transparency=palette.getpixel((2, 2)))


def bomb(side: int = 60_000) -> bytes:
    """A few bytes that would become side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


ODD_NAMES = () if sys.platform == "darwin" else (os.fsdecode(b"not utf-8 \xff.png"),)  # macOS refuses such names


@dataclass(frozen=True)
class Kind:
    """A kind of file, and what is expected of it."""

    name: str  # of the file
    content: Callable[[], bytes]
    outcome: str  # "read", "passed over", or the beginning of the reason why it is not read
    left: tuple[int, int, int] = RED  # colours of its halves, where it is read
    right: tuple[int, int, int] = BLUE


KINDS = (
    # What cameras, programs and the web write
    Kind("plain.jpg", lambda: coded(flag(), "JPEG", quality=95), "read"),
    Kind("progressive.jpeg", lambda: coded(flag(), "JPEG", quality=95, progressive=True), "read"),
    Kind("plain.png", lambda: coded(flag(), "PNG"), "read"),
    Kind("plain.webp", lambda: coded(flag(), "WEBP", lossless=True), "read"),
    Kind("plain.bmp", lambda: coded(flag(), "BMP"), "read"),
    Kind("plain.tiff", lambda: coded(flag(), "TIFF"), "read"),
    Kind("packed.tif", lambda: coded(flag(), "TIFF", compression="tiff_lzw"), "read"),
    Kind("plain.gif", lambda: coded(flag(), "GIF"), "read"),
    Kind("CAPITAL.JPG", lambda: coded(flag(), "JPEG", quality=95), "read"),
    Kind("png named.jpg", lambda: coded(flag(), "PNG"), "read"),
    Kind("moving.gif", lambda: animation("GIF"), "read"),  # its first picture
    Kind("moving.webp", lambda: animation("WEBP"), "read"),
    Kind("two pages.tif", lambda: animation("TIFF"), "read"),
    Kind("turned.jpg", turned, "read"),  # upright
    Kind("odd exif.jpg", lambda: coded(flag(), "JPEG", exif=ODD_EXIF, quality=95), "read"),
    # Colours
    Kind("cmyk.jpg", lambda: coded(flag().convert("CMYK"), "JPEG", quality=95), "read"),
    Kind("cmyk.tif", lambda: coded(flag().convert("CMYK"), "TIFF"), "read"),
    Kind("grey.png", lambda: coded(flag().convert("L"), "PNG"), "read", (76, 76, 76), (29, 29, 29)),
    Kind("black and white.png", lambda: coded(flag().convert("L").point(lambda v: 255 * (v > 50), "1"), "PNG"), "read",
         WHITE, (0, 0, 0)),
    Kind("16 bits.png", lambda: sixteen_bits("PNG"), "read", (0, 0, 0), WHITE),
    Kind("16 bits.tif", lambda: sixteen_bits("TIFF"), "read", (0, 0, 0), WHITE),
    Kind("palette.png", lambda: coded(flag().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), "read"),
    Kind("see-through palette.png", see_through, "read", WHITE, BLUE),  # on white
    Kind("see-through.png", lambda: coded(Image.new("RGBA", (9, 9), (9, 9, 9, 0)), "PNG"), "read", WHITE, WHITE),
    Kind("see-through grey.png", lambda: coded(Image.new("LA", (9, 9), (9, 0)), "PNG"), "read", WHITE, WHITE),
    Kind("floats.tif", lambda: coded(Image.new("F", (8, 8), 0.5), "TIFF"), "32-bit pixels"),
    # Sizes
    Kind("huge.jpg", lambda: coded(flag((6000, 4000)), "JPEG"), "read"),
    Kind("1 x 1.png", lambda: coded(Image.new("RGB", (1, 1), RED), "PNG"), "read", RED, RED),
    Kind("thin.png", lambda: coded(Image.new("RGB", (60_000, 1), RED), "PNG"), "read", RED, RED),
    Kind("bomb.png", bomb, "Image size (3600000000 pixels) exceeds limit"),
    Kind("small bomb.png", lambda: bomb(12_000), "Image size (144000000 pixels) exceeds limit"),
    # Damaged, or no picture
    Kind("cut off.jpg", lambda: coded(flag((300, 300)), "JPEG")[:900], "image file is truncated"),
    Kind("cut off.png", lambda: coded(Image.effect_noise((99, 99), 50), "PNG")[:-3000], "image file is truncated"),
    Kind("zero bytes.png", lambda: b"", "the file is empty"),
    Kind("one byte.gif", lambda: b"G", "no picture in a format that can be read"),
    Kind("words.jpg", lambda: b"hello", "no picture in a format that can be read"),
    Kind("page.png", lambda: b"<!doctype html><title>404</title>", "no picture in a format that can be read"),
    Kind("program.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture in a format"),
    Kind("phone.heic", lambda: b"\0\0\0\x18ftypheic" + bytes(64), "no picture in a format that can be read"),
    Kind("drawing.svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "passed over"),
    Kind("notes.txt", lambda: b"hello", "passed over"),
    # Names
    Kind(".hidden.png", lambda: coded(flag(), "PNG"), "passed over"),
    Kind("._resource.jpg", lambda: b"\0\5\x16\7", "passed over"),
    Kind("no suffix", lambda: coded(flag(), "PNG"), "passed over"),
    Kind("日本 – ñandú 🌷.png", lambda: coded(flag(), "PNG"), "read"),
    Kind("x" * 251 + ".png", lambda: coded(flag(), "PNG"), "read"),
    Kind("two\nlines.png", lambda: coded(flag(), "PNG"), "read"),
    Kind("%s {0} $HOME `id`.png", lambda: coded(flag(), "PNG"), "read"),
    Kind("-rf.png", lambda: coded(flag(), "PNG"), "read"),
    *(Kind(name, lambda: coded(flag(), "PNG"), "read") for name in ODD_NAMES),
)  # fmt: skip
# What is no file of its own
LINKS = {
    "link.png": "read",
    "link to nothing.png": "a link to nothing",
    "link to itself.png": "a link to itself",
    "pipe.png": "passed over",
    "link to a folder": "passed over",
    "circle": "passed over",
}
OUTCOMES = {**{kind.name: kind.outcome for kind in KINDS}, **LINKS}
READ = sorted(name for name, outcome in OUTCOMES.items() if outcome == "read")
REFUSED = sorted(name for name, outcome in OUTCOMES.items() if outcome not in ("read", "passed over"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: "awkward" with every kind, "plain" with two pictures."""
    root = tmp_path_factory.mktemp("pictures")
    awkward, elsewhere = root / "awkward", tmp_path_factory.mktemp("elsewhere")
    for place in (awkward, root / "plain"):
        place.mkdir()
    for i in range(2):
        (root / "plain" / f"{i}.png").write_bytes(coded(flag(), "PNG"))
        (elsewhere / f"{i}.png").write_bytes(coded(flag(), "PNG"))
    for kind in KINDS:
        (awkward / kind.name).write_bytes(kind.content())
    (awkward / "link.png").symlink_to(elsewhere / "0.png")
    (awkward / "link to nothing.png").symlink_to("nowhere.png")
    (awkward / "link to itself.png").symlink_to("link to itself.png")
    (awkward / "link to a folder").symlink_to(elsewhere, target_is_directory=True)
    (awkward / "circle").symlink_to(root, target_is_directory=True)
    (root / "whole circle").symlink_to(root, target_is_directory=True)
    os.mkfifo(awkward / "pipe.png")
    return root


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


@pytest.fixture(scope="module")
def answers(folder: Path, predictor: Predictor) -> dict[str, Answer]:
    search = find_pictures([str(folder / "awkward")])
    return {os.path.basename(one.path): one for one in answer_files(predictor, search.found)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("name", sorted(OUTCOMES), ids=ascii)
def test_each_kind_is_answered_named_or_passed_over_in_prediction(name: str, answers: dict[str, Answer]) -> None:
    found, outcome = answers.get(name), OUTCOMES[name]
    if outcome == "passed over" and name != "pipe.png":
        assert found is None
    elif outcome == "read":
        assert found is not None
        assert found.reason is None
        assert found.probabilities is not None
    else:  # a pipe that is named like a picture is never opened: a reader would wait for ever
        assert found is not None
        assert str(found.reason).startswith("no file but a pipe" if name == "pipe.png" else outcome)


def test_each_kind_is_kept_named_or_passed_over_in_a_data_folder(folder: Path, home: Path) -> None:
    data = load_dataset(f"folder:{folder}", 16, home)
    assert data.classes == ("awkward", "plain")  # a circle is no class
    assert len(data.train) + len(data.test) == len(READ) + 2
    reasons = dict(line.removeprefix("awkward/").split(": ", 1) for line in data.unreadable)
    assert sorted(reasons) == REFUSED
    for name, reason in reasons.items():
        assert reason.startswith(OUTCOMES[name]), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.outcome == "read"], ids=lambda kind: ascii(kind.name))
def test_each_readable_kind_shows_what_is_on_it(kind: Kind, folder: Path, predictor: Predictor) -> None:
    """Upright, the first picture, in its colours; a JPEG's are a little off."""
    (square,) = predictor.squares([folder / "awkward" / kind.name])
    assert not isinstance(square, str)
    for column, colour in ((4, kind.left), (SIZE - 5, kind.right)):
        assert np.abs(square[SIZE // 2, column].astype(int) - colour).max() <= 40


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0b.png", "embedded null"), ("x" * 300 + ".png", "File name too long"),
        ("nowhere/*.png", "no file or folder fits"), ("", "no such file"), ("[", "no file or folder fits"),
        ("nowhere.png/", "no such file"), ("link to itself.png", "a link to itself"),
        ("link to nothing.png", "a link to nothing"), ("pipe.png", "no file but a pipe"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_named_with_a_reason(
    name: str, reason: str, folder: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "awkward")
    (only,) = answer_files(predictor, find_pictures([name]).found)
    assert reason in str(only.reason)
    assert only.probabilities is None


def test_a_picture_without_a_suffix_is_read_when_it_is_named(folder: Path, predictor: Predictor) -> None:
    (only,) = answer_files(predictor, find_pictures([str(folder / "awkward" / "no suffix")]).found)
    assert only.reason is None


def test_a_file_that_goes_away_is_named(folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(coded(flag(), "PNG"))
    search = find_pictures([str(tmp_path), str(folder / "plain")])
    (tmp_path / "a.png").unlink()
    assert [one.reason for one in answer_files(predictor, search.found)] == ["no such file", None, None]


# --- class folders -------------------------------------------------------------------------------------------------


def draw(folder: Path, counts: dict[str, int]) -> Path:
    content = coded(Image.new("RGB", (4, 4), RED), "BMP")
    for name, n in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            (folder / name / f"{i}.bmp").write_bytes(content)
    return folder


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TooFewImages, match=r"no pictures in 'b'.*Fill or remove"):
        list_folder(draw(tmp_path, {"a": 2, "b": 0, "c": 2}))
    search = find_pictures([str(tmp_path)], ["a", "b", "c"])  # predicting needs no picture of each class
    assert [one.label for one in search.found] == ["a", "a", "c", "c"]


def test_a_class_of_one_picture_is_named_and_with_a_test_folder_it_does(tmp_path: Path) -> None:
    with pytest.raises(TooFewImages, match="class 'b' has one picture"):
        list_folder(draw(tmp_path / "pool", {"a": 2, "b": 1}))
    draw(tmp_path / "parts" / "train", {"a": 2, "b": 1})
    draw(tmp_path / "parts" / "test", {"a": 1, "b": 1})
    assert list_folder(tmp_path / "parts").counts("train") == (2, 1)


@pytest.mark.slow
def test_a_thousand_classes_are_read(tmp_path: Path, home: Path) -> None:
    draw(tmp_path, {f"class {i:03}": 2 for i in range(1000)})
    data = load_dataset(f"folder:{tmp_path}", 4, home)
    assert (len(data.classes), len(data.train), len(data.test)) == (1000, 1000, 1000)
    names = [f"class {i:03}" for i in range(1000)]
    found = find_pictures([str(tmp_path)], names).found
    assert len(found) == 2000
    assert {one.label for one in found} == set(names)


def test_a_class_of_damaged_pictures_is_named(tmp_path: Path, home: Path) -> None:
    draw(tmp_path, {"a": 2, "b": 2})
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataDamaged, match=r"no picture of class 'b'.*the file is empty"):
        load_dataset(f"folder:{tmp_path}", 4, home)


def test_pictures_without_class_folders_are_told_what_a_data_set_is(tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(coded(flag(), "BMP"))
    with pytest.raises(StudyError, match="one subfolder of pictures per class"):
        list_folder(tmp_path)
