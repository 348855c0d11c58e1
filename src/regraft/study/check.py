"""Refuse, before anything starts, what would fail after an hour."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.data import DatasetInfo
from regraft.errors import StudyError, TooFewImages, UnknownName, WeightsError, nearest
from regraft.networks import check_within, resolve_cut
from regraft.spec import Run
from regraft.study.keys import Keys
from regraft.study.plan import source_cell

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
            _check_images(run, keys.info(run.target.data))
            _check_cut(run, keys)
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


def _check_images(run: Run, info: DatasetInfo) -> None:
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
    if target.test_images is not None and info.test_images and target.test_images > info.test_images:
        raise TooFewImages(
            f"{where}.test_images: {target.test_images:,} asked for, {target.data} has {info.test_images:,}"
        )


def _check_cut(run: Run, keys: Keys) -> None:
    network, stem = keys.network(run)
    size = image_size(run, keys)
    resolve_cut(network, run.cut, size, stem=stem)
    cell = source_cell(run, keys.by_cell)
    if cell is not None:
        parent = keys.by_cell[cell][0]
        check_within(network, stem, size, run.cut, source_cut=parent.cut, source_head=parent.head)
