"""A ridge head of 200,000 images from the store, streamed and in memory: `python benchmarks/streamed_ridge.py`.

Writes synthetic features (classes with means of their own, features of very different scales) as a feature table of a
store, as extraction does, and solves the same head for several penalties twice, each time in a process of its own:
with all features in memory, and from blocks of them. Prints how far the two are apart and the peak memory of each
process. Pages of memory-mapped files count as resident: the figures are upper bounds of what a process needs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from running import circumstances
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft.learn.ridge import ridge
from regraft.learn.streamed import Stream, ridge_streamed
from regraft.study.store import Payload, Scratch, Store, key_of
from regraft.study.streams import BLOCKS
from regraft.study.tables import FeatureTable

CLASSES, SHARD = 10, 2048
PENALTIES = [10.0**power for power in range(-4, 4)]
VALIDATION = 5000  # images that choose the penalty
TABLE = {"stage": "features", "version": 0, "benchmark": "streamed ridge"}
TOLERANCE = 1e-6  # of weights for standardised features


@dataclass(frozen=True)
class TableRows:
    """`learn.feature_rows.FeatureRows` of the first n images of a table."""

    table: FeatureTable
    images: int
    width: int
    block: int

    def __len__(self) -> int:
        return self.images

    def take(self, places: Tensor) -> Tensor:
        rows = self.table.rows(places.numpy())
        assert rows is not None, "the table has just been written"
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=2048, help="features of an image; 2048 are a ResNet-50's")
    parser.add_argument("--memory-mib", type=int, default=512, help="that streamed features may take")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        solve(options.child[0], Path(options.child[1]), options)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_table(Store(folder / "store"), options.images + VALIDATION, options.width)
        peaks = {way: peak_of(way, folder) for way in ("none", "in memory", "streamed")}
        found = compared(folder, options)
    size = options.images * options.width * 4 / 2**30
    print(f"{options.images:,} images of {options.width} features ({size:.2f} GiB), {len(PENALTIES)} penalties at once")
    for way, peak in peaks.items():
        print(f"  {WAYS[way]:<36} peak {peak:.2f} GiB")
    for name, value in found.items():
        print(f"  {name.replace('_', ' ')}: {value}")
    if options.record:
        content = {
            **circumstances(sys.executable),
            "images": options.images, "width": options.width, "features_gib": round(size, 3),
            "memory_mib_for_streamed": options.memory_mib, "penalties": PENALTIES, "peak_gib": peaks, **found,
        }  # fmt: skip
        options.record.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(not (found["same_penalty_chosen"] and found["largest_difference_of_weights"] <= TOLERANCE))


WAYS = {"none": "libraries loaded, table opened", "in memory": "all features in memory", "streamed": "streamed"}


def write_table(store: Store, images: int, width: int) -> None:
    """Labels are the positions modulo the classes."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(CLASSES, width)).astype(np.float32) / 12
    scale = np.logspace(-2, 2, width, dtype=np.float32)
    for start in range(0, images, SHARD):
        positions = np.arange(start, min(start + SHARD, images))
        noise = rng.standard_normal((len(positions), width), dtype=np.float32)
        rows = (noise + means[positions % CLASSES] + 1) * scale
        values = {"positions": positions.tolist(), "trunk_sha256": "", "width": width}
        payload = Payload(values, {"features": torch.from_numpy(rows)}, {"backend": "none"})
        spec = {**TABLE, "first": int(positions[0])}

        def computed(_: Scratch, payload: Payload = payload) -> Payload:
            return payload

        store.link(key_of(TABLE), store.cached(spec, computed).key)


def peak_of(way: str, folder: Path) -> float:
    """Peak resident memory, in GiB, of a process that solves the head."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", way, str(folder)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(out.stdout.splitlines()[-1])


def solve(way: str, folder: Path, options: argparse.Namespace) -> None:
    table = FeatureTable(Store(folder / "store"), key_of(TABLE))
    positions = np.arange(options.images)
    labels = torch.from_numpy(positions % CLASSES)
    if way == "in memory":
        features = table.rows(positions)
        assert features is not None
        solved = ridge(features, labels, classes=CLASSES, penalties=PENALTIES)
    elif way == "streamed":
        block = options.memory_mib * 2**20 // BLOCKS // (4 * options.width)
        rows = TableRows(table, options.images, options.width, block)
        solved = ridge_streamed(Stream(rows, labels, torch.device("cpu")), classes=CLASSES, penalties=PENALTIES)
    else:
        solved = []
    tensors = {
        f"{name}{i}": getattr(one, name).contiguous() for i, one in enumerate(solved) for name in ("weight", "bias")
    }
    save_file(tensors, folder / f"{way}.safetensors")
    unit = 1 if sys.platform == "darwin" else 1024
    print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3))


def compared(folder: Path, options: argparse.Namespace) -> dict[str, float | bool]:
    """Weights in units of the features' deviations, and validation accuracies."""
    table = FeatureTable(Store(folder / "store"), key_of(TABLE))
    positions = np.arange(options.images, options.images + VALIDATION)
    x, labels = table.rows(positions), torch.from_numpy(positions % CLASSES)
    assert x is not None
    deviation = x.double().std(0)
    heads = [load_file(folder / f"{way}.safetensors") for way in ("in memory", "streamed")]
    accuracies: list[list[float]] = [[], []]
    difference = 0.0
    for i in range(len(PENALTIES)):
        weights = [head[f"weight{i}"].double() * deviation for head in heads]
        difference = max(difference, float((weights[0] - weights[1]).abs().max()))
        for head, into in zip(heads, accuracies, strict=True):
            answers = (x @ head[f"weight{i}"].T + head[f"bias{i}"]).argmax(1)
            into.append(float((answers == labels).double().mean()))
    best = [PENALTIES[int(np.argmax(of))] for of in accuracies]
    return {
        "largest_difference_of_weights": difference,
        "largest_weight": max(float((heads[0][f"weight{i}"] * deviation).abs().max()) for i in range(len(PENALTIES))),
        "same_penalty_chosen": best[0] == best[1],
        "penalty_chosen": best[0],
        "validation_accuracy_in_memory": max(accuracies[0]),
        "validation_accuracy_streamed": max(accuracies[1]),
    }


if __name__ == "__main__":
    main()
