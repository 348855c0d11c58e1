"""Images/s of training on the CPU: regraft, the usual scripts, the bare network: `python benchmarks/train_cpu.py`.

torchvision's ResNet-18 (ImageNet stem) on CIFAR-10 at 32 pixels, crop and flip, batch 128, Nesterov SGD with weight
decay 5e-4; the data path is included. Contenders:
- regraft's own training loop, fed by its own batches;
- the loop of the well-known CIFAR scripts: PIL transforms, a DataLoader with two workers, default memory order;
- the bare network: forward, backward, optimiser on one batch that lies in memory, nothing else.
The peers run as anyone runs them, and once more with what regraft sets besides its data path (how torch's threads wait;
for the bare network also memory order and fused optimiser), so that each can be told apart.

Each is a process of its own. They take turns, every round in another order, each training on the same number of images
with as many threads; the first round warms up and does not count. Ratios are of the same round.
Targets: at least 1.15 times the scripts and 0.97 times the bare network.

--bf16 adds autocast to bfloat16 against float32; --memory-order adds channels_last against contiguous.
Speeds mean something only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

# First, before regraft adds to it.
from before import ENVIRONMENT

# isort: split
# Before torch, since it sets how torch's threads wait.
import regraft  # noqa: F401

# isort: split
import torch
from running import PEERS, circumstances, write_training_images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.errors import DataUnavailable
from regraft.learn.hardware import set_threads
from regraft.networks import build

BATCH, IMAGE_SIZE, CLASSES = 128, 32, 10
STEPS = 8  # of each way in a round of the sections on bfloat16 and memory order
AS_REGRAFT = dict(os.environ)  # with how regraft lets torch's threads wait


@dataclass(frozen=True)
class Contender:
    name: str
    script: str
    environment: dict[str, str]
    options: tuple[str, ...] = ()
    target: float | None = None  # regraft is to be at least so many times as fast


CONTENDERS = (
    Contender("regraft", "train_regraft.py", ENVIRONMENT),
    Contender("PIL transforms, DataLoader, 2 workers", "train_loader.py", ENVIRONMENT, target=1.15),
    Contender("the same, threads waiting as in regraft", "train_loader.py", AS_REGRAFT),
    Contender("bare network, one batch", "train_bare.py", ENVIRONMENT, target=0.97),
    Contender("the same, set up as in regraft", "train_bare.py", AS_REGRAFT, ("--as-regraft",)),
)


# --- whole training, in turns -----------------------------------------------------------------------------------


class Running:
    """A contender's process."""

    def __init__(self, contender: Contender, folder: Path, turns: int, threads: int, errors: TextIO) -> None:
        self.name, self.errors = contender.name, errors
        command = [sys.executable, str(PEERS / contender.script), str(folder), str(turns), str(threads)]
        self.process = subprocess.Popen(
            [*command, *contender.options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=contender.environment,
        )  # fmt: skip

    def turn(self) -> float:
        """Seconds of one turn. Raises RuntimeError with the end of what the process wrote if it has failed."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already: said below
            stdin.write("\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.name} ended early:\n{self.errors.read()[-1500:]}")
        return float(json.loads(line)["seconds"])

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


def take_turns(folder: Path, *, images: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """For each contender its images/s in every round, and how many times as fast regraft was in the same round."""
    with contextlib.ExitStack() as stack:
        running = []
        for contender in CONTENDERS:
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            running.append(Running(contender, folder, rounds + 1, threads, errors))
            stack.callback(running[-1].stop)
        for each in running:
            each.turn()
        speeds: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
        for number in range(rounds):
            first = number % len(running)
            for each in [*running[first:], *running[:first]]:
                speeds[each.name].append(images / each.turn())
            print(f"round {number + 1}: " + ", ".join(f"{values[-1]:.0f}" for values in speeds.values()), flush=True)
    return [
        {"name": contender.name, "target": contender.target, **summary(speeds[contender.name]),
         "ratio": summary([a / b for a, b in zip(speeds["regraft"], speeds[contender.name], strict=True)])}
        for contender in CONTENDERS
    ]  # fmt: skip


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4),
        "n": len(values), "values": [round(value, 4) for value in values],
    }  # fmt: skip


# --- bfloat16, memory order -------------------------------------------------------------------------------------


def alternately(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each way in each round, by turns; one call beforehand warms up."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names if number % 2 == 0 else reversed(names):
            start = time.perf_counter()
            for _ in range(STEPS):
                ways[name]()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    return seconds


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, precision: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        with precision():
            loss = cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def compare_precision(images: Tensor, labels: Tensor, rounds: int) -> dict[str, Any]:
    """float32 and autocast to bfloat16: steps of training, answers, and how far the logits are apart."""
    model = build("resnet18", classes=CLASSES, seed=0).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)

    def answers(precision: Callable[[], AbstractContextManager[Any]]) -> Tensor:
        model.eval()
        with torch.inference_mode(), precision():
            return model(images).float()  # type: ignore[no-any-return]

    precisions = {"float32": contextlib.nullcontext, "bfloat16": bfloat16}
    found: dict[str, Any] = {"bf16_in_hardware": sorted(processor_flags())}
    for kind, make in (
        ("training", lambda precision: training_step(model, images, labels, precision)),
        ("answers", lambda precision: lambda: answers(precision)),
    ):
        seconds = alternately({name: make(precision) for name, precision in precisions.items()}, rounds)
        found[kind] = {name: summary([len(images) / value for value in values]) for name, values in seconds.items()}
        found[kind]["ratio"] = summary([a / b for a, b in zip(seconds["float32"], seconds["bfloat16"], strict=True)])
    exact, rough = answers(contextlib.nullcontext), answers(bfloat16)  # after some training on this very batch
    found["max_deviation"] = round(float((exact - rough).abs().max() / exact.std()), 5)  # in the logits' deviations
    found["same_answer"] = float((exact.argmax(1) == rough.argmax(1)).double().mean())
    return found


def processor_flags() -> Iterator[str]:
    """The instructions for bfloat16 that this processor says it has."""
    with contextlib.suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text().split())
        yield from words & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"}


def compare_orders(images: Tensor, labels: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Steps of training in both memory orders, by network and batch size."""
    rows = []
    for network in ("resnet18", "resnet50"):
        for batch in (32, 64, 128):
            ways = {}
            for name, order in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
                model = build(network, classes=CLASSES, seed=0).to(memory_format=order)
                part = images[:batch].contiguous(memory_format=order)
                ways[name] = training_step(model, part, labels[:batch], contextlib.nullcontext)
            seconds = alternately(ways, rounds)
            row: dict[str, Any] = {"network": network, "batch": batch}
            row |= {name: summary([batch / value for value in values]) for name, values in seconds.items()}
            row["ratio"] = summary(
                [a / b for a, b in zip(seconds["contiguous"], seconds["channels_last"], strict=True)]
            )
            rows.append(row)
    return rows


# --- what is shown ----------------------------------------------------------------------------------------------


def spread(values: dict[str, Any], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} to {values['max']:.{digits}f})"


