"""Nested, class-balanced parts of a training split, and the validation images carved out of a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from regraft.errors import StudyError, TooFewImages
from regraft.seeding import stream


def draw_subset(
    labels: NDArray[np.int64],
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    rng: np.random.Generator,
    classes: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Sorted indices of a class-balanced part; from the same rng state a smaller part lies in a larger one.

    labels: (n,).  per_class: images of each class.  fraction: share of each class, at least one image.
    Neither: all images.  classes: names for the error message.
    Raises TooFewImages, with the counts, when a class has fewer than asked for.
    """
    sizes = _class_budgets(labels, per_class, fraction, classes)
    chosen = [rng.permutation(members)[:size] for _, members, size in sizes]
    return _sorted(chosen)


def split_budget(
    labels: NDArray[np.int64],
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    validation: float,
    seed: int,
    classes: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of the training and the validation images of a budget of labelled images.

    labels: (n,).  per_class, fraction: the budget, as in `draw_subset`.  validation: share of it, 0 to 0.5.

    The budget is ALL labels that are used, validation included: a result "with 50 labels per class" that
    chose its recipe on thousands of further labels is not one (Oliver et al. 2018, arXiv:1804.09170).

    Each class is permuted once per seed. The last round(validation * count) positions are the class's
    validation pool and the others its training pool; a budget takes the first images of each pool. So, for
    one seed, a larger budget's training images contain a smaller one's, the same holds for validation images,
    and no training image of any budget is a validation image of any other: a source network trained on one
    budget never saw the images on which its heir is selected. A class with one image in the budget gives it
    to training, any other class gives at least one to validation unless `validation` is 0.

    Raises TooFewImages, with the counts, when a class has fewer than asked for.
    """
    if not 0 <= validation <= 0.5:
        raise StudyError(f"validation: a share of the budget from 0 to 0.5, got {validation}")
    train, held_out = [], []
    for label, members, size in _class_budgets(labels, per_class, fraction, classes):
        order = stream(seed, "subset", label).permutation(members)
        pool = len(order) - _validation_count(len(order), validation)
        n_validation = _validation_count(size, validation)
        # No rounding case overflows a pool: with a share <= 0.5 one more image in the budget
        # adds one image to either part.
        assert size - n_validation <= pool
        assert n_validation <= len(order) - pool
        train.append(order[: size - n_validation])
        held_out.append(order[pool : pool + n_validation])
    return _sorted(train), _sorted(held_out)


def _validation_count(images: int, share: float) -> int:
    return 0 if images == 1 or share == 0 else max(1, round(share * images))


def _class_budgets(
    labels: NDArray[np.int64], per_class: int | None, fraction: float | None, classes: Sequence[str] | None
) -> Iterator[tuple[int, NDArray[np.int64], int]]:
    """(label, indices of its images, images in the budget) for each class."""
    if per_class is not None and fraction is not None:
        raise StudyError("give `per_class` or `fraction`, not both (neither means all images)")
    if per_class is not None and per_class < 1:
        raise StudyError(f"per_class: at least 1 image, got {per_class}")
    if fraction is not None and not 0 < fraction <= 1:
        raise StudyError(f"fraction: above 0 and at most 1, got {fraction}")
    # Without any label there is a class that is short of images.
    counts = np.bincount(labels, minlength=len(classes) if classes else 1)
    _check_counts(counts, per_class or 1, classes)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    for label, members in enumerate(by_class):
        share = 1.0 if fraction is None else fraction
        yield label, members, per_class or max(1, round(share * len(members)))


def _check_counts(counts: NDArray[np.int64], needed: int, classes: Sequence[str] | None) -> None:
    short = np.flatnonzero(counts < needed)
    if len(short) == 0:
        return
    named = [f"{classes[label] if classes else f'class {label}'} has {counts[label]}" for label in short[:10]]
    more = f" and {len(short) - 10} more classes" if len(short) > 10 else ""
    raise TooFewImages(
        f"{needed} images per class asked for, but {', '.join(named)}{more}. "
        f"At most {counts.min()} per class are possible; or give a `fraction` of each class."
    )


def _sorted(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
