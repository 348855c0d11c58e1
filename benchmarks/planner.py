"""What a study of very many runs costs before and after its trainings: `python benchmarks/planner.py`.

Writes a finished study of so many runs into a store (results made up, written by the store's own writer; flushing to
the disk is left out, which is the writer's cost and not the reader's), then times the commands of a user, as whole
processes with their peak resident memory: `regraft plan`, `regraft status`, and `regraft run` of what is finished,
which writes table, JSON and report. The parts of them are timed in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from running import circumstances

SEEDS, EPOCHS, CLASSES = 5, 10, 10
CUTS = ["layer1.1", "layer2.1", "layer3.1", "layer4.1", None]
SOURCES = {
    "small": {"network": "resnet18", "weights": "random", "image_size": 32},
    "large": {"network": "resnet50", "weights": "random", "image_size": 32},
    "own": {"run": "trained here"},
}
RUNS_PER_TARGET = len(SOURCES) * len(CUTS) * 2 * 2 * SEEDS  # 2 methods, 2 recipes
LIMIT_SECONDS, LIMIT_GIB = 5.0, 1.0  # of planning and of status, 10,000 runs
PROGRAM = "from regraft.cli import program; program()"
STOPWATCH = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--place", type=Path, help="keep stores here and take those that are here")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--parts", nargs=3, metavar=("STUDY", "STORE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts:
        print(json.dumps(parts(*map(Path, options.parts))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = options.place or Path(temporary)
        found = [measured(count, place / str(count)) for count in options.runs]
    for one in found:
        print(f"{one['runs']:,} runs, {one['artifacts']:,} artifacts of {one['store_bytes'] / 2**20:,.0f} MiB")
        for name, timed in one["commands"].items():
            print(f"  regraft {name:<22} {timed['seconds']:>8.2f} s, peak {timed['peak_gib']:.2f} GiB")
        for name, seconds in one["parts"].items():
            print(f"    {name:<28} {seconds:>8.2f} s")
        print(f"  report.html {one['report_bytes'] / 2**20:.1f} MiB, results.json {one['json_bytes'] / 2**20:.1f} MiB")
    if options.record:
        limits = {"seconds": LIMIT_SECONDS, "gib": LIMIT_GIB, "runs": 10_000}
        options.record.write_text(
            json.dumps({**circumstances(sys.executable), "limits": limits, "studies": found}, indent=1) + "\n"
        )


def study_of(runs: int) -> dict[str, Any]:
    """A study of about that many runs: digits at many budgets, three sources, five cuts, two methods, two recipes."""
    budgets = max(1, round(runs / RUNS_PER_TARGET))
    recipes = {"short": {"epochs": EPOCHS}, "longer": {"epochs": 2 * EPOCHS}}
    shares = [round(0.1 + 0.9 * (i + 1) / budgets, 6) for i in range(budgets)]
    return {
        "study": f"many-{runs}",
        "seeds": list(range(SEEDS)),
        "sources": SOURCES,
        "targets": {
            "all": {"data": "digits"},
            **{f"share {share}": {"data": "digits", "fraction": share, "validation": 0.2} for share in shares},
        },
        "recipes": recipes,
        "rows": [{"name": "trained here", "source": "small", "target": "all", "recipe": "short"}],
        "grid": {
            "source": list(SOURCES), "cut": CUTS, "method": ["frozen", "finetune"], "recipe": list(recipes),
            "target": [f"share {share}" for share in shares],
        },
    }  # fmt: skip


def measured(runs: int, place: Path) -> dict[str, Any]:
    """One study, written if it is not here yet, and everything about it timed."""
    from regraft.spec import Study
    from regraft.study.plan import plan

    study_file, store, out = place / "study.yaml", place / "store", place / "out"
    if not (place / "complete").exists():
        place.mkdir(parents=True, exist_ok=True)
        study_file.write_text(yaml.safe_dump(study_of(runs)))
        write_store(study_file, store)
        (place / "complete").touch()
    common = [str(study_file), "--store", str(store)]
    shutil.rmtree(place / "home", ignore_errors=True)
    os.environ["REGRAFT_HOME"] = str(place / "home")
    # What is known of networks and data is here from now on.
    command("plan", str(study_file), "--store", str(place / "nothing"))
    indexes = place / "home" / "index"
    shutil.rmtree(indexes, ignore_errors=True)
    commands = {
        "status (no index yet)": command("status", *common),
        "status": command("status", *common),
        "plan": command("plan", *common),
        "run (all there)": command("run", *common, "--out", str(out), "--offline"),
    }
    done = subprocess.run(
        [sys.executable, __file__, "--parts", str(study_file), str(store), str(out)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    files = [f.stat().st_size for f in store.glob("objects/??/*/*")]
    return {
        "runs": len(plan(Study.from_yaml(study_file))),
        "artifacts": len(files) // 4,
        "store_bytes": sum(files),
        "index_bytes": sum(f.stat().st_size for f in indexes.glob("*")),
        "commands": commands,
        "parts": json.loads(done.stdout.splitlines()[-1]),
        "report_bytes": (out / "report.html").stat().st_size,
        "json_bytes": (out / "results.json").stat().st_size,
    }


def command(*words: str) -> dict[str, float]:
    """Seconds and peak memory of a whole `regraft` process. Raises RuntimeError if it fails."""
    # From a small process in between: a child's peak begins with what its parent had when it was started.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            [sys.executable, "-S", "-c", STOPWATCH, sys.executable, "-c", PROGRAM, *words],
            stdout=subprocess.PIPE, stderr=said, text=True, check=False,
        )  # fmt: skip
        said.seek(0)
        if done.returncode:
            raise RuntimeError(f"regraft {words[0]} ended with {done.returncode}: {said.read()[-1500:]}")
    seconds, peak = map(float, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": round(seconds, 2), "peak_gib": round(peak * unit / 2**30, 3)}


def parts(study_file: Path, folder: Path, out: Path) -> dict[str, float]:
    """Seconds of each step on the way from the file to the report, in this process."""
    from regraft.show.report import report_html
    from regraft.spec import Study
    from regraft.study.keys import Keys
    from regraft.study.plan import plan
    from regraft.study.results import Results
    from regraft.study.store import Store

    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def passed(name: str) -> None:
        nonlocal start
        seconds[name] = round(time.perf_counter() - start, 3)
        start = time.perf_counter()

    study = Study.from_yaml(study_file)
    passed("read and check the file")
    runs = plan(study)
    passed("plan")
    keys = Keys(runs, Store(folder), offline=True)
    for run in runs:
        keys.fit_key(run)
    passed("keys of all fits")
    results = Results.read(study, keys, {})
    assert not results.missing, results.missing[:3]
    passed("read all results")
    results.to_json(out / "again.json")
    passed("results.json")
    report_html(results)
    passed("report")
    return seconds


def write_store(study_file: Path, folder: Path) -> None:
    """A fit of every run and a score of every cell, as trainings and scoring would leave them."""
    from regraft.spec import Study
    from regraft.study.plan import cells, plan

    of_cell = list(cells(plan(Study.from_yaml(study_file))))
    sources = [i for i, (row, _) in enumerate(of_cell) if row == "trained here"]
    others = [i for i in range(len(of_cell)) if i not in set(sources)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=prepare, initargs=(study_file, folder)) as workers:
        list(workers.map(write_cell, sources))  # first: the keys of others rest on them
        list(workers.map(write_cell, others, chunksize=100))


def prepare(study_file: Path, folder: Path) -> None:
    """Of a writing process."""
    from regraft.spec import Study
    from regraft.study.keys import Keys
    from regraft.study.plan import plan
    from regraft.study.store import Store

    os.fsync = lambda fd: None  # a store that is thrown away need not survive a power cut
    global writer
    writer = Keys(plan(Study.from_yaml(study_file)), Store(folder), offline=True)


writer: Any = None  # Keys of the study that this process writes


def write_cell(place: int) -> None:
    """Fits of one cell's runs, and the score of the one with the best validation accuracy."""
    import torch

    from regraft.study.store import Payload

    rng = np.random.default_rng(place)
    runs = list(writer.by_cell.values())[place]
    held = [round(float(rng.uniform(0.3, 0.9)), 4) for _ in runs]
    for run, accuracy in zip(runs, held, strict=True):
        values = fit_values(accuracy, run.recipe.epochs)
        writer.store.cached(writer.fit(run), lambda _, values=values: Payload(values))
    best = runs[int(np.argmax(held))]
    count = writer.info("digits").test_images
    truth, predicted = np.arange(count) % CLASSES, rng.integers(0, CLASSES, count)
    correct = rng.random(count) < max(held)
    predicted[correct] = truth[correct]
    confusion = np.bincount(CLASSES * truth + predicted, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    score = {
        "accuracy": float(np.trace(confusion) / count), "test_images": count, "confusion": confusion.tolist(),
        "class_names": [str(i) for i in range(CLASSES)],
    }  # fmt: skip
    tensors = {
        "correct": torch.from_numpy((predicted == truth).astype(np.uint8)),
        "predicted": torch.from_numpy(predicted.astype(np.int32)),
        "confidence": torch.from_numpy(rng.random(count, dtype=np.float32)),
        "positions": torch.arange(count),
    }
    writer.store.cached(writer.score(best), lambda _: Payload(score, tensors))


def fit_values(accuracy: float, epochs: int) -> dict[str, Any]:
    """As `fit_payload` has them."""
    curve = [
        {"epoch": i + 1, "train_loss": 2.0 / (i + 1), "lr": 0.1, "train_accuracy": 0.5, "validation_loss": 1.0,
         "validation_accuracy": accuracy} for i in range(epochs)
    ]  # fmt: skip
    return {
        "validation_accuracy": accuracy, "validation_loss": 1.0, "train_accuracy": 0.95, "epoch": epochs,
        "curve": curve, "train_images": 1000,
        "validation_images": 200, "class_names": [str(i) for i in range(CLASSES)], "depth": 0.5,
        "trunk_sha256": {"before": "0" * 64, "after": "0" * 64}, "notes": [],
    }  # fmt: skip


if __name__ == "__main__":
    main()
