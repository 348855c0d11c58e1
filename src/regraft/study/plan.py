"""From a study to its runs. No image is read, nothing is imported that is heavy; presets count the images of sets."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.errors import StudyError
from regraft.spec import Recipe, Row, Run, Study
from regraft.spec.models import NO_RECIPE

Cell = tuple[str, int]  # (row name, seed)


def plan(study: Study) -> list[Run]:
    """Every training of the study: row x seed x recipe, a source run before the runs that cut it.

    Recipes are made out: none has a `preset`, but where the number of images is not known yet; `check` refuses those.
    Raises StudyError for fields beside a preset that do not go with its own."""
    rows = {row.name: row for row in study.all_rows()}
    runs = [
        Run.model_construct(  # of parts that the study has checked; to check them again takes four times as long
            row=row.name,
            source_name=row.source,
            source=study.sources[row.source],
            cut=row.cut,
            method=row.method,
            tuning=row.tuning,
            head=row.head,
            target_name=row.target,
            target=study.targets[row.target],
            recipe_name=recipe,
            recipe=study.recipe(recipe) if row.recipe else _without_training(study, row),
            seed=seed,
        )
        for row in rows.values()
        for seed in row.seeds or study.seeds
        for recipe in row.recipe or (NO_RECIPE,)
    ]
    _check_source_seeds(study, rows)
    if any(run.recipe.preset is not None for run in runs):
        from regraft.study.presets import with_presets

        runs = with_presets(runs)
    return [run for wave in waves(runs) for run in wave]


def _without_training(study: Study, row: Row) -> Recipe:
    """Of a head that is read off its training images. Nothing is chosen for it on validation images, so in the end it
    is read off those too, like the heads that it is compared with after a refit."""
    return Recipe(optimizer="none", refit=study.targets[row.target].holds_out)


def waves(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by depth: those of one wave need only runs of earlier waves, and can go side by side."""
    by_row = {run.row: run for run in runs}
    depths: dict[str, int] = {}

    def depth(row: str) -> int:
        if row not in depths:
            parent = by_row[row].source.run
            depths[row] = 0 if parent is None else depth(parent) + 1
        return depths[row]

    found: dict[int, list[Run]] = {}
    for run in runs:
        found.setdefault(depth(run.row), []).append(run)
    return [found[d] for d in sorted(found)]


def cells(runs: Sequence[Run]) -> dict[Cell, list[Run]]:
    """The runs of each cell: the same but for the recipe."""
    found: dict[Cell, list[Run]] = {}
    for run in runs:
        found.setdefault(run.cell, []).append(run)
    return found


def _check_source_seeds(study: Study, rows: dict[str, Row]) -> None:
    for row in rows.values():
        parent = study.sources[row.source].run
        if parent is None:
            continue
        have, want = set(rows[parent].seeds or study.seeds), set(row.seeds or study.seeds)
        if len(have) > 1 and not want <= have:
            raise StudyError(
                f"row {row.name!r}: seeds {sorted(want - have)} have no source: row {parent!r} runs with seeds "
                f"{sorted(have)}. Give both rows the same seeds, or the source row a single one."
            )
        if study.targets[rows[parent].target].episodes is not None:
            raise StudyError(
                f"row {row.name!r}: its source {parent!r} answers few-shot episodes and trains no network; "
                "name a row with a budget of images"
            )
        chooses = len(row.recipe) > 1 or any(study.recipe(name).keep == "best" for name in row.recipe)
        if chooses and want - have and _share_images(study, row, rows[parent]):
            raise StudyError(
                f"row {row.name!r}: its source {parent!r} was trained with seed {sorted(have)[0]} on images of the "
                f"same data set, among them validation images of seeds {sorted(want - have)}, by which a recipe "
                "or epoch is to be chosen here. Give both rows the same seeds, or this row one recipe, `keep: last`."
            )
        refits = any(study.recipe(name).refit for name in rows[parent].recipe)
        if chooses and refits and _share_images(study, row, rows[parent]):
            raise StudyError(
                f"row {row.name!r}: its source {parent!r} is refitted with its validation images, by which a recipe or "
                "epoch is to be chosen here. Leave `refit` out of the source's recipe, or give this row one recipe, "
                "`keep: last`."
            )


def _share_images(study: Study, row: Row, parent: Row) -> bool:
    a, b = study.targets[row.target], study.targets[parent.target]
    return a.data == b.data and (a.classes is None or b.classes is None or bool(set(a.classes) & set(b.classes)))
