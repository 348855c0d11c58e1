"""The kinds of files that regraft keeps, each with the way in which it reads them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.small import TINY, Stand


@dataclass(frozen=True)
class Kept:
    """Files of one kind, and what is read from them."""

    files: list[Path]
    read: Callable[[], object]  # the content; None: not there as far as regraft can tell, so it is made anew
    content: object
    put_back: Callable[[], None] = lambda: None


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    before = os.environ["REGRAFT_HOME"]
    os.environ["REGRAFT_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ["REGRAFT_HOME"] = before


def _told(tensors: Any) -> str:
    """A digest of tensors by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + str(tensors[name].dtype).encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def artifacts(on: Stand, folder: Path) -> Kept:
    """All four files of all artifacts; what a study reads of them."""
    from regraft.study.store import Store

    shutil.copytree(on.whole.store, folder)
    store = Store(folder)
    keys, last = store.keys(), dict[str, tuple[int, int]]()

    def stamp(key: str) -> tuple[int, int]:
        states = [file.stat() for file in sorted(store.path(key).iterdir())]
        return max(s.st_mtime_ns for s in states), sum(s.st_size for s in states)

    def one(key: str) -> str | None:
        artifact = store.get(key)
        if artifact is None:
            return None
        return json.dumps([artifact.spec, artifact.values, artifact.record]) + _told(store.tensors(artifact))

    whole = {key: one(key) for key in keys}

    def read() -> object:
        changed = [key for key in keys if last.get(key) != stamp(key)]
        found = dict(whole)
        for key in changed:
            found[key] = one(key)
        return None if None in found.values() else found

    def put_back() -> None:
        for key in keys:
            aside = next(folder.glob(f"damaged/{key}.*"), None)
            if aside is not None:
                for file in aside.iterdir():
                    if file.name != "why.txt" and not (store.path(key) / file.name).exists():
                        file.rename(store.path(key) / file.name)
                shutil.rmtree(aside)
            last[key] = stamp(key)

    files = [file for key in keys for file in sorted(store.path(key).iterdir())]
    return Kept(files, read, whole, put_back)


def index(on: Stand, folder: Path) -> Kept:
    """The index of what artifacts say: a convenience, which is never believed when it is not as it was written."""
    from regraft.study.index import SETTLED_AFTER_NS, Index, index_path
    from regraft.study.store import Store

    shutil.copytree(on.whole.store, folder / "store")
    time.sleep(SETTLED_AFTER_NS / 1e9 + 0.1)  # younger artifacts are not in the index
    store = Store(folder / "store")

    def read() -> object:
        with _home(folder / "home"):
            opened = Index(store)
            found = [opened.get(key) for key in store.keys()]
            opened.save()
        return None if None in found else json.dumps([[a.spec, a.values, a.record] for a in found if a is not None])

    content = read()
    with _home(folder / "home"):
        place = index_path(store).parent
    assert content is not None
    return _remade(place, read)


def checkpoint(on: Stand, folder: Path) -> Kept:
    """A training under way."""
    import torch

    from regraft.study.scratch import Scratch

    Scratch(folder / "work").save({"epoch": 3, "curve": [0.5, 0.25]}, {"w": torch.arange(500.0)})
    (file,) = (folder / "work").glob("checkpoint-*")

    def read() -> object:
        found = Scratch(folder / "work", store=folder).load()
        return None if found is None else (found[0], _told(found[1]))

    return Kept([file], read, read())


def group_links(on: Stand, folder: Path) -> Kept:
    """The index of feature tables holds no bytes but names: each is changed to a name near it, or to that of another
    artifact, by way of a list of them."""
    from regraft.study.store import Store
    from regraft.study.tables import FeatureTable

    shutil.copytree(on.whole.store, folder)
    store = Store(folder)
    groups = sorted(path.name for path in (folder / "groups").iterdir())
    content: dict[str, Any] = {}
    listed = folder / "links.txt"
    listed.write_text("\n".join(f"{group} {key}" for group in groups for key in store.linked(group)))

    def one(group: str) -> object:
        table = FeatureTable(store, group)
        rows = table.rows(np.asarray(content[group][0]) if group in content else table.positions)
        return None if rows is None else (table.positions.tolist(), _told({"rows": rows}), table.trunk)

    def read() -> object:
        shutil.rmtree(folder / "groups")
        (folder / "groups").mkdir()
        for line in listed.read_bytes().split(b"\n"):
            group, _, key = line.decode("utf-8", "replace").replace("/", "_").replace("\0", "_").partition(" ")
            if group and key and len(group) < 200 and len(key) < 200 and group not in (".", ".."):
                (folder / "groups" / group).mkdir(exist_ok=True)
                (folder / "groups" / group / key).touch()
        found = {group: one(group) for group in groups}
        return None if None in found.values() else found

    content |= {group: one(group) for group in groups}
    return Kept([listed], read, dict(content))


