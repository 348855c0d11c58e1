"""How far a study is: the one state that every display draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from regraft.study.events import (
    Event,
    Note,
    PlanReady,
    StepAdvanced,
    StepDone,
    StepFailed,
    StepStarted,
    StudyDone,
)

ETA_AFTER_SECONDS = 2.0  # before that a speed is mostly start-up


@dataclass
class RunningStep:
    """A step under way."""

    stage: str
    label: str
    cost: float
    fits: int = 1
    done: float = 0.0  # fraction
    message: str = ""


class Tracker:
    """Counts runs (fits) and cost from events; nothing here draws.

    The estimate of the remaining time divides the remaining cost by the cost per second measured so far,
    parts of running steps included, so it corrects itself as steps advance and holds for parallel executors.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.study = ""
        self.runs = self.cached = self.finished = 0  # fits; finished: since the plan was ready
        self.cost = self.finished_cost = 0.0
        self.start = clock()
        self.end: StudyDone | None = None
        self.running: dict[str, RunningStep] = {}

    def update(self, event: Event) -> None:
        """Take in one event. A StepDone without a StepStarted was in the store: the plan has counted it."""
        match event:
            case PlanReady():
                self.study, self.runs, self.cached = event.study, event.runs, event.cached
                # What was fetched before is in none of the plan's numbers.
                self.cost, self.finished, self.finished_cost = event.cost, 0, 0.0
                self.start = self.clock()
            case StepStarted():
                self.running[event.id] = RunningStep(event.stage, event.label, event.cost, event.fits)
            case StepAdvanced() if event.id in self.running:
                step = self.running[event.id]
                step.done = min(1.0, max(step.done, event.done))
                step.message = event.message or step.message
            case StepDone() | StepFailed() if event.id in self.running:
                step = self.running.pop(event.id)
                self.finished_cost += step.cost
                self.finished += step.fits if step.stage == "fit" else 0
            case StudyDone():
                self.end = event
                self.running.clear()
            case StepAdvanced() | StepDone() | StepFailed() | Note():
                pass

    @property
    def elapsed_seconds(self) -> float:
        return self.end.seconds if self.end else self.clock() - self.start

    @property
    def runs_done(self) -> int:
        return min(self.runs, self.cached + self.finished)

    @property
    def fraction(self) -> float:
        """Share of the cost of what the plan had left to do; of its runs if they have no cost."""
        if self.end:
            return 1.0
        if self.cost > 0:
            running = sum(step.cost * step.done for step in self.running.values())
            return min(1.0, (self.finished_cost + running) / self.cost)
        work = self.runs - self.cached
        return min(1.0, self.finished / work) if work > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Remaining seconds; None while there is too little to go by."""
        if self.fraction <= 0 or self.elapsed_seconds < ETA_AFTER_SECONDS:
            return None
        return self.elapsed_seconds * (1 - self.fraction) / self.fraction
