"""Where the images of a training lie: on the device or in memory if they fit there, else in the file, read ahead."""

from __future__ import annotations

import math
import mmap
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Images may take so much of the memory that is free: the network and its activations need most of it.
MEMORY_SHARE = 1 / 3
UNKNOWN_SYSTEM_BYTES = 4 * 2**30  # taken for free where the system has no way to ask that Python knows
READERS = 4  # threads that read a batch: they wait for the disk, not for the processor
COPY_BYTES = 64 * 2**20  # copied at a time when images are put into memory
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # of Linux

# Images (n, h, w, c) uint8 of a whole split, possibly memory-mapped, and which of them: positions (m,)
Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Rows(Protocol):
    """Images that are taken by their number, 0 to len - 1."""

    def __len__(self) -> int: ...

    def take(self, positions: Tensor) -> Tensor:
        """positions (b,) -> images (b, c, h, w) uint8 on the device, channels last in memory."""
        ...

    def expect(self, coming: Sequence[Tensor]) -> None:
        """What `take` will be asked for next, in this order; a hint that changes no result."""
        ...


def rows_of(parts: Sequence[Part], device: torch.device, memory_bytes: int | None = None) -> Rows:
    """The images of all parts, one part after the other, in the fastest place that they fit into.

    memory_bytes: that they may take, on the device as in memory; None: `MEMORY_SHARE` of what is free there."""
    count = sum(len(positions) for _, positions in parts)
    needed = count * parts[0][0][:1].nbytes

    def fit(place: torch.device) -> bool:
        return needed <= (free_bytes(place) * MEMORY_SHARE if memory_bytes is None else memory_bytes)

    for place in dict.fromkeys((device, torch.device("cpu"))):
        if fit(place):
            return Kept(_copied(parts, place), device)
    return Mapped(parts, device)


def _copied(parts: Sequence[Part], place: torch.device) -> Tensor:
    """(n, h, w, c) at `place`, made without a second copy of the whole."""
    shape = parts[0][0].shape[1:]
    whole = torch.empty((sum(len(positions) for _, positions in parts), *shape), dtype=torch.uint8, device=place)
    step = max(1, COPY_BYTES // max(1, parts[0][0][:1].nbytes))
    start = 0
    for images, positions in parts:
        for i in range(0, len(positions), step):
            block = torch.from_numpy(images[positions[i : i + step]])
            whole[start : start + len(block)] = block
            start += len(block)
            give_back(images)
    return whole


@dataclass(frozen=True, eq=False)
class Kept:
    """Images in memory, or on the device."""

    images: Tensor  # (n, h, w, c) uint8
    device: torch.device  # that takes them

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: Tensor) -> Tensor:
        """positions (b,) -> images (b, c, h, w)."""
        if self.images.device.type == "cpu" and self.device.type == "cuda":
            taken = _buffer(len(positions), self.images.shape[1:], self.device)
            torch.index_select(self.images, 0, positions.cpu(), out=taken)
        else:
            taken = self.images[positions.to(self.images.device)]
        return _handed(taken, self.device)

    def expect(self, coming: Sequence[Tensor]) -> None:
        """Nothing is to be prepared."""


@dataclass(frozen=True, eq=False)
class _Reading:
    """A batch that is being read."""

    places: NDArray[np.int64]  # (b,)
    images: Tensor  # (b, h, w, c), complete when all pieces are
    pieces: list[Future[None]]


