"""Law 5: subsets are nested, balanced, and disjoint from validation images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from regraft.data import draw_subset, split_budget
from regraft.errors import StudyError, TooFewImages
from regraft.seeding import stream

UNEQUAL = (1, 2, 3, 7, 20, 53)  # images per class
SHARES = (0.0, 0.05, 0.1, 0.25, 1 / 3, 0.5)


def labels_of(*counts: int) -> NDArray[np.int64]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return stream(0, "order").permutation(labels)


def counts_in(labels: NDArray[np.int64], indices: NDArray[np.int64]) -> list[int]:
    return [int(n) for n in np.bincount(labels[indices], minlength=int(labels.max()) + 1)]


def test_subsets_are_nested_over_budgets_per_class() -> None:
    labels = labels_of(30, 40, 50)
    drawn = [set(draw_subset(labels, per_class=k, rng=stream(3, "subset"))) for k in (1, 2, 5, 17, 30)]
    assert all(small < large for small, large in itertools.pairwise(drawn))


def test_subsets_are_nested_over_fractions() -> None:
    labels = labels_of(*UNEQUAL)
    drawn = [set(draw_subset(labels, fraction=f, rng=stream(3, "subset"))) for f in (0.01, 0.2, 0.5, 0.9, 1.0)]
    assert all(small <= large for small, large in itertools.pairwise(drawn))
    assert drawn[-1] == set(range(len(labels)))


def test_subsets_are_balanced() -> None:
    labels = labels_of(30, 40, 50)
    assert counts_in(labels, draw_subset(labels, per_class=7, rng=stream(0, "subset"))) == [7, 7, 7]
    assert counts_in(labels, draw_subset(labels, fraction=0.1, rng=stream(0, "subset"))) == [3, 4, 5]


def test_every_class_keeps_at_least_one_image_of_a_small_fraction() -> None:
    labels = labels_of(*UNEQUAL)
    assert min(counts_in(labels, draw_subset(labels, fraction=0.001, rng=stream(0, "subset")))) == 1


def test_a_subset_is_sorted_and_has_no_image_twice() -> None:
    labels = labels_of(30, 40, 50)
    drawn = draw_subset(labels, per_class=20, rng=stream(0, "subset"))
    assert np.all(np.diff(drawn) > 0)


def test_too_many_images_per_class_are_refused_with_the_counts() -> None:
    with pytest.raises(TooFewImages, match=r"11 images per class.*cat has 10.*At most 10 per class"):
        draw_subset(labels_of(10, 20), per_class=11, rng=stream(0, "subset"), classes=("cat", "dog"))
    with pytest.raises(TooFewImages, match="dog has 0"):
        split_budget(labels_of(10), per_class=1, validation=0.1, seed=0, classes=("cat", "dog"))
    with pytest.raises(TooFewImages, match="class 0 has 0"):
        split_budget(np.empty(0, np.int64), validation=0.1, seed=0)
    assert list(map(len, split_budget(labels_of(10), validation=0.1, seed=0))) == [9, 1]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", [0, 1])
def test_training_and_validation_images_are_nested_and_disjoint_over_all_budgets(share: float, seed: int) -> None:
    labels = labels_of(60, 61, 75)
    parts = [split_budget(labels, per_class=k, validation=share, seed=seed) for k in range(1, 61)]
    trains, validations = [set(t) for t, _ in parts], [set(v) for _, v in parts]
    assert all(small <= large for small, large in itertools.pairwise(trains))
    assert all(small <= large for small, large in itertools.pairwise(validations))
    assert not trains[-1] & validations[-1]  # nested, so this is every pair of budgets


@pytest.mark.parametrize("share", SHARES)
def test_fractions_and_counts_share_their_pools(share: float) -> None:
    """A source trained on a fraction never saw the validation images of a target with images per class."""
    labels = labels_of(60, 61, 75)
    trained = {i for f in (0.1, 0.5, 1.0) for i in split_budget(labels, fraction=f, validation=share, seed=1)[0]}
    held_out = {i for k in (2, 10, 60) for i in split_budget(labels, per_class=k, validation=share, seed=1)[1]}
    assert not trained & held_out


@pytest.mark.parametrize("share", SHARES)
def test_the_budget_is_all_labels_that_are_used(share: float) -> None:
    labels = labels_of(60, 61, 75)
    for k in (1, 2, 3, 10, 59, 60):
        train, validation = split_budget(labels, per_class=k, validation=share, seed=0)
        assert counts_in(labels, np.concatenate([train, validation])) == [k, k, k]
        held_out = 0 if share == 0 or k == 1 else max(1, round(share * k))
        assert counts_in(labels, validation) == [held_out] * 3


@pytest.mark.parametrize("share", SHARES)
def test_the_whole_of_every_class_is_usable(share: float) -> None:
    for count in range(1, 60):
        train, validation = split_budget(labels_of(count, count + 3), validation=share, seed=0)
        assert sorted([*train, *validation]) == list(range(2 * count + 3))


def test_a_single_image_goes_to_training() -> None:
    train, validation = split_budget(labels_of(1, 1), validation=0.5, seed=0)
    assert (len(train), len(validation)) == (2, 0)


def test_seeds_draw_different_images_and_one_seed_the_same() -> None:
    labels = labels_of(100, 100)
    draws = [split_budget(labels, per_class=20, validation=0.2, seed=seed) for seed in (0, 1, 0)]
    for part in (0, 1):
        assert not np.array_equal(draws[0][part], draws[1][part])
        assert np.array_equal(draws[0][part], draws[2][part])


def test_indices_come_sorted() -> None:
    train, validation = split_budget(labels_of(40, 60), per_class=30, validation=0.3, seed=0)
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(validation) > 0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"per_class": 2, "fraction": 0.5}, "not both"),
        ({"per_class": 0}, "at least 1"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": 1.5}, "at most 1"),
    ],
)
def test_an_impossible_budget_is_refused(arguments: dict[str, float], match: str) -> None:
    with pytest.raises(StudyError, match=match):
        split_budget(labels_of(5, 5), validation=0.1, seed=0, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [-0.1, 0.51, float("nan")])
def test_an_impossible_validation_share_is_refused(share: float) -> None:
    with pytest.raises(StudyError, match="validation"):
        split_budget(labels_of(5, 5), validation=share, seed=0)
