"""Where the steps of a study run: in this process, or in several. (Ray has `ray_executor`.)

All take the same items in the same order, put off what another process is already at, and give one outcome an
item; a step that fails, whatever the reason, does not stop the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_sentinels
from multiprocessing.synchronize import Event, Lock
from typing import Any, Protocol

from regraft.errors import RegraftError, RunError
from regraft.learn.hardware import physical_cores
from regraft.study.bench import Bench, Setting
from regraft.study.events import Report, StepAdvanced, StepDone, StepFailed, StepStarted
from regraft.study.locks import Busy
from regraft.study.steps import Step

ADVANCE_SECONDS = 0.2  # between two reports of one step
WORKER_DIED = "its worker process died twice (out of memory, or killed); give it more memory, or use fewer workers"
NO_WORKERS = (
    "worker processes die before they have begun, for the reason shown above, or for want of memory. A script that "
    'uses Processes must do so below `if __name__ == "__main__":`, since each worker reads the script again.'
)

# A stage computes one item, stores it, and returns a message: stage(item, bench, advance, wait).
# `wait` false: raise Busy if another process is at it.
Stage = Callable[[Any, Bench, Callable[[float, str], None], bool], str]

Found = dict[Step, RegraftError | Busy | None]  # by identity; None: done


@dataclass(frozen=True)
class Outcome:
    """One step, done or failed."""

    item: Step
    error: RegraftError | None


RunAll = Callable[[Stage, Sequence[Step]], list[Outcome]]


class Executor(Protocol):
    """Where steps run. No result depends on it."""

    def threads(self) -> int | None:
        """For each worker, unless the user says how many; None: all physical cores."""

    def started(self, bench: Bench, report: Report) -> contextlib.AbstractContextManager[RunAll]:
        """Within it, `run_all(stage, steps)` gives the outcome of each step."""


class Serial:
    """One step after another, in this process."""

    workers = 1

    def threads(self) -> int | None:
        """For each worker; None: all physical cores."""
        return None

    @contextlib.contextmanager
    def started(self, bench: Bench, report: Report) -> Iterator[RunAll]:
        def attempt_all(stage: Stage, steps: Iterable[Step], wait_for_others: bool) -> Found:
            return {step: attempt(stage, step, bench, report, wait_for_others) for step in steps}

        yield lambda stage, steps: busy_ones_last(attempt_all, stage, steps)


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
    def started(self, bench: Bench, report: Report) -> Iterator[RunAll]:
        workers = _Workers(self.workers, bench.setting, report)
        try:
            yield lambda stage, steps: busy_ones_last(workers.attempt_all, stage, steps)
        except KeyboardInterrupt:
            workers.terminate()
            raise
        finally:
            workers.close()


def busy_ones_last(attempt_all: Callable[..., Found], stage: Stage, steps: Sequence[Step]) -> list[Outcome]:
    """Each step once; those that another process is at are put off to the end, and then waited for."""
    found = attempt_all(stage, steps, False)
    found |= attempt_all(stage, [step for step in steps if isinstance(found[step], Busy)], True)
    outcomes = []
    for step in steps:
        error = found[step]
        assert not isinstance(error, Busy), "a stage that waits is never put off"
        outcomes.append(Outcome(step, error))
    return outcomes


def attempt(
    stage: Stage, step: Step, bench: Bench, report: Report, wait_for_others: bool
) -> RegraftError | Busy | None:
    """Run one step, here. What goes wrong in it is its result: a study outlives each of its steps."""
    began = time.perf_counter()
    report(StepStarted(step.id, step.stage, step.label, step.flops, step.fits))
    try:
        message = stage(step.item, bench, _advance(step, report), wait_for_others)
    except Busy as busy:
        return busy.with_traceback(None)
    except Exception as error:  # the process boundary: out of memory, a batch that torch refuses, a bug of ours
        if os.environ.get("REGRAFT_DEBUG") and not isinstance(error, RegraftError):
            raise
        failure = _failure(error)
        report(StepFailed(step.id, step.stage, step.label, str(failure)))
        return failure
    report(StepDone(step.id, False, time.perf_counter() - began, message))
    return None


def _failure(error: Exception) -> RegraftError:
    if isinstance(error, RegraftError):
        return error.with_traceback(None)  # its frames would keep the step's tensors in memory
    text = " ".join(str(error).split())
    return RunError(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _advance(step: Step, report: Report) -> Callable[[float, str], None]:
    last = 0.0

    def advance(done: float, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if message or now - last > ADVANCE_SECONDS:
            last = now
            report(StepAdvanced(step.id, done, message))

    return advance


# --- several processes ------------------------------------------------------------------------------------------


class _Workers:
    """A pool of processes that is replaced when one of them dies."""

    def __init__(self, count: int, setting: Setting, report: Report) -> None:
        self.count, self.setting, self.report = count, setting, report
        self._start()

    def attempt_all(self, stage: Stage, steps: Iterable[Step], wait_for_others: bool) -> Found:
        """The result of each step. Of the steps at work when a worker died, it is not known which one killed it:
        each is tried once more, with nothing beside it; the one that kills its worker again has failed."""
        found: Found = {}
        waiting = deque(steps)
        while waiting:
            suspects = self._work_off(stage, waiting, wait_for_others, self.count, found)
            for step in suspects:
                if self._work_off(stage, deque([step]), wait_for_others, 1, found):
                    self.report(StepFailed(step.id, step.stage, step.label, WORKER_DIED))
                    found[step] = RunError(WORKER_DIED)
        return found

    def _work_off(
        self, stage: Stage, waiting: deque[Step], wait_for_others: bool, at_once: int, found: Found
    ) -> list[Step]:
        """Take steps from `waiting` until none is left or a worker dies; returns the steps at work then."""
        lost: list[Step] = []
        working: dict[Future[RegraftError | Busy | None], Step] = {}
        while working or (waiting and not lost):
            while waiting and not lost and len(working) < at_once:
                step = waiting.popleft()
                try:
                    working[self._pool.submit(_in_worker, stage, step, wait_for_others)] = step
                except BrokenProcessPool:
                    lost.append(step)
            finished, _ = wait(working, return_when=FIRST_COMPLETED)
            if self._display_errors:
                raise self._display_errors[0]
            for future in finished:
                step = working.pop(future)
                try:
                    found[step] = future.result()
                except BrokenProcessPool:
                    lost.append(step)
        if lost:
            if not self._begun.is_set():
                raise RunError(NO_WORKERS)
            self.close()
            self._start()
        return lost

    def terminate(self) -> None:
        """At once; what is finished is in the store."""
        for process in list((self._pool._processes or {}).values()):
            process.terminate()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._writer.close()  # the last end that is open: the listener comes to the end of the events
        self._listener.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # fork and threads (torch's) do not go together
        # A pipe, not a Queue: what a step has reported is on its way before its result is. A new one for each
        # pool, since a worker that is killed while it writes leaves half an event and the lock taken.
        reader, self._writer = context.Pipe(duplex=False)
        self._begun = context.Event()  # set by the first worker that is ready
        self._display_errors: list[Exception] = []
        self._listener = threading.Thread(
            target=_forward, args=(reader, self.report, self._display_errors), daemon=True
        )
        self._listener.start()
        self._pool = ProcessPoolExecutor(
            self.count,
            mp_context=context,
            initializer=_start_worker,
            initargs=(self.setting, self._writer, context.Lock(), self._begun),
        )


def _forward(reader: Connection, report: Report, errors: list[Exception]) -> None:
    """Report the workers' events. After an error of the display they are still read, or the workers would stall."""
    while True:
        try:
            event = reader.recv()
        except (EOFError, OSError):  # the end, or half an event of a worker that was killed
            reader.close()
            return
        try:
            if not errors:
                report(event)
        except Exception as error:  # raised where the steps are waited for
            errors.append(error)


_BENCH: Bench
_REPORT: Report


def _start_worker(setting: Setting, writer: Connection, lock: Lock, begun: Event) -> None:
    global _BENCH, _REPORT
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()

    def report(event: Any) -> None:
        with lock:
            writer.send(event)

    _BENCH, _REPORT = Bench(setting), report
    begun.set()


def end_with_parent() -> None:
    """A parent that is killed cannot stop its workers: they would train on, and hold their locks."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_sentinels([parent.sentinel])
    os._exit(1)


def _in_worker(stage: Stage, step: Step, wait_for_others: bool) -> RegraftError | Busy | None:
    return attempt(stage, step, _BENCH, _REPORT, wait_for_others)
