"""What one image, one shard and one run cost here: measured on small pieces with the real code, for `simulate.py`."""

from __future__ import annotations

import io
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from planner import fit_values

from regraft.data.pictures import decode_picture
from regraft.data.subsets import split_budget
from regraft.study.features import SHARD
from regraft.study.store import Payload, Scratch, Store, key_of
from regraft.study.tables import FeatureTable

WIDTH = 2048  # of ResNet-50's penultimate features
PICTURE = (500, 375)  # pixels, a usual photograph of ImageNet
CLASSES = 1000


def measure(*, quick: bool = False) -> dict[str, float]:
    """Seconds and bytes, by what they are of. quick: fewer repeats and smaller pieces, for tests."""
    with tempfile.TemporaryDirectory() as place:
        store = Store(place)
        return {
            **of_shards(store, shards=2 if quick else 24, width=64 if quick else WIDTH),
            **of_runs(store, runs=3 if quick else 60),
            **of_split(images=10_000 if quick else 1_000_000),
            **of_sums(images=256 if quick else 8192, width=64 if quick else WIDTH),
            **of_decoding(pictures=2 if quick else 60),
        }


def of_shards(store: Store, *, shards: int, width: int) -> dict[str, float]:
    """Feature shards: bytes beside the features, seconds to write one, and to open a table of them."""
    rows = torch.randn(SHARD, width)
    table_spec = {"stage": "features", "version": 0}
    group = key_of(table_spec)
    start = time.perf_counter()
    for i in range(shards):
        positions = list(range(10**8 + i * SHARD, 10**8 + (i + 1) * SHARD))  # as long as positions of 1e9 images
        spec = {**table_spec, "positions": positions}
        values = {"positions": positions, "trunk_sha256": "0" * 64, "width": width}
        payload = Payload(values, {"features": rows}, {"backend": "eager"})
        artifact = store.cached(spec, partial(_given, payload))
        store.link(group, artifact.key)
    written = time.perf_counter() - start
    beside = artifact.size_bytes() - 4 * SHARD * width
    tracemalloc.start()
    start = time.perf_counter()
    table = FeatureTable(store, group)
    opened = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "shard_images": SHARD,
        "shard_write_seconds": written / shards,
        "shard_bytes_beside_features": float(beside),
        "table_open_seconds_per_shard": opened / shards,
        "table_memory_bytes_per_image": peak / len(table.positions),
    }


def _given(payload: Payload, _: Scratch) -> Payload:
    return payload


def of_runs(store: Store, *, runs: int) -> dict[str, float]:
    """A fit and its score as the store keeps them: seconds to write both, bytes on the disk, files."""
    head = {"weight": torch.randn(CLASSES, WIDTH), "bias": torch.zeros(CLASSES)}
    start = time.perf_counter()
    sizes: list[int] = []
    for i in range(runs):
        fit = store.cached({"stage": "fit", "version": 0, "i": i}, lambda _: Payload(fit_values(0.5, 10), head))
        score = store.cached({"stage": "score", "version": 0, "i": i}, lambda _: Payload({"accuracy": 0.5}))
        sizes += [sum(f.stat().st_blocks * 512 for f in one.path.iterdir()) for one in (fit, score)]
    return {
        "run_write_seconds": (time.perf_counter() - start) / runs,
        "run_bytes": sum(sizes) / runs,
        "run_files": 8 + 2,  # of two artifacts, and their folders
    }


def of_split(*, images: int) -> dict[str, float]:
    """Drawing a budget of all images: seconds and peak memory for each."""
    labels = np.arange(images, dtype=np.int64) % CLASSES
    seconds, peak = traced(lambda: split_budget(labels, validation=0.1, seed=0))
    return {
        "split_seconds_per_image": seconds / images,
        "split_memory_bytes_per_image": (peak + labels.nbytes) / images,
    }


def of_sums(*, images: int, width: int) -> dict[str, float]:
    """The sums that a ridge head needs of each image, and the eigendecomposition that it needs once; one thread's."""
    x = torch.randn(images, width)
    start = time.perf_counter()
    square = x.double().T @ x.double()
    summed = time.perf_counter() - start
    start = time.perf_counter()
    torch.linalg.eigh(square)
    return {"sums_seconds_per_image": summed / images, "eigen_seconds": time.perf_counter() - start}


def of_decoding(*, pictures: int) -> dict[str, float]:
    """A photograph from JPEG to 224 pixels, on one core."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (PICTURE[1] // 8, PICTURE[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(PICTURE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    start = time.perf_counter()
    for _ in range(pictures):
        decode_picture(io.BytesIO(file.getvalue()), 224)
    seconds = (time.perf_counter() - start) / pictures
    return {"decode_seconds_per_image": seconds, "jpeg_bytes": float(len(file.getvalue()))}


def traced(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds without and peak bytes with Python's tracing of memory."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, float(peak)


def recorded(records: Path, name: str) -> dict[str, Any] | None:
    """Another benchmark's record, or None where nobody has recorded it."""
    file = records / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else None
