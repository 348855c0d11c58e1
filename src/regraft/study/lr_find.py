"""The learning-rate range test for a row of a study: on the images that it trains on, and no others."""

from __future__ import annotations

from collections.abc import Callable

from regraft.errors import StudyError, UnknownName, nearest
from regraft.learn.lr_find import LearningRates, lr_find
from regraft.spec import Run, Study
from regraft.spec.models import UNTRAINED
from regraft.spec.recipe import SOLVED
from regraft.study.bench import Bench, Setting
from regraft.study.check import check
from regraft.study.keys import Keys, NotTrained, cacheable
from regraft.study.models import grafted, image_batches
from regraft.study.plan import plan
from regraft.study.presets import size_unknown
from regraft.study.stages import obtain_data
from regraft.study.store import Store, default_store


def find_learning_rate(
    study: Study,
    row: str,
    store: Store | None = None,
    *,
    recipe: str | None = None,
    steps: int = 100,
    device: str = "auto",
    offline: bool = False,
    advance: Callable[[float, str], None] = lambda done, message: None,
) -> tuple[Run, LearningRates]:
    """The run that was tried, and what the rates are worth in it.

    Source, cut, head and target are the row's; of its seeds the first is taken, of its recipes the first or the one
    named. Validation and test images are not looked at. Nothing is written to the store.

    Raises UnknownName, StudyError for rows without a rate to find, NotTrained while the row's source is not trained."""
    runs = plan(study)
    store = store or default_store()
    check(runs, Keys(runs, store, offline=True))
    run = _chosen(runs, row, recipe)
    _check_finds(run)
    bench = Bench(Setting(store.location, tuple(runs), device, None, offline))
    obtain_data(run, bench, advance, True)
    try:
        model = grafted(run, bench)
    except NotTrained as error:
        raise NotTrained(
            f"row {row!r} starts from a row of the study that has no network yet ({error}); train it first, with "
            "`regraft run`",
            error.row,
        ) from None
    parts, _ = bench.training(run)
    train = image_batches(run, parts, bench, run.recipe.augmentation)
    found = lr_find(model, train, run.recipe, seed=run.seed, device=bench.device, steps=steps, advance=advance)
    return run, found


def _chosen(runs: list[Run], row: str, recipe: str | None) -> Run:
    rows = dict.fromkeys(run.row for run in runs)
    if row not in rows:
        raise UnknownName(f"no row {row!r}{nearest(row, rows)} Rows: {', '.join(list(rows)[:20])}.")
    own = {run.recipe_name: run for run in reversed(runs) if run.row == row}  # reversed: of the first seed
    if recipe is not None and recipe not in own:
        raise UnknownName(
            f"row {row!r} has no recipe {recipe!r}{nearest(recipe, own)} Its recipes: {', '.join(reversed(own))}."
        )
    return own[recipe if recipe is not None else next(reversed(own))]


def _check_finds(run: Run) -> None:
    """Whether there is a learning rate to find."""
    if run.recipe.preset is not None:
        raise size_unknown(run)
    where = f"row {run.row!r}"
    if run.head.kind in UNTRAINED:
        raise StudyError(f"{where}: a {run.head.kind} head is not trained; there is no learning rate to find")
    if run.recipe.optimizer in SOLVED:
        raise StudyError(
            f"{where}: {run.recipe.optimizer} computes the optimum itself; there is no learning rate to find. "
            "What can be tuned is the penalty: `weight_decay: [0.01, 0.1, 1]`, chosen on validation"
        )
    if cacheable(run):
        raise StudyError(
            f"{where}: its head is trained on cached features, where rates are better compared to the end: "
            "`lr: [0.01, 0.1, 1]` trains one head for each, together, and the best on validation is scored"
        )
