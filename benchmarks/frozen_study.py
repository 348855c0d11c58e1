"""A grid of frozen-trunk jobs against the plain loop: `python benchmarks/frozen_study.py`.

4 cuts of an ImageNet ResNet-50 x 4 budgets (100, 250, 500, 1,000 images a class of CIFAR-10) x 3 seeds, 2,000 test
images at 32 pixels, a linear head trained for 10 epochs each. regraft does it as one study, into an empty store, from
Python and from the command line. Each seed draws its own images; budgets of one seed are nested.

The plain loop (benchmarks/peers/plain_loop.py) would need an hour, so a part of it is measured: for each cut the whole
job at the smallest budget and the first seed. The rest is scaled: its seconds an image in training and in testing times
the images of the other jobs, and one start of the process for all of them, as if one script looped over the grid. What
was measured and how it was scaled is printed and recorded. The measured cells compare accuracy too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from frozen_job import EPOCHS, LR
from running import (
    IMAGE_SIZE,
    NETWORK,
    PEERS,
    SCRIPTS,
    TEST_IMAGES,
    WORKERS,
    Timed,
    record,
    table,
    time_process,
    write_peer_files,
)

from regraft import Study

CUTS = ("layer1.2", "layer2.2", "layer3.5", "penultimate")
BUDGETS = (100, 250, 500, 1000)  # images a class
SEEDS = (0, 1, 2)
CLASSES = 10
ROW = "cut at {cut}, {target}"


@dataclass(frozen=True)
class Sizes:
    """Of the grid."""

    cuts: tuple[str, ...] = CUTS
    budgets: tuple[int, ...] = BUDGETS
    seeds: tuple[int, ...] = SEEDS
    test_images: int = TEST_IMAGES
    epochs: int = EPOCHS

    def __str__(self) -> str:
        return (
            f"{len(self.cuts)} cuts x {len(self.budgets)} budgets x {len(self.seeds)} seeds, "
            f"{self.test_images:,} test images, {self.epochs} epochs"
        )


@dataclass(frozen=True)
class Rate:
    """What the plain loop took at one cut, and its accuracy there."""

    cut: str
    start_seconds: float  # imports, data, weights
    train_seconds: float  # an image
    test_seconds: float  # an image
    accuracy: float
    workers: int


def grid(sizes: Sizes) -> Study:
    """The grid as a study."""
    targets = {
        _target(budget): {
            "data": "cifar10", "per_class": budget, "validation": 0.0, "test_images": sizes.test_images
        }
        for budget in sizes.budgets
    }  # fmt: skip
    return Study(
        study="frozen-study",
        seeds=list(sizes.seeds),
        sources={"ImageNet": {"network": NETWORK, "weights": "pretrained", "image_size": IMAGE_SIZE}},
        targets=targets,
        recipes={"head": {"optimizer": "sgd", "epochs": sizes.epochs, "batch_size": 128, "lr": LR}},
        grid={
            "name": ROW, "source": "ImageNet", "cut": list(sizes.cuts), "method": "frozen",
            "target": list(targets), "recipe": "head",
        },
    )  # fmt: skip


def _target(budget: int) -> str:
    return f"{budget} per class"


def measure_plain(sizes: Sizes, place: Path) -> list[Rate]:
    """The plain loop at every cut, smallest budget, first seed."""
    per_class, seed = min(sizes.budgets), sizes.seeds[0]
    rates = []
    for cut in sizes.cuts:
        write_peer_files(
            place, per_class=per_class, test_images=sizes.test_images, seed=seed, cut=cut, epochs=sizes.epochs, lr=LR
        )
        command = [sys.executable, str(PEERS / SCRIPTS["plain"]), str(place)]
        tries = {n: time_process([*command, "--workers", str(n), "--epochs", "2"])[0] for n in WORKERS}
        workers = min(tries, key=tries.__getitem__)
        seconds, said = time_process([*command, "--workers", str(workers)])
        train, test = float(str(said["train_seconds"])), float(str(said["test_seconds"]))
        rates.append(
            Rate(
                cut=cut,
                start_seconds=seconds - train - test,
                train_seconds=train / (sizes.epochs * CLASSES * per_class),
                test_seconds=test / (sizes.epochs * sizes.test_images),
                accuracy=float(str(said["accuracy"])),
                workers=workers,
            )
        )
        print(f"plain, {cut}: {seconds:.1f} s, {workers} loader processes", flush=True)
    return rates


def scaled(sizes: Sizes, rates: list[Rate]) -> tuple[float, list[str]]:
    """Seconds of the plain loop for the whole grid, and the arithmetic in words."""
    trained = sizes.epochs * CLASSES * sum(sizes.budgets) * len(sizes.seeds)  # images, of one cut
    tested = sizes.epochs * sizes.test_images * len(sizes.budgets) * len(sizes.seeds)
    start = min(rate.start_seconds for rate in rates)
    lines = [f"plain loop: measured at {_target(min(sizes.budgets))}, seed {sizes.seeds[0]}; one start {start:.1f} s"]
    total = start
    for rate in rates:
        seconds = trained * rate.train_seconds + tested * rate.test_seconds
        total += seconds
        lines.append(
            f"  {rate.cut}: {trained:,} training images x {1000 * rate.train_seconds:.3f} ms + {tested:,} test images "
            f"x {1000 * rate.test_seconds:.3f} ms = {seconds:,.0f} s"
        )
    return total, lines


def time_regraft(study: Path, place: Path, rounds: int) -> tuple[list[Timed], dict[str, float]]:
    """regraft from Python and from the command line; the accuracy of every cell."""
    library, command = Timed("regraft, Python"), Timed("regraft run, with report")
    cells: dict[str, float] = {}
    for number in range(rounds):
        script = [sys.executable, str(PEERS / "regraft_study.py"), str(study), str(place / f"store-{number}")]
        seconds, said = time_process(script)
        library.seconds.append(seconds)
        cells = json.loads(json.dumps(said["cells"]))
        run = [
            sys.executable, "-m", "regraft.cli", "run", str(study), "--store", str(place / f"store-cli-{number}"),
            "--out", str(place / "out"),
        ]  # fmt: skip
        command.seconds.append(time_process(run)[0])
        print(f"regraft: {seconds:.1f} s, command line {command.seconds[-1]:.1f} s", flush=True)
    return [library, command], cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of regraft")
    parser.add_argument("--record", type=Path, help="write everything to this JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; the times say nothing")
    options = parser.parse_args()
    sizes = Sizes(CUTS[1:3], (5, 10), (0, 1), 100, 2) if options.smoke else Sizes()
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as temporary:
        place = Path(temporary)
        study = place / "frozen-study.yaml"
        study.write_text(grid(sizes).to_yaml())
        rates = measure_plain(sizes, place / "peer")  # first: it fetches what is not here
        rows, cells = time_regraft(study, place, options.rounds)
    plain, arithmetic = scaled(sizes, rates)
    rows.append(Timed("plain loop, measured in part", [plain], note="scaled, see below"))
    print(table(f"{NETWORK} at {IMAGE_SIZE} px: {sizes}", rows, plain))
    print("\n".join(arithmetic))
    print("test accuracy of the measured cells, plain / regraft:")
    for rate in rates:
        row = ROW.format(cut=rate.cut, target=_target(min(sizes.budgets)))
        own = cells[f"{row}, seed {sizes.seeds[0]}"]
        print(f"  {rate.cut}: {100 * rate.accuracy:.1f} % / {100 * own:.1f} %")
    if options.record:
        record(
            options.record, rows, sys.executable, job=str(sizes), smoke=options.smoke, scaling=arithmetic,
            plain=[vars(rate) for rate in rates], regraft_cells=cells,
        )  # fmt: skip


if __name__ == "__main__":
    main()
