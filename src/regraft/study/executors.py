"""Where the steps of a study run: in this process, or in several. (Ray comes with a later release.)

Both take the same items in the same order, put off what another process is already at, and give one outcome an
item; a step that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from regraft.errors import RegraftError, RunError
from regraft.learn.hardware import physical_cores
from regraft.study.bench import Bench, Setting
from regraft.study.events import Report, StepAdvanced, StepDone, StepFailed, StepStarted
from regraft.study.locks import Busy
from regraft.study.steps import Step

ADVANCE_SECONDS = 0.2  # between two reports of one step

# A stage computes one item, stores it, and returns a message: stage(item, bench, advance, wait).
# `wait` false: raise Busy if another process is at it.
Stage = Callable[[Any, Bench, Callable[[float, str], None], bool], str]


@dataclass(frozen=True)
class Outcome:
    """One step, done or failed."""

    item: Step
    error: RegraftError | None


class Serial:
    """One step after another, in this process."""

    workers = 1

    def threads(self) -> int | None:
        """For each worker; None: all physical cores."""
        return None

    @contextlib.contextmanager
    def started(self, setting: Setting, report: Report) -> Iterator[Callable[..., list[Outcome]]]:
        bench = Bench(setting)

        def run_all(stage: Stage, items: Sequence[Step]) -> list[Outcome]:
            done: dict[int, Outcome] = {}
            busy = []
            for i, item in enumerate(items):
                try:
                    done[i] = _attempt(stage, item, bench, report, False)
                except Busy:
                    busy.append(i)
            for i in busy:
                done[i] = _attempt(stage, items[i], bench, report, True)
            return [done[i] for i in range(len(items))]

        yield run_all


SERIAL = Serial()


class Processes:
    """Several worker processes, each with its share of the machine's threads."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers

    def threads(self) -> int | None:
        return max(1, physical_cores() // self.workers)

    @contextlib.contextmanager
    def started(self, setting: Setting, report: Report) -> Iterator[Callable[..., list[Outcome]]]:
        context = multiprocessing.get_context("spawn")  # fork and threads (torch's) do not go together
        events: Any = context.Queue()
        stop = threading.Event()
        listener = threading.Thread(target=_forward, args=(events, report, stop), daemon=True)
        listener.start()
        pool = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_start_worker, initargs=(setting, events)
        )

        def run_all(stage: Stage, items: Sequence[Step]) -> list[Outcome]:
            outcomes: list[Outcome] = []
            busy: list[Step] = []
            futures = [pool.submit(_in_worker, stage, item, False) for item in items]
            try:
                wait(futures)
                for item, future in zip(items, futures, strict=True):
                    outcome = _result(item, future)
                    if outcome is None:
                        busy.append(item)
                    else:
                        outcomes.append(outcome)
                late = [pool.submit(_in_worker, stage, item, True) for item in busy]
                wait(late)
            except KeyboardInterrupt:
                for process in list((pool._processes or {}).values()):
                    process.terminate()  # what is finished is in the store
                raise
            outcomes += [o for i, f in zip(busy, late, strict=True) if (o := _result(i, f))]
            return outcomes

        try:
            yield run_all
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            stop.set()
            listener.join(timeout=5)


def _attempt(stage: Stage, step: Step, bench: Bench, report: Report, wait_for_others: bool) -> Outcome:
    began = time.perf_counter()
    report(StepStarted(step.id, step.stage, step.label, step.flops))
    try:
        message = stage(step.item, bench, _advance(step, report), wait_for_others)
    except RegraftError as error:
        report(StepFailed(step.id, step.stage, step.label, str(error)))
        return Outcome(step, error)
    report(StepDone(step.id, False, time.perf_counter() - began, message))
    return Outcome(step, None)


def _advance(step: Step, report: Report) -> Callable[[float, str], None]:
    last = 0.0

    def advance(done: float, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if message or now - last > ADVANCE_SECONDS:
            last = now
            report(StepAdvanced(step.id, done, message))

    return advance


def _result(item: Step, future: Future[Outcome | None]) -> Outcome | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome(item, RunError("its worker process died (out of memory, or killed); run again to go on"))


_BENCH: Bench
_EVENTS: Any


def _start_worker(setting: Setting, events: Any) -> None:
    global _BENCH, _EVENTS
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _BENCH, _EVENTS = Bench(setting), events


def _in_worker(stage: Stage, item: Step, wait_for_others: bool) -> Outcome | None:
    """None: busy elsewhere."""
    try:
        return _attempt(stage, item, _BENCH, _EVENTS.put, wait_for_others)
    except Busy:
        return None


def _forward(events: Any, report: Report, stop: threading.Event) -> None:
    while not (stop.is_set() and events.empty()):
        with contextlib.suppress(queue.Empty):
            report(events.get(timeout=0.2))
