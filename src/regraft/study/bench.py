"""What a worker has at hand: the store, the keys, the device, and data and weights it has already opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regraft.data import Dataset, Split, TestSplit, load_dataset, split_budget
from regraft.errors import DataDamaged, TooFewImages
from regraft.learn.backends import check_backend
from regraft.learn.distributed import check_devices
from regraft.learn.episodes import Episodes, draw_episodes
from regraft.learn.hardware import choose_device, keep_freed_memory, set_threads
from regraft.learn.mechanisms import check_wish
from regraft.learn.precision import choose_precision
from regraft.networks import CutPoint, NetworkSpec, build, cuts_below, resolve_cut
from regraft.spec import Run, Target
from regraft.study.keys import Keys
from regraft.study.store import store_at
from regraft.study.tables import FeatureTable

T = TypeVar("T")
OPEN_TABLES = 64  # files, memory-mapped
FEATURE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Setting:
    """All a worker process needs to know; nothing of it determines a result."""

    store: str
    runs: tuple[Run, ...]
    device: str = "auto"
    threads: int | None = None
    offline: bool = False
    backend: str = "auto"  # of feature extraction
    mechanism: str = "auto"  # of training
    precision: str = "auto"  # of training and answers
    devices: int = 1  # that train one network together
    feature_bytes: int = FEATURE_BYTES  # of a head's training features; more of them are streamed from the store


@dataclass(frozen=True)
class Part:
    """A part of a split: which images, and their labels within the target's classes."""

    split: str  # "train", "validation" (a folder's own) or "test"
    positions: NDArray[np.int64]  # (n,) in the whole split, so that parts of any budget share features
    labels: NDArray[np.int64]  # (n,)

    def __len__(self) -> int:
        return len(self.positions)


