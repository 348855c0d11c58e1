"""What regraft's training reaches on a CUDA device: `python benchmarks/gpu.py [--record FILE] [--minutes M]`.

ceiling     bf16 products of large squares: the most arithmetic that this device was seen to do
throughput  images/s of whole training steps (crop and flip of uint8 images, forward, backward, SGD; bf16,
            channels-last) of ResNet-18 and -50 with both stems at 32 px: eager, as CUDA graphs, and what `choose` picks
accuracy    seconds to 94, 95 and 96 % with ResNet-18 on CIFAR-10
compile     the same steps compiled, at the larger batch
seeds       three seeds of ResNet-18 (ImageNet stem, batch 128) stepped together against one after the other

In the order of their worth; what the time box does not leave room for is named in the table, not guessed.

How accuracy is measured. The published figures are test accuracies after training on all 50,000 images, so that is what
is reported. Each target has a recipe of fixed length, written down here before any run. Each run trains on all images
with nothing watched meanwhile, and its last weights are scored on the test images, once. No epoch, seed or length is
chosen by that score: every run is listed, hits and misses. Whoever changes a recipe uses --held-out: it trains on
45,000 images and scores the other 5,000, never the test images. The clock runs from the data on the host to the trained
weights, choice of a mechanism included; starting Python, reading the data and scoring are outside.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.data import load_dataset, split_budget
from regraft.data.augment import channel_statistics
from regraft.errors import DataUnavailable
from regraft.learn.batches import ImageBatches
from regraft.learn.fit import fit
from regraft.learn.graphs import Forward, let_go, wait
from regraft.learn.mechanisms import choose
from regraft.learn.optimizers import make_optimizer
from regraft.learn.precision import mixed_precision
from regraft.learn.predict import predict
from regraft.learn.seeds import measured, pays
from regraft.networks import build
from regraft.seeding import stream, torch_stream
from regraft.spec import Augment, Preprocessing, Recipe

SECTIONS = ("ceiling", "throughput", "accuracy", "compile", "seeds")
CROP_FLIP = Augment("crop-flip")
SGD = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, label_smoothing=0.1, augment="crop-flip")
_COURSE = SGD.model_copy(update={"batch_size": 512, "lr": 0.4, "schedule": "one-cycle", "test_flip": True})
# Targets in % of the test images. Not tuned on a GPU yet.
RECIPES = {
    94: _COURSE.model_copy(update={"epochs": 15}),
    95: _COURSE.model_copy(update={"epochs": 25}),
    96: _COURSE.model_copy(update={"epochs": 60, "cutout": 0.25}),
}
AHEAD_EPOCHS = 60  # of 50,000 images, that `choose` is told are still to come


@dataclass(frozen=True)
class Job:
    network: str
    stem: str
    batch: int
    target: int | None = None  # images/s

    @property
    def name(self) -> str:
        return f"{self.network}, {self.stem} stem, batch {self.batch}"


TARGETS = {("resnet18", "cifar"): 60_000, ("resnet50", "cifar"): 18_000}
JOBS = [
    Job(network, stem, batch, TARGETS.get((network, stem)))
    for stem in ("cifar", "imagenet")
    for network in ("resnet18", "resnet50")
    for batch in (512, 1024)
]


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    images: int = 50_000
    squares: tuple[int, ...] = (4096, 8192, 16384)
    round_seconds: float = 0.7
    rounds: int = 3
    data: str = "cifar10"
    seeds: int = 3


SMOKE = Scale(images=32, squares=(128,), round_seconds=0.0, rounds=1, data="digits", seeds=1)


class TimeBox:
    """What is left of the minutes given."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def room_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds <= self.end


def images_per_second(images: int, seconds: Iterable[float]) -> float:
    """Median over rounds of `images` each."""
    return images / statistics.median(seconds)


def share_of_ceiling(rate: float, flops_per_image: float, ceiling: float) -> float:
    """rate: images/s; ceiling: FLOP/s.  Of the arithmetic that the device can do, what training puts to use."""
    return rate * flops_per_image / ceiling


