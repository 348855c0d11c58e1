"""Which way of running a network in training pays: eager, compiled, or as CUDA graphs.

Decided once, before the first step, by a measured break-even: a way is only prepared where it can save more time than
preparing it takes, and the least time ahead wins. None of them changes what is learned beyond rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import StudyError, UnknownName, nearest
from regraft.learn.backend_table import absent
from regraft.learn.backends import Candidate
from regraft.learn.graphs import Forward, Graphs, kept, let_go, wait

Step = Callable[[Forward], None]

# Assumed on a GPU until measured here: gain over the best so far, and seconds for each batch size. Graphs
# first: cheap to prepare, they take away the launches; what they reach raises the bar for the compiler.
CANDIDATES = {"graphs": Candidate(3.0, 3.0), "compile": Candidate(1.5, 60.0)}

LEAST_STEPS = 200  # a shorter training is not timed: probing takes some 15 steps
WARM_UP, BLOCK, BLOCKS = 2, 4, 3  # steps not timed, steps timed in one go (launches may queue up), the best of so many


@dataclass(frozen=True)
class Measured:
    """What a way costs from here on."""

    setup_left: float  # seconds: preparing the batch sizes that were not met yet
    step_seconds: float

    def ahead(self, steps_left: int) -> float:
        """Seconds of all that is left."""
        return self.setup_left + steps_left * self.step_seconds


@dataclass(frozen=True)
class Mechanism:
    """A way to run a network in training mode."""

    name: str  # eager, compile or graphs
    forward: Forward = field(repr=False)  # inputs (n, ...) -> logits (n, classes), to be read before the next forward
    record: dict[str, Any]  # JSON values: what was tried, how fast, why others are left out, why this one


def choose(
    model: nn.Module,
    example: Tensor,
    *,
    steps_left: int,
    step: Step,
    device: torch.device,
    wish: str = "auto",
    batch_sizes: int = 1,
) -> Mechanism:
    """How to run `model`, in training mode, for `steps_left` steps on batches like `example`.

    example: (n, ...) prepared inputs on the device.
    step(forward): forward and backward on `example` as the loop does them, in its precision, without the optimiser.
    What a step leaves behind in gradients, buffers and the global random generators is taken back here; it must keep
    nothing of the autograd graph itself.
    batch_sizes: different ones that the training will meet; each is prepared by itself.
    wish: "auto", or one of "eager", "compile", "graphs", which is then used untimed; where it fails, eager runs, and
    the record says why.  On a CPU auto is eager: results there are the same bit for bit, whatever the clock says.
    Raises UnknownName, and StudyError for a way that cannot run here."""
    assert model.training
    check_wish(wish, device)
    trial = _Trial(model, len(example), step, device, batch_sizes)
    if wish != "auto":
        return trial.named(wish)
    if device.type != "cuda":
        return trial.mechanism("eager", "not timed: a choice by the clock would let results differ from run to run")
    if steps_left < LEAST_STEPS:
        return trial.mechanism("eager", f"not timed: {steps_left} steps, fewer than {LEAST_STEPS}")
    let_go()  # of an earlier training
    return trial.fastest(steps_left)


def check_wish(wish: str, device: torch.device) -> None:
    """Raises UnknownName, and StudyError for a way that cannot run here."""
    known = ("auto", "eager", *PREPARE)
    if wish not in known:
        raise UnknownName(f"no mechanism {wish!r}{nearest(wish, known)} Known: {', '.join(known)}.")
    if reason := _absent(wish, device):
        raise StudyError(f"mechanism {wish!r} {reason}")


def worth_trying(candidate: Candidate, best: Measured, steps_left: int, batch_sizes: int) -> bool:
    """Whether the gain assumed of a candidate would pay its preparation."""
    hoped = Measured(candidate.setup_seconds * batch_sizes, best.step_seconds / candidate.gain)
    return hoped.ahead(steps_left) < best.ahead(steps_left)


def least_ahead(measured: Mapping[str, Measured], steps_left: int) -> str:
    """The way with which the rest takes the least time; of equal ones, the first."""
    return min(measured, key=lambda name: measured[name].ahead(steps_left))


def step_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step, as it is among others: the best of a few blocks, in each of which launches may queue up."""

    def block(count: int) -> float:
        wait(device)
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait(device)
        return (time.perf_counter() - start) / count

    block(WARM_UP)  # memory is taken, kernels are chosen
    return min(block(BLOCK) for _ in range(BLOCKS))


