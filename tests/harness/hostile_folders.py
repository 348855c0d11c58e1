"""Pictures, folders, predictors and data sets that mean ill.

Each function makes one from random numbers, in a folder, and gives what a user would do with it.
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regraft.data import load_dataset
from regraft.data.pack import unpack
from regraft.predictor import Predictor
from tests.harness.hostile_weights import Action, Random, evil, pick
from tests.unit.predictor_example import repacked, tiny_predictor

HUGE = (10**9, 10**12, 2**62)

# --- pictures and folders ----------------------------------------------------------------------------------------


def class_folders(folder: Path) -> Path:
    """Two classes of four pictures, with room for a bad one."""
    root = folder / "pictures"
    for label, colour in (("cat", (200, 20, 20)), ("dog", (20, 200, 20))):
        (root / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20 + i, 20), colour).save(root / label / f"{i}.png")
    return root


def opened(root: Path, bad: str = "bad") -> Action:
    """What a study does with `folder:PATH`: a file that is no picture must be named, never be a picture."""

    def action() -> str:
        data = load_dataset(f"folder:{root}", 16)
        said = [line for line in data.unreadable if bad in line]
        count = len(data.train) + len(data.test)
        if said:
            return f"named as unreadable: {said[0]}"
        return "passed over: no file" if count == 8 else ""

    return action


def image_bombs(random: Random, folder: Path) -> Action:
    """Headers that state 900 million pixels or more, packed zeros, and files of another kind under a picture's name."""
    root = class_folders(folder)
    side = int(pick(random, [30_000, 60_000, 2**31 - 1]))

    def png() -> bytes:
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        rows = zlib.compress(bytes(10**6))
        chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
        )

    options: list[tuple[str, Callable[[], bytes]]] = [
        ("png", png), ("gif", lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf7\0\0" + bytes(800)),
        ("bmp", lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("ppm", lambda: f"P6 {side} {side} 255\n".encode() + bytes(99)), ("jpg", lambda: b"%!PS-Adobe\n/x 1 def\n"),
        ("png", lambda: b"\x89PNG\r\n\x1a\n"), ("jpg", lambda: b"\xff\xd8\xff" + random.bytes(999)),
        ("tif", lambda: b"II*\0" + struct.pack("<I", 8) + random.bytes(400)),
        ("webp", lambda: b"RIFF\xff\xff\xff\xffWEBP"), ("jpg", lambda: bytes(10**6)),
        ("png", lambda: b"<svg onload='x'/>"), ("jp2", lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + random.bytes(300)),
        ("avif", lambda: b"\0\0\0\x1cftypavif" + random.bytes(300)), ("gif", lambda: b""),
    ]  # fmt: skip
    suffix, content = pick(random, options)
    (root / "cat" / f"bad.{suffix}").write_bytes(content())
    return opened(root)


def odd_trees(random: Random, folder: Path) -> Action:
    """Links in circles, to devices or to nothing, pipes, sockets, unreadable and missing folders."""
    root = class_folders(folder)
    bad = root / "cat" / "bad.png"
    kind = int(random.integers(9))
    if kind == 0:
        bad.symlink_to(pick(random, ["/dev/zero", "/dev/urandom", "/dev/tty", "/proc/self/mem", "/proc/kmsg"]))
    elif kind == 1:
        os.mkfifo(bad)
    elif kind == 2:
        bad.symlink_to(bad)
    elif kind == 3:
        bad.symlink_to(root / "nowhere")
    elif kind == 4:
        (root / "cat" / "bad").symlink_to(root, target_is_directory=True)
        (root / "bad").symlink_to(root, target_is_directory=True)
    elif kind == 5:
        with socket.socket(socket.AF_UNIX) as made:
            here = Path.cwd()
            os.chdir(root / "cat")  # a socket's path may have 107 bytes
            made.bind("bad.png")
            os.chdir(here)
    elif kind == 6:
        bad.mkdir()
        (root / "cat" / ("x" * 200)).mkdir()
    elif kind == 7:
        root = pick(
            random, [root / "nowhere", bad, Path("~nobody-of-that-name/x"), Path("x" * 5000), Path("/dev/null")]
        )
    else:
        (root / "cat" / "bad.png").symlink_to(folder.parent / "sentinel" / "deep" / "file")
    return opened(root)


# --- predictors, packs and data sets that were converted ------------------------------------------------------------


@cache
def predictor() -> bytes:
    out = Path(os.environ["REGRAFT_HOME"]) / "tiny.regraft"
    return tiny_predictor().save(out).read_bytes()


def junk(random: Random) -> Any:
    """A value of any form."""
    return pick(random, [None, True, -1, 0, 1.5, 10**30, "", "x", "\x1b[31m", "\u202e", "x" * 10_000, [], {}, [[]],
                         [None], {"a": 1}, "../x", *HUGE])  # fmt: skip


def mangled(random: Random, given: Any) -> None:
    """Put a value of any form at a random place of nested mappings and lists."""
    while True:
        keys = list(given) if isinstance(given, dict) else list(range(len(given)))
        key = pick(random, keys)
        below = given[key]
        if isinstance(below, dict | list) and below and random.random() < 0.6:
            given = below
            continue
        kind = int(random.integers(4))
        if kind == 0:
            del given[key]
        elif kind == 1 and isinstance(given, dict):
            given[str(junk(random))] = below
        else:
            given[key] = junk(random)
        return


def lying_predictors(random: Random, folder: Path) -> Action:
    """Sealed again by somebody who knows how: all digests fit, what is said does not."""
    file = folder / "p.regraft"
    file.write_bytes(predictor())
    before = Predictor.load(file, device="cpu", backend="eager").manifest
    # Only what decides an answer: metrics and provenance are its maker's own words, and shown as such.
    told = ("metrics", "provenance", "licence", "regraft", "temperature", "grey", "mirrored", "picture_size")

    def change(given: dict[str, Any]) -> None:
        mangled(random, given)
        given.setdefault("sha256", "")

    repacked(file, manifest=change)

    def action() -> str:
        found = Predictor.load(file, device="cpu", backend="eager").manifest
        same = all(getattr(found, f) == getattr(before, f) for f in ("network", "stem", "cuts", "head", "members"))
        count = len(found.classes) == len(before.classes)
        return f"its own words ({', '.join(told)}, class names)" if same and count else ""

    return action


def predictors_as_zips(random: Random, folder: Path) -> Action:
    """Members, sizes and bytes that are not those of a predictor."""
    whole = bytearray(predictor())
    directory = whole.rindex(b"PK\x01\x02")
    kind = int(random.integers(6))
    if kind == 0:
        del whole[int(random.integers(len(whole))) :]
    elif kind == 1:
        at = directory + int(random.integers(46))
        whole[at] ^= 1 << int(random.integers(8))
    elif kind == 2:
        at = whole.index(b"weights.safetensors") + 19 + int(random.integers(2000))  # the header of its tensors
        whole[at] ^= 1 << int(random.integers(8))
    elif kind == 3:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(pick(random, ["manifest.json", "data.pkl"]), bytes(2**24))
            archive.writestr("weights.safetensors", b"x")
        whole = bytearray(out.getvalue())
    elif kind == 4:
        import pickle

        whole = bytearray(pickle.dumps(evil(random, folder / "canary")))
    else:
        whole += pick(random, [b"x", bytes(whole), b"PK\x05\x06" + bytes(18)])
    file = folder / "p.regraft"
    file.write_bytes(whole)

    def action() -> str:
        state = Predictor.load(file, device="cpu", backend="eager").network.tensors()
        expected = tiny_predictor().network.tensors()
        same = all(bool((state[name] == value).all()) for name, value in expected.items())
        return "the flipped bit stands for nothing" if same else ""

    return action


def lying_packs(random: Random, folder: Path) -> Action:
    """Manifests of `data unpack` with other names, sizes and counts, and parts with other bytes."""
    from regraft.data.pack import pack
    from regraft.data.packed import MANIFEST

    home = Path(os.environ["REGRAFT_HOME"])
    load_dataset("digits", home=home / "maker")
    pack(["digits"], folder, home=home / "maker")
    if random.random() < 0.7:
        given = json.loads((folder / MANIFEST).read_text())
        mangled(random, given)
        (folder / MANIFEST).write_text(json.dumps(given))
    else:
        part = pick(random, [file for file in sorted(folder.iterdir()) if file.name != MANIFEST])
        content = bytearray(part.read_bytes())
        content[int(random.integers(len(content)))] ^= 1
        part.write_bytes(content)

    def action() -> str:
        unpack(folder, home / "taker")
        data = load_dataset("digits", home=home / "taker", offline=True)
        return "the same digits" if data.digest == load_dataset("digits", home=home / "maker").digest else ""

    return action


def lying_data(random: Random, folder: Path) -> Action:
    """Arrays of a converted data set, and their record, that do not say the same."""
    home = Path(os.environ["REGRAFT_HOME"])
    load_dataset("digits", home=home)
    place = home / "data" / "digits"
    if random.random() < 0.6:
        info = json.loads((place / "info.json").read_text())
        mangled(random, info)
        (place / "info.json").write_text(json.dumps(info))
    else:
        array = pick(random, sorted(place.glob("*.npy")))
        old = np.load(array)
        new = pick(random, [old.astype(float), old[:5], old.astype(str), old.astype(object), old[..., None]])
        if old.ndim == 1 and random.random() < 0.5:
            new = pick(random, [old + 100, old - 1, np.zeros_like(old)])
        np.save(array, new, allow_pickle=True)
        if random.random() < 0.4:
            array.write_bytes(array.read_bytes()[:200].replace(b"(", b"(9999999,"))

    def action() -> str:
        data, true = (load_dataset("digits", home=place, offline=True) for place in (home, home / "true"))
        same = data.digest == true.digest and data.classes == true.classes and len(data.test) == len(true.test)
        equal = np.array_equal(data.train.images, true.train.images)
        return "the same digits" if same and equal and np.array_equal(data.train.labels, true.train.labels) else ""

    return action


CASES = (image_bombs, odd_trees, lying_predictors, predictors_as_zips, lying_packs, lying_data)