def matrix_flops(side: int) -> int:
    """Of a product of two squares: a multiplication and an addition for each of side^3 terms."""
    return 2 * side**3


@cache
def training_flops(network: str, stem: str) -> float:
    """Of one image at 32 px: three times the forward pass, as gradients of inputs and of weights cost one each."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build(network, classes=10, stem=stem, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    return 3.0 * float(counter.get_total_flops())


class Bench:
    """The measurements on one device."""

    def __init__(self, device: torch.device, scale: Scale, box: TimeBox) -> None:
        self.device, self.scale, self.box = device, scale, box
        self.peak: float | None = None  # FLOP/s
        rng = stream(0, "benchmark images")
        images = rng.integers(0, 256, (scale.images, 32, 32, 3), dtype=np.uint8)
        preprocessing = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        labels = rng.integers(0, 10, scale.images)
        self.data = ImageBatches(images, labels, preprocessing, augmentation=CROP_FLIP, device=device)

    def timed(self, work: Callable[[], object], *, warm_up: int = 5) -> tuple[int, list[float]]:
        """How often `work` was done in a round, and the seconds of each round, launches queued up as in a training."""
        for _ in range(warm_up if self.scale.round_seconds else 1):
            work()
        wait(self.device)
        start = time.perf_counter()
        work()
        wait(self.device)
        count = max(1, round(self.scale.round_seconds / (time.perf_counter() - start)))
        seconds = []
        for _ in range(self.scale.rounds):
            start = time.perf_counter()
            for _ in range(count):
                work()
            wait(self.device)
            seconds.append(time.perf_counter() - start)
        return count, seconds

    def ceiling(self) -> dict[str, Any]:
        """FLOP/s of the best size of squares, in bf16 on a GPU."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        rates = {}
        for side in self.scale.squares:
            drawn = torch.Generator(self.device).manual_seed(side)
            a, b = (torch.randn(side, side, generator=drawn, device=self.device, dtype=dtype) for _ in "ab")
            count, seconds = self.timed(partial(torch.mm, a, b))
            rates[side] = images_per_second(count, seconds) * matrix_flops(side)
        self.peak = max(rates.values())
        print(f"matrix ceiling: {self.peak / 1e12:.3g} TFLOP/s ({dtype})", flush=True)
        return {"dtype": str(dtype), "tflops": {side: round(rate / 1e12, 2) for side, rate in rates.items()}}

    def throughput(self, job: Job, wish: str) -> dict[str, Any]:
        """Whole steps of one network run in one way."""
        if self.device.type == "cuda":
            let_go()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = build(job.network, classes=10, stem=job.stem, seed=0).to(self.device).train()
        model.to(memory_format=torch.channels_last)
        training = _Training(model, self.data, job.batch, self.device)
        ahead = AHEAD_EPOCHS * self.scale.images // job.batch
        chosen = choose(
            model, training.inputs(), steps_left=ahead, step=training.gradient, device=self.device, wish=wish
        )
        count, seconds = self.timed(partial(training.step, chosen.forward))
        rate = images_per_second(count * job.batch, seconds)
        row: dict[str, Any] = {
            "job": job.name, "way": wish, "mechanism": chosen.name, "images_per_second": round(rate, 1),
            "rounds": [round(count * job.batch / s, 1) for s in seconds], "choice": chosen.record,
        }  # fmt: skip
        if job.target is not None:
            row["target"] = job.target
        if self.device.type == "cuda":
            row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if self.peak is not None:
            share = share_of_ceiling(rate, training_flops(job.network, job.stem), self.peak)
            row["share_of_ceiling"] = round(share, 4)
        _show(row)
        return row

    def seeds(self, job: Job, count: int = 3) -> dict[str, Any]:
        """Whole steps of `count` seeds, stacked and one by one, all eager."""
        models = [build(job.network, classes=10, stem=job.stem, seed=i) for i in range(count)]
        recipe = SGD.model_copy(update={"batch_size": job.batch})
        seconds = measured(models, [self.data] * count, recipe, device=self.device)
        if seconds is None:
            raise torch.OutOfMemoryError("the seeds do not fit into memory together")
        single, joint = seconds
        row = {
            "job": job.name, "seeds": count, "single_seconds": single, "joint_seconds": joint,
            "gain": round(count * single / joint, 3), "pays": pays(single, joint, count),
        }  # fmt: skip
        print(f"{job.name}: {count} seeds together {row['gain']:.2f} x as fast as one by one", flush=True)
        return row

    def accuracy(self, target: int, recipe: Recipe, seed: int, *, held_out: bool) -> dict[str, Any]:
        """One training of fixed length, and what its last weights score."""
        data = load_dataset(self.scale.data)
        images, labels = data.train.images[: self.scale.images], data.train.labels[: self.scale.images]
        mean, std = channel_statistics(images)
        preprocessing = Preprocessing(image_size=images.shape[1], mean=mean, std=std)
        kept = np.arange(len(labels))
        judged = kept[:0]
        if held_out:
            kept, judged = split_budget(labels, per_class=None, validation=0.1, seed=seed, classes=data.classes)
        wait(self.device)
        start = time.perf_counter()
        train = ImageBatches(
            images[kept], labels[kept], preprocessing, augmentation=recipe.augmentation, device=self.device
        )
        model = build("resnet18", classes=len(data.classes), stem="cifar", seed=seed)
        found = fit(model, train, None, recipe, seed=seed, device=self.device)
        wait(self.device)
        seconds = time.perf_counter() - start
        asked = images[judged] if held_out else data.test.images
        answers = labels[judged] if held_out else np.zeros(len(asked), np.int64)  # those of the test stay closed
        questions = ImageBatches(asked, answers, preprocessing, device=self.device)
        logits = predict(model, questions, flip=recipe.test_flip).numpy()
        if held_out:
            accuracy = float((logits.argmax(1) == answers).mean())
        else:
            accuracy = data.test.score(logits, run=f"{target} {seed}").accuracy
        row = {
            "target": target / 100, "seed": seed, "epochs": recipe.epochs, "seconds": round(seconds, 2),
            "accuracy": accuracy, "scored_on": "held out" if held_out else "test",
            "reached": accuracy >= target / 100,
            "images_per_second": round(len(train) * recipe.epochs / seconds, 1), "notes": found.notes,
        }  # fmt: skip
        print(
            f"{target} %: {row['scored_on']} {100 * accuracy:.2f} % in {seconds:.1f} s ({recipe.epochs} epochs)",
            flush=True,
        )
        return row


