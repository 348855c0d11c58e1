"""One cell of a study, with everything resolved that determines its result."""

from __future__ import annotations

from regraft.spec.base import Model
from regraft.spec.models import Head, Seed, Source, Target
from regraft.spec.recipe import Recipe
from regraft.spec.tuning import USUAL, Method, Norms, Tuning, norms_of, told


class Run(Model):
    """Source, cut, method, head, target, recipe and seed of one training.

    `source.run` names a row; the run of that row with the same seed (or its only seed) is the source, so that
    arms which share a seed also share their source network.
    """

    row: str
    source_name: str
    source: Source
    cut: str | None
    method: Method
    tuning: Tuning = USUAL
    head: Head
    target_name: str
    target: Target
    recipe_name: str
    recipe: Recipe
    seed: Seed
    refit: bool = False  # the chosen run once more, on training and validation images together

    def __hash__(self) -> int:
        """Of what tells runs of one plan apart: runs name entries of many tables, and a hash of every field is slow."""
        return hash((self.row, self.seed, self.recipe_name, self.refit))

    @property
    def how(self) -> str:
        """The method with its details, for tables."""
        return told(self.method, self.tuning)

    @property
    def norms(self) -> Norms:
        """What becomes of the trunk's BatchNorms."""
        return norms_of(self.method, self.tuning)

    @property
    def still(self) -> bool:
        """Whether nothing of the trunk changes in training."""
        return self.method == "frozen" and self.norms == "source"

    @property
    def cell(self) -> tuple[str, int]:
        """Runs of one cell differ only in their recipe; the best on validation stands for the cell."""
        return (self.row, self.seed)

    @property
    def label(self) -> str:
        return f"{self.row} [seed {self.seed}, {self.recipe_name}{', refit' * self.refit}]"
