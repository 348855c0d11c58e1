"""Refuse, before anything starts, what would fail after an hour."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.data import DatasetInfo
from regraft.errors import DataError, StudyError, TooFewImages, UnknownName, WeightsError, nearest
from regraft.networks import check_within, resolve_cut
from regraft.spec import Run, Target
from regraft.study.keys import Keys

FALLBACK_SIZE = 224  # to name a network's cuts while its weights, which know their size, are not here


def check(runs: Sequence[Run], keys: Keys) -> None:
    """Raises StudyError for unknown networks, cuts and classes, images too small or too few, and recipes that
    do not fit their method. Data and weights may still be absent: only what is known of them is used."""
    seen: set[tuple[str, str]] = set()
    for run in runs:
        if (run.row, run.recipe_name) in seen:  # seeds do not matter here
            continue
        seen.add((run.row, run.recipe_name))
        try:
            _check_recipe(run)
            _check_images(run, keys.info(run.target.data), choices=len(keys.by_cell[run.cell]))
            _check_cut(run, keys)
        except DataError:
            continue  # a folder that is away: its rows will be missing, the others are run
        except StudyError as error:
            raise type(error)(f"row {run.row!r}: {error}") from None


def image_size(run: Run, keys: Keys) -> int:
    """Side of the network's input; a stand-in while the weights that would tell are not here."""
    try:
        return keys.preprocessing(run).image_size
    except WeightsError:
        return keys.root(run).source.image_size or FALLBACK_SIZE


def _check_recipe(run: Run) -> None:
    if run.recipe.optimizer != "lbfgs":
        return
    if run.method != "frozen" or run.head.kind != "linear" or run.recipe.augment != "none":
        raise StudyError(
            f"recipes.{run.recipe_name}.optimizer: lbfgs solves a linear head on a frozen trunk without "
            f"augmentation; this row is {run.method}, head {run.head.kind}, augment {run.recipe.augment}. "
            "Use sgd or adamw."
        )


def _check_images(run: Run, info: DatasetInfo, *, choices: int) -> None:
    target, where = run.target, f"targets.{run.target_name}"
    if not info.classes:
        return  # not here yet; checked when it is
    counts = dict(zip(info.classes, info.train_counts, strict=True))
    for name in target.classes or ():
        if name not in counts:
            some = ", ".join(info.classes[:12])
            raise UnknownName(
                f"{where}.classes: {target.data} has no class {name!r}{nearest(name, counts)} "
                f"Classes: {some}{', ...' if len(counts) > 12 else ''}."
            )
    used = target.classes or info.classes
    if target.per_class is not None:
        scarce = min(used, key=lambda name: counts[name])
        if counts[scarce] < target.per_class:
            raise TooFewImages(
                f"{where}.per_class: {target.per_class} asked for, but class {scarce!r} of {target.data} has "
                f"{counts[scarce]:,} training images; ask for at most that, or leave the class out with `classes`"
            )
        if target.per_class == 1 and target.validation > 0:
            raise TooFewImages(
                f"{where}: of 1 image per class none can be kept for validation; set validation: 0, or take more"
            )
    chooses = choices > 1 or run.recipe.keep == "best"
    if chooses and target.per_class is None and _labels_of_largest(target, [counts[name] for name in used]) < 2:
        raise TooFewImages(
            f"{where}: one image per class leaves none for validation, by which {choices} recipe(s) or the best epoch "
            "are to be chosen. Take a larger fraction, or one recipe with `keep: last`."
        )
    if target.test_images is not None and info.test_images and target.test_images > info.test_images:
        raise TooFewImages(
            f"{where}.test_images: {target.test_images:,} asked for, {target.data} has {info.test_images:,}"
        )


def _labels_of_largest(target: Target, counts: Sequence[int]) -> int:
    """Labelled images of the class that has most in the budget."""
    share = 1.0 if target.fraction is None else target.fraction
    return max(max(1, round(share * count)) for count in counts)


def _check_cut(run: Run, keys: Keys) -> None:
    network, stem = keys.network(run)
    size = image_size(run, keys)
    resolve_cut(network, run.cut, size, stem=stem)
    cell = keys.source_cell(run)
    if cell is not None:
        parent = keys.by_cell[cell][0]
        check_within(network, stem, size, run.cut, source_cut=parent.cut, source_head=parent.head)
