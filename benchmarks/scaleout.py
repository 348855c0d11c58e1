"""What a second worker gains: `python benchmarks/scaleout.py`.

A study of CPU-bound trainings of one thread each, all alike and as many as two workers share evenly: in this process,
in two worker processes, and on Ray with one and two workers. Each time an empty store, and the seconds of `run_study`:
with it everything that is not training, as the start of workers and of Ray. Fractions of the ideal are against serial
with one thread in the same round. The results of all must be the same bytes.
Fetches nothing: the images are scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from running import Timed, record, table, time_process

from regraft import Study

CONTENDERS = ("serial", "processes 2", "ray 1", "ray 2")
TARGET = 1.7  # times as fast with two workers as serially
SCRIPT = """
import json, sys, time
from regraft import Store, Study, run_study
from regraft.study.executors import SERIAL, Processes
if __name__ == "__main__":
    study, folder, where, workers = sys.argv[1:]
    if where == "ray":
        from regraft.study.ray_executor import Ray
        executor = Ray("local", workers=int(workers))
    else:
        executor = SERIAL if where == "serial" else Processes(int(workers))
    began = time.perf_counter()
    results = run_study(Study.from_yaml(study), Store(folder + "/store"), executor, threads=1, device="cpu")
    seconds = time.perf_counter() - began
    assert not results.missing
    results.to_csv(folder + "/results.csv")
    print(json.dumps({"seconds": seconds, "trainings": len(results.cells)}))
"""


def study(trainings: int, epochs: int) -> Study:
    """So many trainings from scratch of the same length."""
    return Study(
        study="scaleout",
        seeds=list(range(trainings)),
        sources={"random": {"network": "resnet18", "image_size": 32}},
        targets={"digits": {"data": "digits", "per_class": 50}},
        recipes={"train": {"epochs": epochs, "batch_size": 50, "lr": 0.02}},
        rows=[{"name": "scratch", "source": "random", "method": "finetune", "target": "digits", "recipe": "train"}],
    )


def measure(place: Path, rounds: int) -> tuple[list[Timed], list[str]]:
    """Every contender in turn, round by round, and whose results were not serial's."""
    script = place / "run.py"
    script.write_text(SCRIPT)
    rows = {name: Timed(name) for name in CONTENDERS}
    differing = []
    for number in range(rounds):
        tables = {}
        for name, row in rows.items():
            folder = place / f"{name}-{number}"
            folder.mkdir()
            where, _, workers = name.partition(" ")
            words = [sys.executable, str(script), str(place / "study.yaml"), str(folder), where, workers or "1"]
            _, row.said = time_process(words, env={"OMP_NUM_THREADS": "1"})
            row.seconds.append(float(str(row.said["seconds"])))
            tables[name] = (folder / "results.csv").read_bytes()
            print(f"{name}: {row.seconds[-1]:.1f} s", flush=True)
        differing += [name for name in CONTENDERS if tables[name] != tables["serial"]]
    return list(rows.values()), differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--record", type=Path, help="write everything to this JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; the times say nothing")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.trainings, options.epochs = 1, 2, 1
    job = f"{options.trainings} trainings of ResNet-18 at 32 px, {options.epochs} epochs of 450 images, one thread each"
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as temporary:
        place = Path(temporary)
        (place / "study.yaml").write_text(study(options.trainings, options.epochs).to_yaml())
        rows, differing = measure(place, options.rounds)
    serial = rows[0].seconds
    speedups = {row.name: [one / own for one, own in zip(serial, row.seconds, strict=True)] for row in rows[1:]}
    print(table(job, rows, rows[0].median))
    for name, ratios in speedups.items():
        print(f"{name}: {min(ratios):.2f} to {max(ratios):.2f} times serial, round by round (n = {len(ratios)})")
    print(f"results: {'differ from serial: ' + ', '.join(differing) if differing else 'the same bytes everywhere'}")
    if options.record:
        record(
            options.record, rows, sys.executable, job=job, smoke=options.smoke, target=TARGET, speedups=speedups,
            differing=differing,
        )  # fmt: skip
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
