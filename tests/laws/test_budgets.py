"""Which images a budget takes is part of every result: drawn as written down here, and never otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from regraft.data import draw_subset, split_budget
from regraft.errors import StudyError, TooFewImages
from regraft.seeding import stream


def many_labels() -> NDArray[np.int64]:
    return stream(5, "labels").permutation(np.repeat(np.arange(7), 400))


@pytest.mark.parametrize(("per_class", "share"), [(40, 0.25), (400, 0.1), (3, 0.5), (400, 0.0)])
def test_a_budget_is_the_first_images_of_each_pool_of_each_class_in_the_seeds_own_order(
    per_class: int, share: float
) -> None:
    labels = many_labels()
    train, validation = [], []
    held = round(share * 400)
    for label in range(7):
        order = stream(9, "subset", label).permutation(np.flatnonzero(labels == label))
        pool, of_validation = order[: 400 - held], order[400 - held :]
        kept = round(share * per_class)
        train += pool[: per_class - kept].tolist()
        validation += of_validation[:kept].tolist()
    got = split_budget(labels, per_class=per_class, validation=share, seed=9)
    assert got[0].tolist() == sorted(train)
    assert got[1].tolist() == sorted(validation)


def test_a_part_is_the_first_images_of_each_class_in_the_generators_order() -> None:
    labels, rng = many_labels(), stream(3, "x")
    expected = [rng.permutation(np.flatnonzero(labels == label))[:11] for label in range(7)]
    got = draw_subset(labels, per_class=11, rng=stream(3, "x"))
    assert got.tolist() == sorted(np.concatenate(expected).tolist())


def test_no_limit_takes_everything_and_no_images_give_none() -> None:
    labels = np.array([1, 0, 1])
    assert draw_subset(labels, rng=stream(0, "x")).tolist() == [0, 1, 2]
    assert split_budget(labels, fraction=1.0, validation=0.5, seed=0)[0].tolist() in ([0, 1], [1, 2])


def test_the_largest_budget_of_a_class_is_all_of_it() -> None:
    labels = np.array([0, 0, 1, 1])
    assert draw_subset(labels, per_class=2, rng=stream(0, "x")).tolist() == [0, 1, 2, 3]
    with pytest.raises(
        TooFewImages, match=r"3 images per class asked for, but class 0 has 2, class 1 has 2\. At most 2"
    ):
        draw_subset(labels, per_class=3, rng=stream(0, "x"))


def test_a_class_of_which_there_is_no_image_is_named() -> None:
    with pytest.raises(TooFewImages, match=r"1 images per class asked for, but bee has 0\. At most 0 per class"):
        draw_subset(np.array([0, 2]), rng=stream(0, "x"), classes=("ant", "bee", "cow"))


@pytest.mark.parametrize(
    ("classes", "told"),
    [(10, r"class 9 has 1\. At"), (11, r"class 9 has 1 and 1 more classes\. At"), (13, " and 3 more")],
)
def test_ten_short_classes_are_named_and_the_others_counted(classes: int, told: str) -> None:
    with pytest.raises(TooFewImages, match=told) as raised:
        draw_subset(np.arange(classes), per_class=2, rng=stream(0, "x"))
    assert str(raised.value).count(" has 1") == 10


def test_one_image_per_class_and_the_whole_fraction_are_budgets() -> None:
    labels = many_labels()
    assert len(draw_subset(labels, per_class=1, rng=stream(0, "x"))) == 7
    assert len(draw_subset(labels, fraction=1.0, rng=stream(0, "x"))) == len(labels)
    assert len(split_budget(labels, per_class=4, validation=0.5, seed=0)[1]) == 14
    for fraction in (0.0, 1.0001):
        with pytest.raises(StudyError, match="fraction: above 0 and at most 1"):
            draw_subset(labels, fraction=fraction, rng=stream(0, "x"))