class Bench:
    """One worker's place."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.store = store_at(setting.store)
        self.offline = setting.offline
        self.backend = setting.backend
        self.keys = Keys(setting.runs, self.store, offline=setting.offline)
        self.device = choose_device(setting.device)
        check_devices(setting.devices, self.device)
        check_backend(setting.backend, self.device)
        self.precision = choose_precision(setting.precision, self.device)
        if setting.mechanism != "seeds":  # which a training alone does without
            check_wish(setting.mechanism, self.device)
        self.threads = set_threads(setting.threads)
        keep_freed_memory()
        self._load = lru_cache(maxsize=4)(self._load_dataset)
        self._select = lru_cache(maxsize=8)(self._select_classes)
        self._draw = lru_cache(maxsize=8)(self._draw_episodes)
        self._kept: tuple[str, object] | None = None
        self._tables: dict[str, FeatureTable] = {}

    @property
    def device_name(self) -> str:
        import torch

        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def _load_dataset(self, name: str, size: int | None) -> Dataset:
        data = load_dataset(name, size, offline=self.offline)
        if data.digest != self.keys.digest(name, size):
            raise DataDamaged(
                f"{name} has changed while the study ran: its pictures are not those of the plan; run again"
            )
        return data

    def whole(self, run: Run) -> Dataset:
        """The data set of the run's target with all its classes."""
        return self._load(run.target.data, self.keys.decoded_size(run))

    def dataset(self, run: Run) -> Dataset:
        """The same, with the target's classes only."""
        return self._select(run.target.data, self.keys.decoded_size(run), run.target.classes)

    def _select_classes(self, name: str, size: int | None, classes: tuple[str, ...] | None) -> Dataset:
        whole = self._load(name, size)
        return whole.with_classes(classes) if classes else whole

    def test(self, run: Run) -> TestSplit:
        """The test images that the run is scored on: the same ones for every run and seed."""
        test = self.dataset(run).test
        limit = run.target.test_images
        return test if limit is None else test.limited(limit, seed=0)

    def parts(self, run: Run) -> tuple[Part, Part | None]:
        """Training and validation part. Both come out of the budget, unless a folder has its own validation part.

        The training part of few-shot episodes is all images that any of them learns from; they have no other."""
        data, target = self.dataset(run), run.target
        if target.episodes is not None:
            support = np.unique(self.episodes(run).support)
            return Part("train", data.train_indices[support], data.train.labels[support]), None
        own = data.validation
        train, held = split_budget(
            data.train.labels,
            per_class=target.per_class,
            fraction=target.fraction,
            validation=0.0 if own is not None else target.validation,
            seed=run.seed,
            classes=data.classes,
        )
        first = Part("train", data.train_indices[train], data.train.labels[train])
        if own is not None:
            return first, Part("validation", data.validation_indices, own.labels)
        if len(held) == 0:
            return first, None
        return first, Part("train", data.train_indices[held], data.train.labels[held])

    def training(self, run: Run) -> tuple[list[Part], Part | None]:
        """The parts that the run trains on, and the one that it is watched on: after a refit, both and none."""
        train, held = self.parts(run)
        return ([train, held], None) if run.refit and held is not None else ([train], held)

    def blocks(self, run: Run) -> list[str]:
        """The names of the trunk's blocks, from the image to the cut."""
        network, stem = self.keys.network(run)
        size = self.keys.preprocessing(run).image_size
        return list(cuts_below(network, self.keys.cut(run), size, stem=stem))

    def unlabelled(self, run: Run) -> Part:
        """The training images that are in no part of the run's budget. Their labels are hidden: all -1."""
        data = self.dataset(run)
        drawn = np.concatenate(
            [part.positions for part in self.parts(run) if part is not None and part.split == "train"]
        )
        rest = np.setdiff1d(data.train_indices, drawn)
        if len(rest) == 0:
            raise TooFewImages(f"target {run.target_name!r} takes every training image; none is left unlabelled")
        return Part("train", rest, np.full(len(rest), -1, np.int64))

    def episodes(self, run: Run) -> Episodes:
        """The few-shot episodes of the run's target."""
        return self._draw(run.target, run.seed, self.dataset(run).digest, self.keys.decoded_size(run))

    def _draw_episodes(self, target: Target, seed: int, digest: str, size: int | None) -> Episodes:
        data, asked = self._select(target.data, size, target.classes), target.episodes
        assert asked is not None
        return draw_episodes(
            data.train.labels, classes=len(data.classes), ways=asked.ways, shots=asked.shots, count=asked.count,
            seed=seed,
        )  # fmt: skip

    def images(self, run: Run, split: str) -> NDArray[np.uint8]:
        """Images (n, h, w, c) of a whole split."""
        whole = self.whole(run)
        if split == "test":
            return whole.test.images
        part: Split | None = whole.train if split == "train" else whole.validation
        assert part is not None
        return part.images

    def table(self, group: str) -> FeatureTable:
        """A table of features as the store has it now; opened once, until it grows. The latest few are kept open."""
        table = self._tables.pop(group, None)
        if table is None or table.keys != self.store.linked(group):
            table = FeatureTable(self.store, group)
        self._tables[group] = table  # the latest is last
        while len(self._tables) > OPEN_TABLES:
            del self._tables[next(iter(self._tables))]
        return table

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, kept until another name is asked for: a trunk serves several tasks, but takes memory."""
        if self._kept is None or self._kept[0] != name:
            self._kept = None
            self._kept = (name, make())
        return cast(T, self._kept[1])

    def point(self, run: Run, cut: str | None = None) -> CutPoint:
        """The run's cut, or another of the same network."""
        spec = self.network(run)
        return resolve_cut(spec.network, cut or run.cut, self.keys.preprocessing(run).image_size, stem=spec.stem)

    def network(self, run: Run) -> NetworkSpec:
        """The plain network that the run's trunk is cut from."""
        network, stem = self.keys.network(run)
        return NetworkSpec(network, stem, self.keys.preprocessing(run).image_size)

    def source_state(self, run: Run) -> Mapping[str, Tensor] | None:
        """The source's tensors by the network's own names; None for random weights, which the seed gives."""
        bearer = self.keys.bearer(run)
        parent = self.keys.parent(bearer)
        if parent is not None:
            return own_names(self.store.tensors(self.keys.fitted(parent)))
        if bearer.source.weights != "random":
            return self.keys.weights(bearer.source).state()
        if bearer.seed == run.seed:
            return None
        spec = self.network(run)
        return build(spec.network, stem=spec.stem, seed=bearer.seed, image_size=spec.image_size).state_dict()


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the tensors of a fit, those of the network (trunk and `rest` head), by the network's own names."""
    places = ("network/", "head/rest.")
    return {k.removeprefix(place): v for k, v in tensors.items() for place in places if k.startswith(place)}
