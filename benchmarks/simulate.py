"""What a billion images and a million runs would take: `python benchmarks/simulate.py [--record FILE]`.

Nobody here has either. Unit costs are measured with the real code (`unit_costs.py`) or taken from the records of other
benchmarks; `scaled` multiplies them, and `cluster` simulates, event by event, workers that take shards from a queue,
fail now and then, and write through one shared store. What is assumed, not measured, is in ASSUMED, and in the record.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from running import circumstances
from unit_costs import WIDTH, measure, recorded

from regraft.networks import describe
from regraft.spec.study import MAX_RUNS

RECORDS = Path(__file__).parents[1] / "docs" / "records" / "benchmarks"
NETWORK, SIDE, CUTS = "resnet50", 224, ("layer1.2", "layer2.3", "layer3.5", "penultimate")
IMAGES = (10**6, 10**7, 10**8, 10**9)
RUNS = (1_000, 10_000, 100_000, 1_000_000)
WORKERS = (1, 16, 128, 1024, 8192)
ASSUMED = {
    "memory_gib": 64.0,  # of one machine
    "files": 1e8,  # that one file system is happy with
    "worker_hours_between_failures": 100.0,
    "restart_seconds": 120.0,
    "variation": 0.1,  # standard deviation of a shard's seconds, as a share
    "patience_seconds": 60.0,  # that somebody waits for `regraft status`
    "patience_days": 30.0,  # that somebody waits for a machine
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small pieces: to try the program, not for its numbers")
    parser.add_argument("--record", type=Path, help="write everything to this JSON file")
    options = parser.parse_args()
    units = {**measure(quick=options.quick), **from_records(RECORDS)}
    tables = scaled(units)
    for name, lines in {"measured": [units], "assumed": [ASSUMED], **tables}.items():
        print(name)
        for line in lines:
            told = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()
            )
            print(f"  {', '.join(told)}")
    if options.record:
        record = {**circumstances(sys.executable), "measured": units, "assumed": ASSUMED, **tables}
        options.record.write_text(json.dumps(record, indent=1) + "\n")


def from_records(records: Path) -> dict[str, float]:
    """Unit costs that other benchmarks measure: extraction, planning. What is not recorded is left out."""
    found: dict[str, float] = {}
    if (extraction := recorded(records, "extract")) is not None:
        for job in extraction["results"]:
            if job["job"] == "ResNet-50, 224 px":
                found["extract_seconds_per_image"] = 1 / job["images_per_second"][job["chosen"]]["median"]
    if (planner := recorded(records, "planner")) is not None:
        most = max(planner["studies"], key=lambda study: study["runs"])
        found["plan_seconds_per_run"] = most["commands"]["plan"]["seconds"] / most["runs"]
        found["status_seconds_per_run"] = most["commands"]["status"]["seconds"] / most["runs"]
        found["status_gib_per_run"] = most["commands"]["status"]["peak_gib"] / most["runs"]
        found["report_bytes"] = float(most["report_bytes"])
    return found


def scaled(units: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
    """The tables of docs/explanation/scale.md."""
    per_image = image_costs(units)
    return {
        "per_image": per_image,
        "images": [of_images(n, per_image, units) for n in IMAGES],
        "runs": [of_runs(n, units) for n in RUNS],
        "cluster": [{"workers": n, **cluster(n, 10**9, units)} for n in WORKERS] if extracts(units) else [],
        "breaks": breaks(units),
    }


def extracts(units: dict[str, float]) -> bool:
    return "extract_seconds_per_image" in units


def image_costs(units: dict[str, float]) -> list[dict[str, Any]]:
    """Bytes and seconds of one image in each stage, and how often it is passed."""
    points = {point.name: point for point in describe(NETWORK, image_size=SIDE)}
    widths = [points[cut].shape[0] for cut in CUTS]
    beside = units["shard_bytes_beside_features"] / units["shard_images"]  # positions, twice, as text
    return [
        {"stage": "the picture as it came (JPEG)", "bytes": units["jpeg_bytes"], "where": "disk", "passes": 1},
        {"stage": f"decoded to {SIDE} px", "bytes": 3.0 * SIDE**2, "where": "disk", "passes": 1,
         "seconds": units["decode_seconds_per_image"]},
        {"stage": f"features of {NETWORK}, last cut", "bytes": 4.0 * WIDTH + beside, "where": "disk", "passes": 1,
         "seconds": units.get("extract_seconds_per_image")},
        {"stage": f"features of {len(CUTS)} cuts, the same pass", "bytes": 4.0 * sum(widths) + len(CUTS) * beside,
         "where": "disk", "passes": 0, "seconds": 0.0},
        {"stage": "drawing a budget", "bytes": units["split_memory_bytes_per_image"], "where": "memory", "passes": 0,
         "seconds": units["split_seconds_per_image"]},
        {"stage": "finding rows in a table", "bytes": units["table_memory_bytes_per_image"], "where": "memory",
         "passes": 0, "seconds": units["table_open_seconds_per_shard"] / units["shard_images"]},
        {"stage": "sums of a ridge head", "bytes": 0.0, "where": "memory", "passes": 1,
         "seconds": units["sums_seconds_per_image"]},
    ]  # fmt: skip


def of_images(n: int, per_image: list[dict[str, Any]], units: dict[str, float]) -> dict[str, Any]:
    """One network, one cut, one data set of n images, on one machine like this."""
    decoded, features, _, split, table, sums = per_image[1:7]
    hours = {name: None if one.get("seconds") is None else n * one["seconds"] / 3600 for name, one in
             (("decode_hours", decoded), ("extract_hours", features), ("sums_hours", sums))}  # fmt: skip
    return {
        "images": n,
        "decoded_tib": n * decoded["bytes"] / 2**40,
        "features_tib": n * features["bytes"] / 2**40,
        "shards": -(-n // int(units["shard_images"])),
        "memory_gib": n * (split["bytes"] + table["bytes"]) / 2**30,
        "open_table_hours": n * table["seconds"] / 3600,
        **hours,
    }


def of_runs(n: int, units: dict[str, float]) -> dict[str, Any]:
    """Many runs on features that are there: what the store and its reader take."""
    status = units.get("status_seconds_per_run")
    return {
        "runs": n,
        "allowed": n <= MAX_RUNS,
        "files": n * units["run_files"],
        "store_gib": n * units["run_bytes"] / 2**30,
        "write_hours": n * units["run_write_seconds"] / 3600,
        "plan_seconds": None if status is None else n * units["plan_seconds_per_run"],
        "status_seconds": None if status is None else n * status,
        "status_gib": None if status is None else n * units["status_gib_per_run"],
    }


@dataclass(order=True)
class Free:
    """A worker that has nothing to do at `seconds`."""

    seconds: float
    worker: int


def cluster(
    workers: int, images: int, units: dict[str, float], *, seed: int = 0, most_shards: int = 200_000
) -> dict[str, float]:
    """Workers take shards from a queue until none is left. A failure loses the shard under way; writes go through one
    store, one after the other. More than `most_shards` are simulated as that many larger steps."""
    rng = np.random.default_rng(seed)
    shards = -(-images // int(units["shard_images"]))
    steps = min(shards, max(most_shards, 4 * workers))
    size = shards / steps  # shards in a step
    each = units["extract_seconds_per_image"] * units["shard_images"]
    failing = ASSUMED["worker_hours_between_failures"] * 3600
    free = [Free(0.0, worker) for worker in range(workers)]
    store_free = end = 0.0
    lost = waited = 0.0
    left = float(steps)
    while left:
        at = heapq.heappop(free)
        seconds = max(0.1, rng.normal(1.0, ASSUMED["variation"] / size**0.5)) * each * size
        until_failure = rng.exponential(failing)
        if until_failure < seconds:  # what is finished of the step stays: a shard at most is lost
            done = int(until_failure // each)
            lost += until_failure - done * each
            left -= done / size
            heapq.heappush(free, Free(at.seconds + until_failure + ASSUMED["restart_seconds"], at.worker))
            if left <= 0:
                break
            continue
        finished = at.seconds + seconds
        store_free = max(finished, store_free) + units["shard_write_seconds"] * size  # one write after the other
        waited += store_free - finished
        end = store_free
        left = max(0.0, left - 1)
        heapq.heappush(free, Free(store_free, at.worker))
    alone = shards * each
    return {
        "days": end / 86400,
        "efficiency": alone / (workers * end),
        "share_lost_to_failures": lost / (workers * end),
        "share_waiting_for_the_store": waited / (workers * end),
    }


def breaks(units: dict[str, float]) -> list[dict[str, Any]]:
    """At which number of images or runs each limit is met on one machine; the first first."""
    memory = ASSUMED["memory_gib"] * 2**30
    days = ASSUMED["patience_days"] * 86400
    of_image = {
        "memory: positions of a table of features": memory / units["table_memory_bytes_per_image"],
        "memory: drawing a budget": memory / units["split_memory_bytes_per_image"],
        "time: decoding on one core": days / units["decode_seconds_per_image"],
        "time: sums of a ridge head": days / units["sums_seconds_per_image"],
    }
    if extracts(units):
        of_image["time: extraction"] = days / units["extract_seconds_per_image"]
    of_run = {
        "spec.study.MAX_RUNS": float(MAX_RUNS),
        "files of the store": ASSUMED["files"] / units["run_files"],
        "time: writing artifacts": days / units["run_write_seconds"],
    }
    if "status_seconds_per_run" in units:
        of_run["patience: regraft status"] = ASSUMED["patience_seconds"] / units["status_seconds_per_run"]
        of_run["memory: regraft status"] = ASSUMED["memory_gib"] / units["status_gib_per_run"]
    return [
        {"what": what, "unit": unit, "at": at}
        for unit, limits in (("images", of_image), ("runs", of_run))
        for what, at in sorted(limits.items(), key=lambda limit: limit[1])
    ]


if __name__ == "__main__":
    main()
