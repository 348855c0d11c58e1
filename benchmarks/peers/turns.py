"""How a process that trains takes turns with others, so that they can be timed round by round in one run.

It is started with a folder (train_images.npy, train_labels.npy, and task.json with mean and std), a number of turns and
of threads. When it is ready it waits for a line, trains on all images once, and answers with the seconds that took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

BATCH = 128  # images a step
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4


class Turns:
    """Reads the command line; `begin` waits for this process's turn, `end` ends it."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("folder", type=Path)
        parser.add_argument("turns", type=int)
        parser.add_argument("threads", type=int)
        parser.add_argument("--as-regraft", action="store_true", help="with regraft's memory order and optimiser")
        options = parser.parse_args()
        self.folder: Path = options.folder
        self.count: int = options.turns
        self.threads: int = options.threads
        self.as_regraft: bool = options.as_regraft
        words = json.loads((self.folder / "task.json").read_text())
        self.mean: list[float] = words["mean"]
        self.std: list[float] = words["std"]
        self.done = 0
        self.started = 0.0

    def begin(self) -> None:
        sys.stdin.readline()
        self.started = time.perf_counter()

    def end(self) -> None:
        print(json.dumps({"seconds": time.perf_counter() - self.started}), flush=True)
        self.done += 1
