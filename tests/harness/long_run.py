"""A process that goes on for a day: memory, file handles, threads and what is written stay level over many small runs.

python -m tests.harness.long_run [--runs 1000] [--record]

Small but complete studies, one after the other in this process and on one store, each with a seed of its own: a network
is trained, cut, its features are extracted, heads are solved, scored, and tables are written; now and then a report.
After each study the process is measured. What grows is told by the slope of a line through the second half of the
measurements, with a 95 % t-interval over the means of blocks, since neighbouring measurements are not independent.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from tests.harness.figures import finish
from tests.harness.small import TINY

RUNS_A_STUDY = 4
REPORT_EVERY = 25  # studies
BLOCKS = 10
# Of the upper end of the slope's interval. A day of a run a second is 86,400 runs: 1 GiB more at most.
LIMIT_BYTES = 2**30 / 86_400
POINTS = 100  # of the recorded curve


@dataclass(frozen=True)
class Measured:
    """The process after a study."""

    runs: int
    resident_bytes: int
    handles: int
    threads: int
    objects: int  # that Python's collector knows of
    written_bytes: int  # of results and tables by this study, without its artifacts
    artifact_files: int  # by this study
    events: int  # by this study
    longest_event: int  # characters


def small(seed: int) -> dict[str, Any]:
    return {
        "study": "long",
        "seeds": [seed],
        "sources": {
            "random": {"network": TINY, "weights": "random", "image_size": 32}, "trained": {"run": "source"},
        },
        "targets": {
            "first": {"data": "digits", "classes": ["0", "1"], "per_class": 8, "test_images": 20},
            "few": {"data": "digits", "classes": ["5", "6"], "per_class": 8, "validation": 0.25, "test_images": 20},
        },
        "recipes": {
            "fast": {"epochs": 1, "batch_size": 8, "lr": 0.01},
            "ridge": {"optimizer": "ridge", "weight_decay": 0.1},
            "logistic": {"optimizer": "lbfgs", "epochs": 10, "weight_decay": 0.1},
        },
        "rows": [
            {"name": "source", "source": "random", "target": "first", "recipe": "fast"},
            {"name": "frozen", "source": "trained", "cut": "layer2", "method": "frozen", "target": "few",
             "recipe": ["ridge", "logistic"]},
            {"name": "near", "source": "trained", "cut": "layer2", "method": "frozen", "target": "few",
             "head": "prototype"},
        ],
    }  # fmt: skip


def one_study(number: int, folder: Path, write: Callable[[Any, Path], object] | None) -> Measured:
    """Run one study and look at the process."""
    from regraft.spec import Study
    from regraft.study.run import run_study
    from regraft.study.store import Store

    said: list[str] = []
    store, out = Store(folder / "store"), folder / "out"
    before = sum(1 for _ in store.root.glob("objects/??/*"))
    results = run_study(
        Study.from_dict(small(number)), store, report=lambda event: said.append(repr(event)), device="cpu", threads=1,
        offline=True, backend="eager",
    )  # fmt: skip
    assert not results.missing, results.missing
    out.mkdir(exist_ok=True)
    written = [results.to_csv(out / "results.csv"), results.to_json(out / "results.json")]
    if write is not None:
        write(results, out / "report.html")
    del results
    gc.collect()
    return Measured(
        runs=(number + 1) * RUNS_A_STUDY,
        resident_bytes=_resident(),
        handles=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        objects=len(gc.get_objects()),
        written_bytes=sum(file.stat().st_size for file in written),
        artifact_files=sum(1 for _ in store.root.glob("objects/??/*")) - before,
        events=len(said),
        longest_event=max(map(len, said)),
    )


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(runs: list[int], values: list[int]) -> tuple[float, float, float]:
    """Of the second half, a run: (mean, low, high), 95 % t over the means of BLOCKS blocks."""
    half = len(runs) // 2
    blocks = np.array_split(np.arange(half, len(runs)), BLOCKS)
    x = np.array([np.mean([runs[i] for i in block]) for block in blocks])  # (blocks,)
    y = np.array([np.mean([values[i] for i in block]) for block in blocks])
    centred = x - x.mean()
    mean = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - mean * centred
    error = float(np.sqrt(rest @ rest / (BLOCKS - 2) / (centred @ centred)))
    reach = float(special.stdtrit(BLOCKS - 2, 0.975)) * error
    return mean, mean - reach, mean + reach


def run(count: int) -> list[Measured]:
    from regraft.show.report import write_report

    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="regraft-long-") as name:
        for number in range(-(-count // RUNS_A_STUDY)):
            found.append(one_study(number, Path(name), write_report if number % REPORT_EVERY == 0 else None))
    return found


def figures(found: list[Measured], seconds: float) -> dict[str, Any]:
    """What grew, and by how much."""
    runs = [one.runs for one in found]
    rise = slope(runs, [one.resident_bytes for one in found])
    half = found[len(found) // 2 :]
    level = {
        name: [min(getattr(one, name) for one in half), max(getattr(one, name) for one in half)]
        for name in ("handles", "threads", "written_bytes", "artifact_files", "events", "longest_event")
    }
    violations = []
    if rise[2] > LIMIT_BYTES:
        violations.append(f"resident memory may grow by {rise[2]:,.0f} bytes a run, more than {LIMIT_BYTES:,.0f}")
    if half[-1].handles > half[0].handles or half[-1].threads > half[0].threads:
        violations.append(f"handles or threads grow: {level}")
    if len({one.events for one in half}) > 1 or level["written_bytes"][1] > 1.1 * level["written_bytes"][0]:
        violations.append(f"events or tables grow: {level}")
    kept = found[:: max(1, len(found) // POINTS)]
    return {
        "long run": {
            "command": "python -m tests.harness.long_run",
            "created": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "runs": runs[-1],
            "seconds": round(seconds),
            "resident MiB, first and last study": [
                round(one.resident_bytes / 2**20, 1) for one in (found[0], half[-1])
            ],
            "bytes a run in the second half [95 % t]": [round(value, 1) for value in rise],
            "limit of bytes a run": round(LIMIT_BYTES),
            "objects a run in the second half [95 % t]": [
                round(value, 3) for value in slope(runs, [one.objects for one in found])
            ],
            "least and most a study in the second half": level,
            "violations": violations,
        },
        "curve": [{name: asdict(one)[name] for name in ("runs", "resident_bytes", "handles")} for one in kept],
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=1000)
    options.add_argument("--record", action="store_true")
    given = options.parse_args()
    began = time.monotonic()
    found = run(given.runs)
    return finish("long-run", figures(found, time.monotonic() - began), record=given.record)


if __name__ == "__main__":
    raise SystemExit(main())
