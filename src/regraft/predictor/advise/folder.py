"""A look at a person's folder before anything is computed: what is in it, what is odd, and which picture goes where."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.analysis.findings import Problem
from regraft.data.duplicates import calibrate, find_pairs
from regraft.data.folders import TEST_SHARE, folder_root, part_folders, pictures_by_class
from regraft.data.pictures import FORMATS, decode_pictures
from regraft.data.sketches import look_at, nearly_constant
from regraft.errors import DataUnavailable, StudyError

SIDE = 64  # pixels, at which pictures are compared
MOST_COMPARED = 20_000  # pictures: among more, near duplicates are not looked for, whatever the time
FEW, UNBALANCED = 10, 5.0  # pictures of a class; largest class by smallest
LONG, SMALL = 3.0, 0.25  # longer by shorter side; shorter side by the median


@dataclass(frozen=True)
class Picture:
    """One usable picture."""

    file: Path
    name: str  # relative to the folder
    label: int
    part: str  # "train" or "test"; the validation part of a folder is training pictures here
    size: tuple[int, int] = (0, 0)  # width and height in pixels
    sha256: str = ""

    @property
    def shorter(self) -> int:
        """Of its sides, in pixels."""
        return min(self.size)


@dataclass(frozen=True, eq=False)
class Looked:
    """What the folder holds, training and held-back pictures told apart."""

    root: Path
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    own_test: bool
    problems: tuple[Problem, ...]

    def of(self, part: str) -> list[Picture]:
        """The pictures of a part."""
        return [picture for picture in self.pictures if picture.part == part]

    @property
    def side(self) -> int:
        """Median of the shorter sides, in pixels."""
        return int(np.median([picture.shorter for picture in self.pictures]))


def look(path: str | Path, *, compared: int = MOST_COMPARED) -> Looked:
    """Read the folder, leave out what cannot be used, and hold back a test part.

    compared: near duplicates are looked for among at most so many pictures; among more, only copies are.
    Raises DataUnavailable without such a folder, StudyError where fewer than two classes can be used."""
    root = folder_root(path)
    found, classes, own_test, problems = _listed(root)
    images, readable, unreadable = _read(found)
    pictures = [replace(p, size=_size(p.file), sha256=_sha256(p.file)) for p in readable]
    problems += [unreadable] if unreadable.files else []
    pairs = _pairs(images, pictures, compared)
    kept, copies = _without_copies(pictures, classes)
    problems += copies + _near(pictures, pairs, classes, compared)
    alike = {pictures[i].name for pair in pairs for i in pair}
    kept, few, classes = _enough(kept, classes, own_test)
    problems += few
    if own_test:
        kept, crossing = _apart(kept, pictures, pairs)
    else:
        kept = _held_back(kept, alike)
        crossing = _torn_apart(kept, pictures, pairs)
    problems += crossing
    kept.sort(key=lambda picture: (picture.part, picture.label, picture.name))
    return Looked(root, classes, tuple(kept), own_test, tuple(problems + _odd(kept, classes, images, pictures)))


def _listed(root: Path) -> tuple[list[Picture], tuple[str, ...], bool, list[Problem]]:
    """All files named like pictures; classes without any are told of."""
    try:
        by_part = {part: pictures_by_class(folder) for part, folder in part_folders(root).items()}
    except OSError as error:
        raise DataUnavailable(f"{root} cannot be read: {error.filename}: {error.strerror}") from error
    names = sorted({name for by_class in by_part.values() for name in by_class})
    if not names:
        raise StudyError(f"{root} has no subfolder; put the pictures of each class into a folder named after it")
    pictures = [
        Picture(file, file.relative_to(root).as_posix(), label, "test" if part == "test" else "train")
        for part, by_class in by_part.items()
        for label, name in enumerate(names)
        for file in by_class.get(name, [])
    ]
    counts = Counter(picture.label for picture in pictures)
    empty = tuple(name for label, name in enumerate(names) if not counts[label])
    problems = [Problem(f"{_n(len(empty), 'folder')} without pictures, left out", empty)] if empty else []
    return pictures, tuple(names), "test" in by_part, problems


def _read(pictures: Sequence[Picture]) -> tuple[NDArray[np.uint8], list[Picture], Problem]:
    """Small copies (n, 64, 64, 3) of those that can be read."""
    images, readable, reasons = [], [], []
    decoded = decode_pictures([picture.file for picture in pictures], SIDE)
    for picture, image in zip(pictures, decoded, strict=True):
        if isinstance(image, str):
            reasons.append(f"{picture.name}: {image}")
        else:
            images.append(image)
            readable.append(picture)
    problem = Problem(f"{_n(len(reasons), 'file')} cannot be read as pictures, left out", tuple(reasons))
    return np.array(images, np.uint8).reshape(-1, SIDE, SIDE, 3), readable, problem


def _size(file: Path) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            return picture.size


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _pairs(images: NDArray[np.uint8], pictures: Sequence[Picture], most: int) -> list[tuple[int, int]]:
    """Positions of pictures that are the same photograph, changed a little or not at all."""
    if not 2 <= len(images) <= most:
        return []
    looked = look_at(images)
    labels = np.array([picture.label for picture in pictures])
    threshold = calibrate(looked, labels).correlation
    found = find_pairs(looked, looked, threshold, same_split=True)
    return list(zip(found.first.tolist(), found.second.tolist(), strict=True))


def _without_copies(pictures: Sequence[Picture], classes: tuple[str, ...]) -> tuple[list[Picture], list[Problem]]:
    """Of pictures with the same bytes one is kept; none where they carry different labels."""
    kept, twice, torn = [], [], []
    order = sorted(pictures, key=lambda picture: (picture.sha256, picture.part == "test", picture.name))
    for _, group in groupby(order, key=lambda picture: picture.sha256):
        members = list(group)
        if len({picture.label for picture in members}) > 1:
            torn.append(" = ".join(f"{p.name} ({classes[p.label]})" for p in members))
            continue
        kept.append(members[0])
        if len(members) > 1:
            twice.append(" = ".join(picture.name for picture in members))
    problems = []
    if torn:
        problems.append(Problem(f"{_n(len(torn), 'picture')} under two labels, left out", tuple(torn), serious=True))
    if twice:
        problems.append(Problem(f"{_n(len(twice), 'picture')} there more than once, each counted once", tuple(twice)))
    return kept, problems


def _near(
    pictures: Sequence[Picture], pairs: Sequence[tuple[int, int]], classes: tuple[str, ...], most: int
) -> list[Problem]:
    near = [(pictures[i], pictures[j]) for i, j in pairs if pictures[i].sha256 != pictures[j].sha256]
    torn = [(a, b) for a, b in near if a.label != b.label]
    problems = []
    if torn:
        names = tuple(f"{a.name} ({classes[a.label]}) ~ {b.name} ({classes[b.label]})" for a, b in torn)
        problems.append(Problem(f"{_n(len(torn), 'pair')} of nearly the same picture under two labels", names, True))
    if len(near) > len(torn):
        names = tuple(f"{a.name} ~ {b.name}" for a, b in near if a.label == b.label)
        problems.append(Problem(f"{_n(len(names), 'pair')} of nearly the same picture in one class", names))
    if len(pictures) > most:
        text = (
            f"near duplicates were not looked for: there is time for {most:,} pictures, and there are {len(pictures):,}"
        )
        problems.append(Problem(text))
    return problems


def _enough(
    pictures: Sequence[Picture], classes: tuple[str, ...], own_test: bool
) -> tuple[list[Picture], list[Problem], tuple[str, ...]]:
    """Without classes that cannot be learned and tested; the others numbered anew."""
    counts = Counter(picture.label for picture in pictures if not own_test or picture.part == "train")
    needed = 1 if own_test else 2
    usable = [label for label in range(len(classes)) if counts[label] >= needed]
    problems = []
    if single := tuple(classes[label] for label in range(len(classes)) if 0 < counts[label] < needed):
        text = f"{_n(len(single), 'class', 'classes')} with one usable picture, left out: two are needed"
        problems.append(Problem(text, single))
    if len(usable) < 2:
        raise StudyError(
            f"{len(usable)} of {len(classes)} classes have {needed} usable pictures or more, and two such classes are "
            "needed. " + "; ".join(f"{classes[label]!r} has {counts[label]}" for label in range(min(10, len(classes))))
        )
    new = {label: i for i, label in enumerate(usable)}
    kept = [replace(picture, label=new[picture.label]) for picture in pictures if picture.label in new]
    return kept, problems, tuple(classes[label] for label in usable)


def _held_back(pictures: Sequence[Picture], alike: set[str]) -> list[Picture]:
    """A fifth of each class becomes the test part: those whose names have the smallest sha256, so that it is the same
    on every machine and pictures added later move few. A picture that has a twin is tested with only where its class
    has too few others."""
    test = set()
    for _, group in groupby(sorted(pictures, key=lambda p: p.label), key=lambda p: p.label):
        members = list(group)
        order = sorted(
            members, key=lambda p: (p.name in alike, hashlib.sha256(p.name.encode("utf-8", "surrogateescape")).digest())
        )
        test |= {picture.name for picture in order[: max(1, round(TEST_SHARE * len(members)))]}
    return [replace(picture, part="test" if picture.name in test else "train") for picture in pictures]


def _torn_apart(
    kept: Sequence[Picture], pictures: Sequence[Picture], pairs: Sequence[tuple[int, int]]
) -> list[Problem]:
    """Twins of which one was held back, because their class has hardly anything else."""
    part = {picture.name: picture.part for picture in kept}
    named = [(pictures[i].name, pictures[j].name) for i, j in pairs]
    torn = tuple(f"{a} ~ {b}" for a, b in named if {part.get(a), part.get(b)} == {"train", "test"})
    text = f"{_n(len(torn), 'pair')} of nearly the same picture, one of them tested with: the accuracy is too high"
    return [Problem(text, torn, serious=True)] if torn else []


def _apart(
    kept: Sequence[Picture], pictures: Sequence[Picture], pairs: Sequence[tuple[int, int]]
) -> tuple[list[Picture], list[Problem]]:
    """Without test pictures that are like a training picture: they would make the accuracy look better."""
    crossing = {}
    for i, j in pairs:
        a, b = sorted((pictures[i], pictures[j]), key=lambda picture: picture.part)  # test before train
        if (a.part, b.part) == ("test", "train"):
            crossing[a.name] = f"{a.name} ~ {b.name}"
    if not any(picture.part == "test" for picture in pictures):
        raise StudyError("the test part has no picture that can be read; fill its class folders, or remove it")
    left = [picture for picture in kept if picture.name not in crossing]
    if not any(picture.part == "test" for picture in left):
        raise StudyError(
            "there is nothing to test with: every picture of the test part is in the training part as well, or under "
            "two labels, or of a class that has no training picture"
        )
    text = f"{_n(len(crossing), 'test picture')} like a training picture, not tested with"
    return left, [Problem(text, tuple(crossing.values()), serious=True)] if crossing else []


def _odd(
    kept: Sequence[Picture], classes: tuple[str, ...], images: NDArray[np.uint8], pictures: Sequence[Picture]
) -> list[Problem]:
    """Sizes, shapes, balance: what is used, but may surprise."""
    counts = Counter(picture.label for picture in kept)
    side = float(np.median([picture.shorter for picture in kept]))
    constant = nearly_constant(images, np.arange(len(images)))
    listed = {
        f"classes have fewer than {FEW} pictures: expect wide intervals": [
            f"{classes[label]}: {n}" for label, n in sorted(counts.items()) if n < FEW
        ],
        f"pictures are more than {LONG:g} times as long as wide; only their middle is seen": [
            p.name for p in kept if max(p.size) > LONG * p.shorter
        ],
        "pictures are much smaller than most": [
            f"{p.name}: {p.size[0]} x {p.size[1]}" for p in kept if p.shorter < SMALL * side
        ],
        "pictures are of one colour": [pictures[i].name for i in constant.tolist()],
    }
    problems = [Problem(f"{len(names)} {text}", tuple(names)) for text, names in listed.items() if names]
    most, least = max(counts.values()), min(counts.values())
    if most > UNBALANCED * least:
        problems.append(Problem(f"classes are unbalanced: the largest has {most:,} pictures, the smallest {least:,}"))
    return problems


def _n(count: int, one: str, many: str = "") -> str:
    """'1 file', '2 files'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
