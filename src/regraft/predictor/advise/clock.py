"""The time that a person gave, and what is left of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from regraft.errors import RegraftError

# Shares of the budget. By the first, configurations are measured; by the second, fine-tuning has ended; what is left is
# for the score, the curve, the predictor and the page.
MEASURE, TUNE = 0.5, 0.85
SECONDS_A_PICTURE = 0.3  # default budget: a pass of two small networks, heads and scores on two cores (not recorded)
FEWEST_MINUTES, MOST_MINUTES = 2.0, 60.0
SECONDS_A_COMPARISON = 0.015  # of one picture with all others, on two cores, with some room (not recorded)
COMPARE = 0.1  # share of the budget for that


class OutOfTime(RegraftError):
    """A step was stopped, because its share of the time is used up. What was finished is kept."""


@dataclass
class Clock:
    """Seconds since it was made, against a budget."""

    minutes: float
    tell: Callable[[str, float], None] = field(default=lambda what, share: None)  # what is done, share of the time
    began: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> float:
        """In seconds."""
        return time.perf_counter() - self.began

    def left(self, share: float = 1.0) -> float:
        """Seconds until `share` of the budget is used up; negative after that."""
        return share * 60 * self.minutes - self.spent

    def says(self, what: str) -> None:
        """Tell a display what is being done."""
        self.tell(what, min(1.0, self.spent / (60 * self.minutes)))

    def stops(self, share: float, what: str) -> Callable[[float, str], None]:
        """An `advance` of a step that ends it, by OutOfTime, once `share` of the budget is used up."""

        def advance(done: float, message: str) -> None:
            if self.left(share) < 0:
                raise OutOfTime(f"{what}: its time is used up")
            self.says(f"{what}, {100 * done:.0f} %")

        return advance


def usual_minutes(pictures: int) -> float:
    """The budget if none was given, by the number of pictures."""
    return min(MOST_MINUTES, max(FEWEST_MINUTES, float(round(pictures * SECONDS_A_PICTURE / 60))))


def comparable(minutes: float | None, most: int) -> int:
    """Pictures that near duplicates can be looked for among; the usual budget allows `most`."""
    return most if minutes is None else min(most, int(COMPARE * 60 * minutes / SECONDS_A_COMPARISON))
