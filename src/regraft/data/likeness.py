"""From which correlation on two pictures are taken for the same, and what is known of the errors of that."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST = 100  # training images; with fewer the data says nothing of chance
UNCALIBRATED = 0.97
BLUNT = 0.97  # a picture that was compressed, or moved by half a pixel, correlates less
CHANCE = 1e-4  # pairs taken for the same picture by chance, for each image that is searched for


@dataclass(frozen=True)
class Threshold:
    """From which correlation on two pictures are taken for the same, and what is known of its errors."""

    correlation: float
    by_chance: float | None  # pairs expected by chance for each image searched for; None: not calibrated
    images: int  # training images that it was calibrated on
    other_class: int  # of these, how many have a picture of another class that close

    @property
    def blunt(self) -> bool:
        """Whether different pictures are so alike that hardly more than copies can be told from them."""
        return self.by_chance is not None and self.correlation > BLUNT

    @property
    def text(self) -> str:
        """For people: what the threshold is, and what it rests on."""
        if self.by_chance is None:
            return f"{self.correlation:.3f}, not calibrated (fewer than {FEWEST} training images)"
        return (
            f"{self.correlation:.3f}: by chance {10_000 * self.by_chance:.2g} for 10,000 images; of "
            f"{self.images:,} training images {self.other_class} have one of another class that close"
        )