class _Training:
    """Whole training steps by the parts that regraft's own loop is made of."""

    def __init__(self, model: nn.Module, data: ImageBatches, batch: int, device: torch.device) -> None:
        self.model, self.data, self.device = model, data, device
        self.optimizer = make_optimizer(model, SGD, device)
        self.generator = torch_stream(0, "augment")
        order = torch.from_numpy(stream(0, "order").permutation(len(data))).to(device)
        self.batches = order[: len(order) // batch * batch].tensor_split(len(order) // batch)
        self.labels = data.labels[self.batches[0]]
        self.example = self.inputs()
        self.next = 0

    def inputs(self, place: int = 0) -> Tensor:
        """(batch, 3, 32, 32), augmented and prepared."""
        return self.data.take(self.batches[place], self.generator)

    def gradient(self, forward: Forward) -> None:
        self._backward(forward, self.example, self.labels)

    def step(self, forward: Forward) -> None:
        self.next = (self.next + 1) % len(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        self._backward(forward, self.inputs(self.next), self.data.labels[self.batches[self.next]])
        self.optimizer.step()

    def _backward(self, forward: Forward, inputs: Tensor, labels: Tensor) -> None:
        with mixed_precision(self.device):
            loss = cross_entropy(forward(inputs), labels, label_smoothing=SGD.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]


def _show(row: dict[str, Any]) -> None:
    text = f"{row['job']:<36} {row['way']:<8} {row['images_per_second']:>9,.0f} images/s"
    if row["way"] != row["mechanism"]:
        text += f" (ran {row['mechanism']}: {row['choice']['why']})"
    if "target" in row:
        text += f", {row['images_per_second'] / row['target']:.2f} of the target"
    if "peak_gib" in row:
        text += f", peak {row['peak_gib']:.1f} GiB"
    if "share_of_ceiling" in row:
        text += f", {100 * row['share_of_ceiling']:.0f} % of the ceiling"
    print(text, flush=True)


def measure(bench: Bench, sections: list[str], jobs: list[Job], *, held_out: bool) -> dict[str, Any]:
    """All sections in order of worth; those for which there is no time are listed under left_out."""
    on_gpu = bench.device.type == "cuda"
    found: dict[str, Any] = {section: [] for section in sections}
    left_out: list[str] = []

    def attempt(section: str, name: str, seconds: float, work: Callable[[], dict[str, Any]]) -> None:
        if section not in sections:
            return
        if not bench.box.room_for(seconds if on_gpu else 0):
            left_out.append(f"{section}: {name}: no room in the time box")
            return
        try:
            found[section].append(work())
        except (torch.OutOfMemoryError, DataUnavailable) as error:
            left_out.append(f"{section}: {name}: {str(error).splitlines()[0]}")

    attempt("ceiling", "products", 5, bench.ceiling)
    for job in jobs:
        for way in ("eager", "graphs", "auto") if on_gpu else ("eager", "auto"):
            attempt("throughput", f"{job.name} {way}", 10, partial(bench.throughput, job, way))
    recipes = RECIPES if on_gpu else {94: SGD.model_copy(update={"epochs": 1})}
    for seed in range(bench.scale.seeds):
        for target, recipe in recipes.items():
            work = partial(bench.accuracy, target, recipe, seed, held_out=held_out)
            attempt("accuracy", f"{target} %, seed {seed}", 1.2 * recipe.epochs, work)
    for job in jobs:
        if job.batch == max(j.batch for j in jobs) and on_gpu:
            attempt("compile", job.name, 70, partial(bench.throughput, job, "compile"))
    for job in jobs:
        if (job.network, job.stem) == ("resnet18", "imagenet") and job.batch == min(j.batch for j in jobs):
            small = replace(job, batch=min(128, job.batch))  # where launches are the limit
            attempt("seeds", small.name, 15, partial(bench.seeds, small))
    for line in left_out:
        print(f"left out: {line}")
    return {**found, "left_out": left_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="write the result here as JSON")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing that would end later")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections")
    parser.add_argument("--held-out", action="store_true", help="score 5,000 training images in place of the test")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a few seconds of it, to see that it runs; on any device")
    given = parser.parse_args()
    if not given.smoke and (given.device != "cuda" or not torch.cuda.is_available()):
        print("This measures a CUDA device, and none is here or asked for. To see that it runs: --device cpu --smoke")
        sys.exit(2)
    device = torch.device(given.device)
    jobs = [Job("resnet18", stem, 4) for stem in ("cifar", "imagenet")] if given.smoke else JOBS
    bench = Bench(device, SMOKE if given.smoke else Scale(), TimeBox(given.minutes))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    found = measure(bench, given.only, jobs, held_out=given.held_out)
    if given.record:
        from running import command_line

        record = {
            "command": command_line(), "date": date.today().isoformat(), "device": name, "smoke": given.smoke,
            "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
            | {package: version(package) for package in ("regraft", "torch", "torchvision")},
            "jobs": [asdict(job) for job in jobs],
            "recipes": {str(target): recipe.model_dump() for target, recipe in RECIPES.items()},
            **found,
        }  # fmt: skip
        given.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
