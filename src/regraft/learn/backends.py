"""Which way of running a frozen trunk pays, and whether its features may be trusted.

Every back end must give the features of plain eager PyTorch within a stated tolerance, or it is refused. One is
only prepared where it can save more time than preparing it takes, and little work is always done the same way.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from regraft.errors import StudyError, UnknownName, nearest
from regraft.learn.backend_table import PREPARE, Run, absent
from regraft.networks import Trunk

BACKENDS = ("auto", *PREPARE)

# Largest accepted difference from eager features, in standard deviations of the cut's features. Float32 rounded
# in another order gives 1e-6 to 1e-5 there. Where eager itself multiplies in TF32 (10 bits of mantissa), as
# cuDNN's convolutions do, it is no nearer to the exact features than the second figure.
TOLERANCE, TOLERANCE_TF32 = 1e-3, 1e-2

# Images in a batch on a CPU: as many as have this number of pixels, within limits; where back ends are timed, half
# as many are tried too. More images drive the activations out of the cache, fewer read the weights too often. On
# a GPU launches are the limit at small sizes.
CPU_BATCH_PIXELS, CPU_BATCH, GPU_BATCH = 2**18, (16, 64), 512

# Back ends are held against eager on as many images as have this number of pixels, but at least so many: each
# contributes all its features, and every pass over large images is a part of the work itself.
CHECK_PIXELS, CHECK_IMAGES = 2**18, 8

# Less work than this is done by "fused", untimed: probing costs some 2 s, more than a faster back end would save,
# and small jobs stay the same from run to run. Estimated from FLOPs at a rate that convolutions reach on one core
# in float32.
LITTLE_WORK_SECONDS = 10.0
FLOPS_PER_SECOND = 1e11

# Timing goes round by round over all that compete, so that other load meets all alike, and the best round counts,
# since load only ever slows. This many rounds, and this share of the work that is left, but never a larger one than
# the last; to leave "fused" a back end must be clearly faster.
ROUNDS, PROBE_SHARE, PROBE_MOST, CLEARLY = (4, 20), 0.01, 0.05, 1.05
HOPELESS = 1.2  # times the best one's seconds: not timed again


@dataclass(frozen=True)
class Candidate:
    """What is assumed of a back end before it is prepared."""

    gain: float  # plausible speed, as a multiple of the best so far
    setup_seconds: float  # import, export or compile, and the check


# Measured for ResNet-50 at 32 px on 2 cores, see docs/decisions/0010-back-ends.md. The quick one first: what
# it reaches raises the bar for the slow one.
CANDIDATES = {"onnxruntime": Candidate(1.2, 1.0), "inductor": Candidate(1.1, 45.0)}


@dataclass(frozen=True)
class Backend:
    """A frozen trunk ready to run: images (b, 3, s, s) float32 on its device -> {cut: (b, d) float32}."""

    name: str
    record: dict[str, Any]  # JSON values: what was tried, how fast, how near to eager, why others are left out
    run: Run = field(repr=False)
    batch_size: int  # images

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {name: values.float() for name, values in self.run(images).items()}


def choose_backend(
    trunk: Trunk, sample: Tensor, count: int, *, prefer: str = "auto", flops: float | None = None
) -> Backend:
    """The fastest way to run `trunk` over `count` more images that gives the features of eager PyTorch.

    trunk: frozen, images -> {cut: (b, d)}. sample: (b, 3, s, s) prepared images on the trunk's device.
    flops: of one image; where it is not known, eager's pass over the sample tells how much work there is.
    prefer: one of BACKENDS. A named one is used untimed; where it fails or deviates, eager runs, and the record
    says why.  Raises UnknownName, and StudyError for a back end that is not installed."""
    assert trunk.frozen
    check_backend(prefer, sample.device)
    trial = _Trial(trunk, sample)
    if prefer == "auto":
        trial.add("fused")
        if sample.device.type == "cpu" and trial.estimated_seconds(count, flops) > LITTLE_WORK_SECONDS:
            trial.compete(count)
    else:
        trial.add(prefer)
    return trial.best(prefer)


def check_backend(name: str, device: torch.device) -> None:
    """Raises UnknownName, and StudyError for a back end that cannot run here."""
    if name not in BACKENDS:
        raise UnknownName(f"no back end {name!r}{nearest(name, BACKENDS)} Known: {', '.join(BACKENDS)}.")
    if reason := absent(name, device):
        raise StudyError(f"back end {name!r} {reason}")


def deviation(features: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """max |features - reference| over images, features and cuts, in standard deviations of the cut's reference.

    Both {cut: (b, d)}; a standard deviation is over all (b, d) values. NaN if any value is."""
    worst = []
    for name, exact in reference.items():
        scale = exact.double().std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
        worst.append((features[name].double() - exact.double()).abs().max() / scale)
    return float(torch.stack(worst).max())  # torch's max hands NaN on


class _Trial:
    """Back ends prepared and accepted for one trunk, and why others were not."""

    def __init__(self, trunk: Trunk, sample: Tensor) -> None:
        pixels = sample.shape[2] * sample.shape[3]
        self.trunk, self.sample = trunk, sample[: max(CHECK_IMAGES, CHECK_PIXELS // pixels)]
        self.batch_sizes = _batch_sizes(sample)
        self.seconds: dict[tuple[str, int], float] = {}  # (back end, batch size) -> an image, best of the rounds
        self.check_seconds: dict[str, float] = {}  # back end -> an image of the sample, the first time
        self.runs: dict[str, Run] = {"eager": PREPARE["eager"](trunk, sample)}
        self.deviations: dict[str, float] = {}
        self.setup_seconds: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self.reference = self._checked("eager", self.runs["eager"])
        tf32 = sample.device.type == "cuda" and torch.backends.cudnn.allow_tf32
        self.tolerance = TOLERANCE_TF32 if tf32 else TOLERANCE

    def add(self, name: str) -> None:
        """Prepare `name`; accept it, or note why not."""
        if name in self.runs:
            return
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                run = PREPARE[name](self.trunk, self._batch(self.batch_sizes[0]))
            found = deviation(self._checked(name, run), self.reference)
        except Exception as error:  # exporters and compilers raise anything at all, and eager can always go on
            self.left_out[name] = f"failed: {type(error).__name__}: {error}".splitlines()[0][:300]
            return
        self.setup_seconds[name] = round(time.perf_counter() - start, 3)
        self.deviations[name] = found
        if found <= self.tolerance:  # not so for NaN
            self.runs[name] = run
        else:
            self.left_out[name] = f"refused: deviates from eager by {found:.2g}, tolerance {self.tolerance:g}"

    def estimated_seconds(self, count: int, flops: float | None) -> float:
        """Of the whole work. From FLOPs it is the same on every run, which the clock's answer is not."""
        if flops is None:
            return count * self.check_seconds["eager"]
        return count * flops / (FLOPS_PER_SECOND * torch.get_num_threads())

    def compete(self, count: int) -> None:
        """Time what is there; add and time each candidate that can still save more than its preparation costs."""
        self._race(count)
        for name, candidate in CANDIDATES.items():
            if reason := absent(name, self.sample.device):
                self.left_out[name] = reason
                continue
            seconds = count * min(self.seconds.values())
            if seconds * (1 - 1 / candidate.gain) <= candidate.setup_seconds:
                self.left_out[name] = f"{seconds:.1f} s of work do not pay {candidate.setup_seconds:g} s of set-up"
                continue
            self.add(name)
            if name in self.runs:
                self._race(count)

    def best(self, prefer: str) -> Backend:
        """The fastest of those timed; untimed, the one added last."""
        name, size = list(self.runs)[-1], self.batch_sizes[0]
        speeds = {}
        if self.seconds:
            bonus = {"fused": CLEARLY}
            name, size = min(self.seconds, key=lambda way: self.seconds[way] / bonus.get(way[0], 1))
            speeds = {n: round(1 / min(t for (m, _), t in self.seconds.items() if m == n), 1) for n in self.runs}
        used = ("torch", "onnxruntime") if "onnxruntime" in self.runs else ("torch",)
        record = {
            "backend": name,
            "preferred": prefer,
            "batch_size": size,
            "threads": torch.get_num_threads(),
            "versions": {package: importlib.metadata.version(package) for package in used},
            "deviation": self.deviations,
            "tolerance": self.tolerance,
            "setup_seconds": self.setup_seconds,
            "images_per_second": speeds,
            "left_out": self.left_out,
        }
        return Backend(name, record, self.runs[name], size)

    def _race(self, count: int) -> None:
        """Time every back end with every batch size, in turn, but for those that were far slower than others."""
        fewest, most = ROUNDS
        batches = {size: self._batch(size) for size in self.batch_sizes}
        for name, size in product(self.runs, batches):
            self.seconds.setdefault((name, size), self.check_seconds[name])
        hopeless = HOPELESS * min(self.seconds.values())
        ways = [way for way in product(self.runs, batches) if self.seconds[way] < hopeless]
        if len({name for name, _ in ways}) == 1 and len(batches) == 1:
            return  # nothing to choose between
        start = time.perf_counter()
        with torch.inference_mode():
            # One round more, since the first of a batch size takes memory and chooses kernels.
            for done in range(most + 1):
                left = count * min(self.seconds.values())
                spent = time.perf_counter() - start
                ahead = sum(size * self.seconds[name, size] for name, size in ways)
                if spent + ahead > PROBE_MOST * left or (done > fewest and spent > PROBE_SHARE * left):
                    break
                for name, size in ways:
                    began = time.perf_counter()
                    self.runs[name](batches[size])
                    took = (time.perf_counter() - began) / size
                    self.seconds[name, size] = min(took, self.seconds[name, size])

    def _checked(self, name: str, run: Run) -> dict[str, Tensor]:
        """The features of the sample, and how long they took."""
        began = time.perf_counter()
        with torch.inference_mode():
            found = run(self.sample)
        self.check_seconds[name] = (time.perf_counter() - began) / len(self.sample)
        return found

    def _batch(self, size: int) -> Tensor:
        """(size, 3, s, s): the sample, repeated or cut."""
        positions = torch.arange(size, device=self.sample.device) % len(self.sample)
        return self.sample[positions]


def _batch_sizes(sample: Tensor) -> tuple[int, ...]:
    """Worth trying; the first is used where nothing is timed."""
    if sample.device.type != "cpu":
        return (GPU_BATCH,)
    fewest, most = CPU_BATCH
    size = max(fewest, min(most, CPU_BATCH_PIXELS // (sample.shape[2] * sample.shape[3])))
    return (size, max(fewest, size // 2)) if size > fewest else (fewest,)
