"""A table of cached features as it lies in the store: shards of memory-mapped rows, found by image position."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.errors import ArtifactDamaged
from regraft.study.store import Artifact, Store, key_of

Positions = NDArray[np.int64]


class FeatureTable:
    """What the store had of one table when this was opened. Rows are read from the files when they are asked for, each
    shard's digest being checked once."""

    def __init__(self, store: Store, group: str) -> None:
        self.store = store
        self.keys = store.linked(group)
        self._shards: list[Artifact] = []
        self._intact: set[int] = set()  # shards whose digest has been checked
        lists: list[Positions] = []
        for key in self.keys:
            shard = store.get(key)
            if shard is not None and _table_of(shard) == group:  # an index entry may name anything
                self._shards.append(shard)
                lists.append(np.asarray(shard.values["positions"], dtype=np.int64))
        every = np.concatenate([np.empty(0, np.int64), *lists])
        # Shards of different studies may overlap: any of them will do.
        self.positions, first = np.unique(every, return_index=True)  # (m,) sorted
        self._shard = np.repeat(np.arange(len(lists)), [len(part) for part in lists])[first]
        self._row = np.concatenate([np.empty(0, np.int64), *(np.arange(len(part)) for part in lists)])[first]

    @property
    def trunk(self) -> str:
        """Hash of the trunk that made the features."""
        return str(self._shards[0].values["trunk_sha256"])

    @property
    def backend(self) -> str:
        """By which back end; "" while the table is empty."""
        return str(self._shards[0].record["backend"]) if self._shards else ""

    def rows(self, positions: Positions) -> Tensor | None:
        """Features (n, d) in the order of `positions`; None if some are not here, or damaged (then set aside)."""
        if len(self.positions) == 0:
            return None
        at = np.minimum(np.searchsorted(self.positions, positions), len(self.positions) - 1)
        if not np.array_equal(self.positions[at], positions):
            return None
        out = torch.empty(len(positions), int(self._shards[0].values["width"]))
        shard, row = self._shard[at], self._row[at]
        for index in np.unique(shard):
            try:
                values = self._values(int(index))
            except ArtifactDamaged as error:
                self.store.set_damaged_aside(self._shards[index].key, str(error))
                return None
            here = np.flatnonzero(shard == index)
            out[torch.from_numpy(here)] = values[torch.from_numpy(row[here])]
        return out

    def _values(self, index: int) -> Tensor:
        """Memory-mapped, and let go after use: the features of a large set are never all in memory."""
        values = self._shards[index].tensors(verify=index not in self._intact)["features"]
        self._intact.add(index)
        return values


def _table_of(shard: Artifact) -> str:
    """Name of the table that an artifact is a shard of: its own spec less which rows it has."""
    return key_of({name: value for name, value in shard.spec.items() if name != "positions"})
