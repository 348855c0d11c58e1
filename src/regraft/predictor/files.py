"""What a person names on a command line (files, folders, patterns, a list) -> the picture files to look at."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from regraft.data.folders import HIDDEN, normal
from regraft.data.pictures import SUFFIXES

PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Found:
    """A file to look at, or a name that leads to none."""

    path: str  # as it was named, or as its folder was
    label: str | None = None  # class, where it lies in a class folder
    reason: str | None = None  # why there is nothing to look at


@dataclass
class Search:
    """The files found, in order, each once; and what was passed over, counted by kind."""

    found: list[Found] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    unknown_folders: Counter[str] = field(default_factory=Counter)  # names that are no class, of files beside classes

    @property
    def labelled(self) -> bool:
        return any(one.label is not None for one in self.found)


def find_pictures(names: Iterable[str], classes: Collection[str] = ()) -> Search:
    """The picture files that `names` lead to.

    A file is taken whatever it is called. A folder is searched at any depth for files named like pictures, sorted;
    hidden ones are passed over, and links to folders, which can be circles. A name with * ? or [ that is no file is a
    pattern (** for any depth). A file below a subfolder of a named folder that is called like one of `classes` has
    that class."""
    search, seen = Search(), set[str]()
    wanted = {normal(name): name for name in classes}
    for name in names:
        for one in _of_name(name, wanted, search):
            place = os.path.abspath(one.path) if "\0" not in one.path else one.path
            if place not in seen:
                seen.add(place)
                search.found.append(one)
    return search


def _of_name(name: str, classes: dict[str, str], search: Search) -> Iterator[Found]:
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        if PATTERN & set(name):
            yield from _of_pattern(name, classes, search)
        else:
            yield Found(name, reason="a link to nothing" if os.path.islink(name) else "no such file or folder")
        return
    except (
        OSError,
        ValueError,
    ):  # no permission, a name too long, a circle of links, a zero byte: its reader will tell
        yield Found(name)
        return
    if stat.S_ISDIR(mode):
        yield from _in_folder(name, classes, search)
    else:
        yield Found(name)


def _of_pattern(name: str, classes: dict[str, str], search: Search) -> Iterator[Found]:
    hits = sorted(glob.glob(name, recursive=True))
    if not hits:
        yield Found(name, reason="no file or folder fits this pattern")
    for hit in hits:
        if os.path.isdir(hit):
            if "**" not in name:  # such a pattern names the files in the folders as well
                yield from _in_folder(hit, classes, search)
        elif "**" not in name or _named_like_picture(hit):
            yield Found(hit)


def _in_folder(folder: str, classes: dict[str, str], search: Search) -> Iterator[Found]:
    count = 0
    for parent, folders, files in os.walk(folder, onerror=lambda error: _not_opened(error, search)):
        search.passed_over["hidden files and folders"] += sum(one.startswith(HIDDEN) for one in [*folders, *files])
        links = [one for one in folders if os.path.islink(os.path.join(parent, one)) and not one.startswith(HIDDEN)]
        search.passed_over["links to folders"] += len(links)
        folders[:] = sorted(one for one in folders if not one.startswith(HIDDEN) and one not in links)
        label = _label(folder, parent, classes, search, files=len(files))
        for name in sorted(files):
            if name.startswith(HIDDEN):
                continue
            if not _named_like_picture(name):
                search.passed_over["files not named like pictures"] += 1
                continue
            count += 1
            yield Found(os.path.join(parent, name), label)
    if count == 0:
        yield Found(folder, reason=f"no picture in this folder (files named {' '.join(sorted(SUFFIXES))} count)")


def _label(folder: str, parent: str, classes: dict[str, str], search: Search, *, files: int) -> str | None:
    first = Path(os.path.relpath(parent, folder)).parts[:1]
    if not first or not classes:
        return None
    label = classes.get(normal(first[0]))
    if label is None and files:
        search.unknown_folders[first[0]] += files
    return label


def _named_like_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _not_opened(error: OSError, search: Search) -> None:
    search.passed_over[f"folders that cannot be opened ({error.strerror})"] += 1
