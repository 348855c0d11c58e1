"""Peak memory of extracting features of 200,000 images: `python benchmarks/memory.py`.

Writes a folder of synthetic pictures (PNG, noise with a mean of its own for each class), runs a study on it in a
process of its own, and prints that process's peak resident memory when the pictures have been decoded, when the
features of all cuts are in the store, and at the end. Pages of memory-mapped files count as resident: the figure is an
upper bound of what the process needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

CLASSES = 10
LIMIT_GIB = 2.0
CUTS = ["layer1.2", "layer2.2", "layer3.5", "penultimate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--cuts", nargs="+", default=CUTS)
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(Path(options.child[0]), Path(options.child[1]), options)
        return
    with tempfile.TemporaryDirectory() as place:
        pictures = Path(place) / "pictures"
        write_pictures(pictures, options.images, options.size)
        environment = {**os.environ, "REGRAFT_HOME": str(Path(place) / "home")}
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(pictures), str(Path(place) / "store")]
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(out.stdout.splitlines()[-1])
    print(
        f"{options.images:,} images of {options.size} px through {options.network}, "
        f"{len(options.cuts)} cuts in one pass"
    )
    for stage, gib in found["peak_gib"].items():
        print(f"  {stage:<42} peak {gib:.2f} GiB")
    worst = found["peak_gib"]["features in the store"]
    print(f"limit {LIMIT_GIB:g} GiB: {'kept' if worst < LIMIT_GIB else 'EXCEEDED'}")
    if options.record:
        from running import command_line

        record = {
            "command": command_line(),
            "images": options.images,
            "machine": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "created": time.strftime("%F"),
            **found,
        }
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(worst >= LIMIT_GIB)


def write_pictures(root: Path, images: int, size: int) -> None:
    """As train/CLASS/N.png and test/CLASS/N.png, a twentieth of them for test."""
    with ProcessPoolExecutor() as workers:
        list(workers.map(write_class, [(root, label, images // CLASSES, size) for label in range(CLASSES)]))


def write_class(task: tuple[Path, int, int, int]) -> None:
    from PIL import Image

    root, label, count, size = task
    rng = np.random.default_rng(label)
    for split, first, last in (("test", 0, count // 20), ("train", count // 20, count)):
        folder = root / split / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(first, last):
            pixels = rng.integers(0, 128, (size, size, 3), dtype=np.uint8) + np.uint8(12 * label)
            Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=1)


def measure(pictures: Path, store: Path, options: argparse.Namespace) -> None:
    from regraft.spec import Study
    from regraft.study.events import Event, StepAdvanced, StepDone
    from regraft.study.run import run_study
    from regraft.study.store import Store

    peaks: dict[str, float] = {}
    stages = {"data": "pictures decoded", "features": "features in the store", "fit": "heads solved"}
    features: dict[str, object] = {}

    def report(event: Event) -> None:
        if isinstance(event, StepDone):
            stage = event.id.partition(":")[0]
            if stage in stages:
                peaks[stages[stage]] = peak_gib()
            if stage == "features":
                name = event.id.replace(str(pictures), "pictures")  # the place differs from run to run
                features[name] = {"seconds": round(event.seconds, 1), "message": event.message}
                print(event.id, event.message, f"{event.seconds:.1f} s, peak {peak_gib():.2f} GiB", file=sys.stderr)
        elif isinstance(event, StepAdvanced) and event.message and event.id.startswith("features"):
            print(f"{event.message}, peak {peak_gib():.2f} GiB", file=sys.stderr)

    study = Study.from_dict(
        {
            "study": "memory",
            "seeds": [0],
            "sources": {"net": {"network": options.network, "image_size": options.size}},
            "targets": {"all": {"data": f"folder:{pictures}", "validation": 0.0}},
            "recipes": {"unused": {}},
            "rows": [
                {"name": cut, "source": "net", "cut": cut, "method": "frozen", "target": "all", "head": "prototype"}
                for cut in options.cuts
            ],
        }
    )
    results = run_study(study, Store(store), report=report)
    assert not results.missing, results.missing
    size = sum(f.stat().st_size for f in store.rglob("*.safetensors"))
    backend = results.cells[0].cost.get("features")
    print(
        json.dumps({"peak_gib": peaks, "features": features, "store_gib": round(size / 2**30, 2), "backend": backend})
    )


def peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


if __name__ == "__main__":
    main()
