"""The usable pictures as a data set of the engine: a folder of links, train/CLASS and test/CLASS.

The person's own folder is never written to. Links cost no space; where they are not allowed (Windows without developer
mode) the pictures are copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.data.folders import list_folder
from regraft.data.home import ABANDONED_AFTER_SECONDS, home, new_folder
from regraft.predictor.advise.folder import Looked, Picture

KEPT = 100  # folders of links: two for each folder of pictures


@dataclass(frozen=True)
class Staged:
    """A folder of links, and the pictures of each part in the order in which the engine reads them."""

    root: Path
    parts: dict[str, tuple[tuple[str, Picture], ...]]  # with each picture's place below `root`

    @property
    def data(self) -> str:
        """As a target names it."""
        return f"folder:{self.root}"

    def read(self, part: str, unreadable: Sequence[str]) -> list[Picture]:
        """The pictures of a part in the order of the arrays.  unreadable: "place: reason" of those left out of them."""
        left_out = {line.partition(": ")[0] for line in unreadable}
        return [picture for place, picture in self.parts[part] if place not in left_out]


def stage(looked: Looked, *, everything: bool = False) -> Staged:
    """Link the pictures.  everything: all of them are training pictures, for the predictor; the test part is there
    because a data set has one, and must not be scored."""
    placed = {
        "train": [p for p in looked.pictures if everything or p.part == "train"],
        "test": looked.of("test"),
    }
    links = {_place(part, looked.classes[p.label], p): p for part, members in placed.items() for p in members}
    words = json.dumps([[place, str(p.file), p.sha256] for place, p in sorted(links.items())])
    root = home() / "advise" / hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    if root.is_dir():
        os.utime(root)  # still in use
    else:
        _remove_oldest(root.parent)
        with new_folder(root) as folder:
            for place, picture in links.items():
                _link(picture.file, folder / place)
    root = root.resolve()
    by_file = {root / place: picture for place, picture in links.items()}
    listing = list_folder(root)
    parts = {
        part: tuple((file.relative_to(root).as_posix(), by_file[file]) for file, _ in files)
        for part, files in listing.parts.items()
    }
    return Staged(root, parts)


def _remove_oldest(folder: Path) -> None:
    """Each folder that was ever looked at, and each change in it, leaves links behind: the last ones are enough. What
    was computed of the others stays in the store, by the pictures' content."""
    with contextlib.suppress(OSError):  # another process removes them as well
        aged = sorted(((one.stat().st_mtime, one) for one in folder.iterdir() if one.is_dir()), reverse=True)
        for used, old in aged[KEPT:]:
            if time.time() - used > ABANDONED_AFTER_SECONDS:
                shutil.rmtree(old, ignore_errors=True)


def _place(part: str, name: str, picture: Picture) -> str:
    # By its content, so that a picture that is moved or renamed in the person's folder stays what it is here.
    return f"{part}/{name}/{picture.sha256[:24]}{picture.file.suffix.lower()}"


def _link(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(file, place)
    except OSError:
        shutil.copyfile(file, place)