def show(content: dict[str, Any]) -> None:
    print(f"\n{'training, images/s':40} {'median (range)':>20}  {'regraft is x times as fast':>28}")
    for row in content["contenders"]:
        target = "" if row["target"] is None else f"  target {row['target']:.2f}"
        print(f"{row['name']:40} {spread(row, 0):>20}  {spread(row['ratio'], 3):>28}{target}")
    if "bf16" in content:
        bf16 = content["bf16"]
        for kind in ("training", "answers"):
            speeds = ", ".join(f"{name} {spread(bf16[kind][name], 0)}" for name in ("float32", "bfloat16"))
            print(f"{kind}, images/s: {speeds}; bfloat16 is {spread(bf16[kind]['ratio'], 3)} times as fast")
        hardware = ", ".join(bf16["bf16_in_hardware"]) or "no bfloat16"
        print(
            f"logits: at most {bf16['max_deviation']} standard deviations apart, the same answer for "
            f"{100 * bf16['same_answer']:.1f} %; the processor has {hardware}"
        )
    for row in content.get("memory_order", ()):
        speeds = ", ".join(f"{name} {spread(row[name], 0)}" for name in ("channels_last", "contiguous"))
        ratio = spread(row["ratio"], 3)
        print(f"{row['network']}, batch {row['batch']}: images/s {speeds}; channels_last is {ratio} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=2560, help="in each turn, a multiple of 128")
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--bf16", action="store_true", help="compare bfloat16 with float32 as well")
    parser.add_argument("--memory-order", action="store_true", help="compare channels_last with contiguous as well")
    parser.add_argument("--record", type=Path, help="write everything to this JSON file")
    given = parser.parse_args()
    if given.rounds < 1 or given.images < BATCH or given.images % BATCH:
        parser.error(f"--rounds is at least 1, --images a multiple of {BATCH}; got {given.rounds} and {given.images}")
    threads = set_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as temporary:
        try:
            sample = write_training_images(Path(temporary), given.images)
        except DataUnavailable as error:
            parser.exit(1, f"{error}\n")  # it says how to get them
        contenders = take_turns(Path(temporary), images=given.images, rounds=given.rounds, threads=threads)
    content: dict[str, Any] = {
        **circumstances(sys.executable),
        "job": f"ResNet-18 (ImageNet stem), CIFAR-10 at {IMAGE_SIZE} px, crop and flip, batch {BATCH}",
        "images": given.images, "rounds": given.rounds, "threads": threads, "contenders": contenders,
        "openmp": {name: value for name, value in ENVIRONMENT.items() if name.startswith(("OMP_", "GOMP_", "KMP_"))},
    }  # fmt: skip
    images, labels = (torch.from_numpy(array[:BATCH]) for array in sample)
    inputs = images.permute(0, 3, 1, 2).float().sub(118).div(64)  # (128, 3, 32, 32), about standardised
    if given.bf16:
        content["bf16"] = compare_precision(inputs, labels, given.rounds)
    if given.memory_order:
        content["memory_order"] = compare_orders(inputs, labels, given.rounds)
    show(content)
    if given.record:
        given.record.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
