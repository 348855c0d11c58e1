"""Study, Source, Target, Method, Head, Recipe, Run: frozen and validated."""

from regraft.spec.models import Episodes, Grid, Head, Preprocessing, Row, Source, Target
from regraft.spec.recipe import AS_IS, Augment, Recipe
from regraft.spec.run import Run
from regraft.spec.study import Study, presets
from regraft.spec.tuning import Method, Tuning

__all__ = [
    "AS_IS", "Augment", "Episodes", "Grid", "Head", "Method", "Preprocessing", "Recipe", "Row", "Run", "Source",
    "Study", "Target", "Tuning", "presets",
]  # fmt: skip
