"""What the engine says while it works. Displays (regraft.show.progress) turn these into bars or lines.

The engine calls one function, `report(event)`; it never prints. Cost is in units of the engine's choice
(FLOPs): only ratios matter, as the weight of a step in the estimate of the remaining time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PlanReady:
    """How much there is to do. Data and weights may have been fetched, as steps, before it is known."""

    study: str
    runs: int  # trainings of the study (steps of stage "fit"), cached ones included
    cached: int  # of them, already in the store
    cost: float  # of all steps to come, of every stage


@dataclass(frozen=True)
class StepStarted:
    """A step that is not in the store has begun."""

    id: str
    stage: str  # "weights", "features", "fit", "score"
    label: str
    cost: float
    fits: int = 1  # trainings that a step of stage "fit" finishes


@dataclass(frozen=True)
class StepAdvanced:
    """A running step has come to `done` of its work."""

    id: str
    done: float  # fraction in [0, 1]
    message: str = ""  # e.g. "epoch 3/10, loss 1.21, validation 56.2 %"


@dataclass(frozen=True)
class StepDone:
    """A step has its result. One that was in the store may come without a StepStarted."""

    id: str
    cached: bool
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class StepFailed:
    """A step has no result; the study goes on without what depends on it."""

    id: str
    stage: str
    label: str
    reason: str


@dataclass(frozen=True)
class Note:
    """Something the user should read, e.g. "out of memory: batch halved to 64"."""

    text: str


@dataclass(frozen=True)
class StudyDone:
    """The last event of a study."""

    seconds: float
    scored: int  # cells with a score
    missing: int  # cells without one


Event = PlanReady | StepStarted | StepAdvanced | StepDone | StepFailed | Note | StudyDone
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """The report function of a caller who wants no progress."""