def _absent(name: str, device: torch.device) -> str:
    """Why a way cannot run here, as the end of a sentence; empty if it can."""
    if name == "graphs" and device.type != "cuda":
        return f"needs a CUDA device, and training is on {device.type}; choose auto, eager or compile"
    if name == "compile" and absent("inductor", device):
        return "needs a C++ compiler, and none is found; install g++ or clang++, or choose auto or eager"
    return ""


def _compiled(model: nn.Module) -> Forward:
    """torch.compile; another batch size is compiled anew, and remembered."""
    compiled: Forward = torch.compile(model, dynamic=False)
    return compiled


# What eager is held against: that needs no preparation.
PREPARE: dict[str, Callable[[nn.Module], Forward]] = {"compile": _compiled, "graphs": Graphs}


class _Trial:
    """The ways prepared and timed for one training, and why others were not."""

    def __init__(self, model: nn.Module, batch: int, step: Step, device: torch.device, batch_sizes: int) -> None:
        self.model, self.batch, self.step, self.device = model, batch, step, device
        self.batch_sizes = batch_sizes
        self.forwards: dict[str, Forward] = {"eager": model}
        self.setup_seconds: dict[str, float] = {}
        self.measured: dict[str, Measured] = {}
        self.left_out: dict[str, str] = {}

    def named(self, name: str) -> Mechanism:
        """`name`, prepared and untimed; eager where that fails."""
        if name != "eager":
            self._prepare(name)
        chosen = name if name in self.forwards else "eager"
        return self.mechanism(chosen, "asked for" if chosen == name else f"{name} was asked for and failed")

    def fastest(self, steps_left: int) -> Mechanism:
        """Time eager, then each candidate that can still save more than its preparation costs."""
        if not self._time("eager", steps_left):
            return self.mechanism("eager", "a whole batch does not go through; not timed", steps_left)
        for name, candidate in CANDIDATES.items():
            best = self.measured[least_ahead(self.measured, steps_left)]
            if reason := _absent(name, self.device):
                self.left_out[name] = reason
            elif not worth_trying(candidate, best, steps_left, self.batch_sizes):
                ahead, setup = best.ahead(steps_left), candidate.setup_seconds * self.batch_sizes
                self.left_out[name] = f"{ahead:.1f} s of steps do not pay an assumed {setup:g} s of set-up"
            elif self._prepare(name):
                self._time(name, steps_left)
                self._release(least_ahead(self.measured, steps_left))
        chosen = least_ahead(self.measured, steps_left)
        return self.mechanism(chosen, "least time ahead" if len(self.measured) > 1 else "nothing else pays", steps_left)

    def mechanism(self, name: str, why: str, steps_left: int | None = None) -> Mechanism:
        record: dict[str, Any] = {
            "mechanism": name,
            "why": why,
            "batch_size": self.batch,
            "setup_seconds": self.setup_seconds,
            "seconds_per_step": {n: m.step_seconds for n, m in self.measured.items()},
            "left_out": self.left_out,
        }
        if steps_left is not None:
            record |= {"steps_left": steps_left, "batch_sizes": self.batch_sizes}
        return Mechanism(name, self.forwards[name], record)

    def _prepare(self, name: str) -> bool:
        """One step with `name`, which prepares it for this batch size; False, and a note, if that fails."""
        start = time.perf_counter()
        try:
            forward = PREPARE[name](self.model)
            with kept(self.model, self.device):
                self.step(forward)
                wait(self.device)
        except Exception as error:  # compilers and captures raise anything at all, and eager can always go on
            self.left_out[name] = f"failed: {type(error).__name__}: {error}".splitlines()[0][:300]
            return False
        self.forwards[name] = forward
        self.setup_seconds[name] = round(time.perf_counter() - start, 3)
        return True

    def _time(self, name: str, steps_left: int) -> bool:
        """Measure a step; False, and a note, if the memory is too small for it."""

        def run() -> None:
            self.model.zero_grad(set_to_none=True)
            self.step(self.forwards[name])

        try:
            with kept(self.model, self.device):
                best = step_seconds(run, self.device)
        except torch.OutOfMemoryError:
            self.left_out[name] = "failed: out of memory"
            return False
        left = (self.batch_sizes - 1) * self.setup_seconds.get(name, 0.0)
        self.measured[name] = Measured(left, best)
        return True

    def _release(self, best: str) -> None:
        """Let go of what lost, since graphs hold memory that the next way may need."""
        self.forwards = {name: forward for name, forward in self.forwards.items() if name in ("eager", best)}
        let_go()