class Mapped:
    """Images that stay in their files. While the device computes on one batch, threads read the next.

    In memory are at most three batches, however large the files are. The next batch is known when it was announced
    (`expect`), and when batches are taken one after the other from the front, as in evaluation."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self.device = device
        self.files = [images for images, _ in parts]
        self.arrays = [images.view(np.ndarray) for images in self.files]  # a memmap's own indexing is slow
        self.part = np.repeat(np.arange(len(parts)), [len(positions) for _, positions in parts])  # (n,)
        self.row = np.concatenate([positions for _, positions in parts])  # (n,) in that part's file
        self.coming: deque[tuple[Tensor, NDArray[np.int64]]] = deque()
        self.ahead: _Reading | None = None
        self.last: tuple[Tensor, Tensor] | None = None  # positions and images of the latest batch
        self.threads = ThreadPoolExecutor(READERS, thread_name_prefix="regraft-images")

    def __len__(self) -> int:
        return len(self.row)

    def take(self, positions: Tensor) -> Tensor:
        """positions (b,) -> images (b, c, h, w)."""
        if self.last is not None and positions is self.last[0]:
            return self.last[1]  # the same images once more, augmented in another way
        places = self._places(positions)
        ready = self.ahead is not None and np.array_equal(self.ahead.places, places)
        now = self.ahead if ready and self.ahead is not None else self._start(places)
        following = self._following(places)
        self.ahead = None if following is None else self._start(following)
        for piece in now.pieces:
            piece.result()
        for file in self.files:
            give_back(file)
        self.last = (positions, _handed(now.images, self.device))
        return self.last[1]

    def expect(self, coming: Sequence[Tensor]) -> None:
        """The next batches, as the very tensors that `take` will get."""
        # All in one transfer: to ask a GPU for each batch's positions would make it wait each time.
        places = torch.cat(list(coming)).cpu().numpy() if coming else np.empty(0, np.int64)
        ends = np.cumsum([len(positions) for positions in coming])[:-1]
        self.coming = deque(zip(coming, np.split(places, ends), strict=True)) if coming else deque()
        self.ahead = self._start(self.coming[0][1]) if self.coming else None

    def _places(self, positions: Tensor) -> NDArray[np.int64]:
        if self.coming and positions is self.coming[0][0]:
            return self.coming.popleft()[1]
        return positions.cpu().numpy()

    def _following(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The batch after this one, if that is known."""
        if self.coming:
            return self.coming[0][1]
        end = int(places[-1]) + 1 if len(places) else len(self)
        in_turn = end < len(self) and np.array_equal(places, np.arange(end - len(places), end))
        return np.arange(end, min(end + len(places), len(self))) if in_turn else None

    def _start(self, places: NDArray[np.int64]) -> _Reading:
        """Have threads read the images, each a run of them in the order in which they lie in the files."""
        images = _buffer(len(places), self.files[0].shape[1:], self.device)
        into = images.numpy()
        part, row = self.part[places], self.row[places]

        def read(some: NDArray[np.int64]) -> None:
            for i in some.tolist():
                into[i] = self.arrays[part[i]][row[i]]

        order = np.lexsort((row, part))
        pieces = [self.threads.submit(read, some) for some in np.array_split(order, READERS) if len(some)]
        return _Reading(places, images, pieces)


def _buffer(count: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """(count, h, w, c) uint8 in memory; page-locked for a GPU, which then fetches it while the program goes on."""
    if device.type == "cuda":
        return torch.empty((count, *shape), dtype=torch.uint8, pin_memory=True)
    # Memory of its own, which goes back to the system at once. From the common heap, buffers of this size that come and
    # go leave gaps: a process was seen to grow by 18 of them.
    size = count * math.prod(shape)
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8, size).reshape(count, *shape))


def _handed(images: Tensor, device: torch.device) -> Tensor:
    """(b, h, w, c) -> (b, c, h, w) on the device: a view, so that the memory stays channels-last."""
    return images.permute(0, 3, 1, 2).to(device, non_blocking=device.type == "cuda")


def give_back(images: NDArray[np.uint8]) -> None:
    """Pages of a mapped file that were read count as this process's memory until they are given back."""
    if isinstance(images, np.memmap) and images.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        images._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def free_bytes(device: torch.device) -> int:
    """Memory that the device can still give to this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines())
        return min([int(fields["MemAvailable"].split()[0]) * 1024, *rooms_of_groups(OWN_GROUPS, GROUPS)])
    if hasattr(os, "sysconf"):  # pragma: no cover (macOS; it says how much there is, not how much is free)
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return UNKNOWN_SYSTEM_BYTES  # pragma: no cover (Windows)


def rooms_of_groups(own_groups: Path, groups: Path) -> list[int]:
    """What is left of the limits that a container or a cluster's job sets (Linux control groups, version 2).

    own_groups: as /proc/self/cgroup. groups: where their tree is mounted. Empty without any limit, or any group."""
    lines = own_groups.read_text().splitlines() if own_groups.is_file() else []  # a sandbox may have none
    own = next((line[3:] for line in lines if line[:3] == "0::"), "/")
    folder = groups / own.lstrip("/")
    rooms = []
    for group in (folder, *folder.parents):
        limit = group / "memory.max"
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])  # cache that can go
            rooms.append(max(0, int(text) - used))
    return rooms