def exchanged_links(on: Stand, folder: Path) -> Kept:
    """An index that names an artifact which belongs elsewhere."""
    from regraft.study.store import Store
    from regraft.study.tables import FeatureTable

    shutil.copytree(on.whole.store, folder)
    store = Store(folder)
    groups = {group.name: store.linked(group.name) for group in (folder / "groups").iterdir()}
    group, own = next(iter(groups.items()))
    others = [key for key in store.keys() if key not in own]
    turn, intact = [-1], FeatureTable(store, group)
    content = _told({"rows": intact.rows(intact.positions)})
    marker = folder / "turn"
    marker.write_text("which artifact is linked; its bytes do not matter")

    def read() -> object:
        entry = folder / "groups" / group / others[turn[0] % len(others)]
        if turn[0] >= 0:  # the first reading is of the index as it is
            entry.touch()
        try:
            rows = FeatureTable(store, group).rows(intact.positions)
            return None if rows is None else _told({"rows": rows})
        finally:
            entry.unlink(missing_ok=True)
            turn[0] += 1

    return Kept([marker], read, content)


def digits(on: Stand, folder: Path) -> Kept:
    """A published data set, converted to arrays."""
    from regraft.data import load_dataset

    load_dataset("digits", home=folder)

    def read() -> object:
        return _data(load_dataset("digits", home=folder))

    return _remade(folder / "data" / "digits", read)


def pictures(on: Stand, folder: Path) -> Kept:
    """A folder of pictures, decoded; and the index of its files."""
    from PIL import Image

    from regraft.data import load_dataset
    from regraft.data.folders import SETTLED_AFTER_NS

    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(6):
            file = folder / "pictures" / name / f"{i}.png"
            Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
    time.sleep(SETTLED_AFTER_NS / 1e9 + 0.1)  # younger files are not in the index
    name = f"folder:{folder / 'pictures'}"

    def read() -> object:
        return _data(load_dataset(name, 16, home=folder / "home"))

    read()
    return _remade(folder / "home" / "data", read)


def _data(data: Any) -> object:
    parts = {"train_images": data.train.images, "train_labels": data.train.labels, "test_images": data.test.images}
    arrays = {name: hashlib.sha256(part.tobytes()).hexdigest() for name, part in parts.items()}
    labels = hashlib.sha256(data.test._TestSplit__labels.tobytes()).hexdigest()
    return arrays, labels, data.train.classes, data.digest, data.unreadable


def _remade(folder: Path, read: Callable[[], object]) -> Kept:
    """Files that regraft replaces itself: after each reading the folder is put back as a whole."""
    content, copy = read(), folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]

    def put_back() -> None:
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)

    return Kept(files, read, content, put_back)


def answers(on: Stand, folder: Path) -> Kept:
    """What is remembered of networks."""
    from regraft.data.remembered import remembered

    question: list[Any] = ["cuts below", TINY, "layer3", 32, "imagenet"]
    answer = ["layer1.0", "layer2.0", "layer3.0"]
    with _home(folder):
        remembered(question, lambda: answer)

    def read() -> object:
        with _home(folder):
            return remembered(question, lambda: None)

    return _remade(folder / "known", read)


def drawings(on: Stand, folder: Path) -> Kept:
    """Figures that were drawn, and the script that draws them in a page."""
    from regraft.show import drawings, figures_base

    shutil.copytree(on.folder / "home" / "show", folder / "show")
    files = [*(folder / "show" / "drawn").glob("*.json"), *(folder / "show").glob("*.js")]

    def read() -> object:
        with _home(folder):
            drawn = [drawings._read(file) for file in sorted((folder / "show" / "drawn").glob("*.json"))]
            script = hashlib.sha256(figures_base.javascript().encode()).hexdigest()
        return None if None in drawn else (json.dumps(drawn), script)

    content = read()
    return Kept(files, read, content)


def packed(on: Stand, folder: Path) -> Kept:
    """A packed data set: its parts and their list."""
    from regraft.data import load_dataset
    from regraft.data.pack import pack, unpack

    load_dataset("digits", home=folder / "from")
    pack(["digits"], folder / "pack", home=folder / "from")

    def read() -> object:
        shutil.rmtree(folder / "to", ignore_errors=True)
        unpack(folder / "pack", home=folder / "to")
        return _data(load_dataset("digits", home=folder / "to"))

    return Kept(sorted((folder / "pack").iterdir()), read, read())


def weights(on: Stand, folder: Path) -> Kept:
    """Pretrained weights, as they are kept."""
    from safetensors.torch import save

    from regraft.data.home import write_file
    from regraft.networks import build
    from regraft.networks.published import published
    from regraft.networks.trunk import state_hash
    from regraft.networks.weights import _pretrained

    known = replace(published("resnet18", None), network=TINY, digest=None)
    state = build(TINY, stem="imagenet", seed=7, image_size=32).state_dict()
    file = folder / "weights" / known.stored_as
    write_file(file, save(state, {"digest": state_hash(state), "origin": "the harness", "network": TINY}))

    def read() -> object:
        found = _pretrained(known, folder, offline=True)
        return found.digest, found.origin, _told(found.state())

    return _remade(folder / "weights", read)


KINDS: dict[str, Callable[[Stand, Path], Kept]] = {
    "artifacts": artifacts, "index": index, "checkpoints": checkpoint, "group links": group_links,
    "exchanged links": exchanged_links,
    "converted data": digits, "decoded pictures": pictures, "remembered answers": answers, "drawings": drawings,
    "packed data": packed, "weights": weights,
}  # fmt: skip
