"""A step as executors and displays see it: an item of a stage, with a name and a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regraft.spec import Run


@dataclass(frozen=True, eq=False)
class Step:
    """One item of a stage. `runs` are those that cannot go on without it."""

    stage: str
    label: str
    item: Any
    runs: tuple[Run, ...]
    flops: float
    fits: int = 1  # trainings that a step of stage "fit" finishes

    @property
    def id(self) -> str:
        return f"{self.stage}:{self.label}"
