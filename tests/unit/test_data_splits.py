"""A test split's labels never leave; classes and parts keep images and labels together."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regraft.data import Dataset, Split, TestSplit
from regraft.data.episodes import Heads
from regraft.errors import Diverged, StudyError, TestLabelsClosed, TooFewImages, UnknownName

CLASSES = ("ant", "bee", "cow")
LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 0, 1, 2], np.int64)


def marked_images(n: int) -> NDArray[Any]:
    """(n, 2, 2, 1) images that carry their position."""
    return np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1).repeat(2, 1).repeat(2, 2)


def a_test_split() -> TestSplit:
    return TestSplit(marked_images(10), LABELS, CLASSES)


def a_dataset() -> Dataset:
    train = Split(marked_images(12), np.arange(12) % 3, CLASSES)
    return Dataset("small", train, a_test_split(), None, digest="d", image_size=2)


def perfect_logits(labels: NDArray[Any] = LABELS, classes: int = 3) -> NDArray[Any]:
    logits: NDArray[Any] = np.eye(classes)[labels]
    return logits


def test_no_public_name_of_a_test_split_leads_to_its_labels() -> None:
    test = a_test_split()
    for name in dir(test):
        if name.startswith("_"):
            continue
        value = getattr(test, name)
        assert not (isinstance(value, np.ndarray) and np.array_equal(value, LABELS)), name
    assert not hasattr(test, "labels")
    assert not hasattr(test, "__dict__")
    assert repr(test) == "<TestSplit: 10 images, 3 classes, 0 scores taken>"


@pytest.mark.parametrize("leave", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_test_split_is_neither_copied_nor_pickled(leave: object) -> None:
    with pytest.raises(TestLabelsClosed, match="not copied or pickled"):
        leave(a_test_split())  # type: ignore[operator]


def test_a_score_counts_what_is_right() -> None:
    logits = perfect_logits()
    logits[0] = [0, 5, 0]  # a cow taken for a bee
    score = a_test_split().score(logits, run="a")
    assert score.accuracy == 0.9
    assert score.n == 10
    assert score.correct.tolist() == [False] + [True] * 9
    assert score.confusion.tolist() == [[3, 0, 0], [0, 3, 0], [0, 1, 3]]


def test_a_run_is_scored_once() -> None:
    test = a_test_split()
    test.score(perfect_logits(), run="a")
    test.score(perfect_logits(), run="b")
    with pytest.raises(TestLabelsClosed, match="run 'a' was scored"):
        test.score(perfect_logits(), run="a")
    assert test.scored == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused_before_a_label_is_read(bad: float) -> None:
    test = a_test_split()
    logits = perfect_logits()
    logits[3, 1] = bad
    with pytest.raises(Diverged, match="1 of 10 test images"):
        test.score(logits, run="a")
    assert test.scored == 0


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(Diverged, match=r"\(10, 4\).*\(10, 3\)"):
        a_test_split().score(np.zeros((10, 4)), run="a")


def test_a_part_of_the_test_split_is_stratified_repeatable_and_nested() -> None:
    labels = np.repeat(np.arange(4), [40, 40, 40, 80])
    test = TestSplit(np.zeros((200, 2, 2, 1), np.uint8), labels, tuple("abcd"))
    small, large = test.limited(20, seed=1), test.limited(100, seed=1)
    assert np.bincount(labels[small.indices]).tolist() == [4, 4, 4, 8]
    assert set(small.indices) <= set(large.indices)
    assert np.array_equal(small.indices, test.limited(20, seed=1).indices)
    assert not np.array_equal(small.indices, test.limited(20, seed=2).indices)


def test_a_part_keeps_images_labels_and_positions_together() -> None:
    part = a_test_split().limited(7, seed=0)
    assert np.array_equal(part.images[:, 0, 0, 0], part.indices)
    assert part.score(perfect_logits(LABELS[part.indices]), run="a").accuracy == 1.0
    again = part.limited(4, seed=5)
    assert np.array_equal(again.images[:, 0, 0, 0], again.indices)


# --- few-shot episodes --------------------------------------------------------------------------------------------

MANY = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 20))  # labels of 60 images
WAYS = np.array([[0, 1], [2, 0], [1, 2], [0, 2]])


def many_test_images() -> TestSplit:
    return TestSplit(marked_images(60), MANY, CLASSES)


def heads_that_know(ways: NDArray[Any], answers: NDArray[Any] | None = None) -> Iterator[Heads]:
    """For features that are one-hot labels: heads of one episode at a time, that answer each way with answers[way]."""
    for row in ways:
        weight = np.eye(3)[row]  # (ways, 3)
        yield weight[None] if answers is None else weight[answers][None], np.zeros((1, len(row)))


def score_ways(test: TestSplit, heads: Iterable[Heads], *, queries: int = 5, run: str = "a", seed: int = 0) -> Any:
    return test.score_episodes(np.eye(3)[MANY], WAYS, heads, queries=queries, run=run, seed=seed)


def test_an_episode_asks_about_images_of_its_own_classes() -> None:
    right = score_ways(many_test_images(), heads_that_know(WAYS))
    assert right.accuracies.tolist() == [1.0] * 4
    assert (right.accuracy, right.n, right.std) == (1.0, 4, 0.0)
    swapped = score_ways(many_test_images(), heads_that_know(WAYS, np.array([1, 0])))
    assert swapped.accuracies.tolist() == [0.0] * 4


def test_each_class_of_an_episode_is_asked_about_equally_often() -> None:
    """A head with one answer for everything is right for one class of two, in every episode."""
    ones = ((np.zeros((1, 2, 3)), np.array([[0.0, 1.0]])) for _ in WAYS)
    assert score_ways(many_test_images(), ones, queries=7).accuracies.tolist() == [0.5] * 4


def asked(ways: NDArray[Any], seed: int = 0, queries: int = 5) -> list[float]:
    """Accuracies of heads that know only half of the images: they tell which images were asked about."""
    features = np.eye(3)[MANY] * (np.arange(60) % 2)[:, None]
    heads = [(np.eye(3)[row][None], np.array([[0.0, 1e-9]])) for row in ways]
    found = many_test_images().score_episodes(features, ways, heads, queries=queries, run="a", seed=seed)
    return found.accuracies.tolist()  # type: ignore[no-any-return]


def test_the_images_asked_about_are_the_same_for_the_same_seed_and_whatever_the_number_of_episodes() -> None:
    ways = np.tile(WAYS, (10, 1))
    assert asked(ways) == asked(ways)
    assert asked(ways)[:6] == asked(ways[:6])
    assert asked(ways) != asked(ways, seed=1)
    assert len(set(asked(ways)[::4])) > 1  # nor are they the same in every episode of the same classes


def test_all_images_of_a_class_can_be_asked_about_once_each() -> None:
    half = (np.arange(60) % 2 == 1) & (MANY == 0)
    assert asked(np.array([[0, 1]]), queries=20) == [(half.sum() + 20) / 40]


def test_episodes_of_a_run_are_scored_once_and_a_second_time_no_head_is_asked() -> None:
    test = many_test_images()
    score_ways(test, heads_that_know(WAYS))
    test.score(perfect_logits(MANY), run="b")
    assert test.scored == 2
    for run in ("a", "b"):
        heads = heads_that_know(WAYS)
        with pytest.raises(TestLabelsClosed, match=f"run '{run}' was scored"):
            score_ways(test, heads, run=run)
        assert len(list(heads)) == 4
    with pytest.raises(TestLabelsClosed, match="run 'a' was scored"):
        test.score(perfect_logits(MANY), run="a")


def test_fewer_images_of_any_class_than_queries_are_refused() -> None:
    test = many_test_images()
    with pytest.raises(TooFewImages, match=r"21 images of each class.*but ant has 20, bee has 20, cow has 20"):
        score_ways(test, heads_that_know(WAYS), queries=21)
    assert test.scored == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_heads_and_features_that_are_no_numbers_are_refused(bad: float) -> None:
    test = many_test_images()
    broken = [(np.full((4, 2, 3), bad), np.zeros((4, 2)))]
    with pytest.raises(Diverged, match="NaN or infinity in a head"):
        score_ways(test, broken)
    with pytest.raises(Diverged, match="NaN or infinity"):
        test.score_episodes(np.full((60, 3), bad), WAYS, heads_that_know(WAYS), queries=5, run="a", seed=0)
    with pytest.raises(Diverged, match=r"\(59, 3\).*60 images"):
        test.score_episodes(np.zeros((59, 3)), WAYS, heads_that_know(WAYS), queries=5, run="a", seed=0)
    assert test.scored == 0


def test_nothing_that_goes_out_before_the_score_depends_on_a_label() -> None:
    """Heads are asked for in the same order and parts whatever the labels are: they see no query and no answer."""
    takings: list[list[int]] = []
    for labels in (MANY, MANY[::-1].copy(), np.roll(MANY, 7)):
        taken: list[int] = []
        heads = (taken.append(i) or head for i, head in enumerate(heads_that_know(WAYS)))  # type: ignore[func-returns-value]
        TestSplit(marked_images(60), labels, CLASSES).score_episodes(
            np.eye(3)[MANY], WAYS, heads, queries=5, run="a", seed=0
        )
        takings.append(taken)
    assert takings[0] == takings[1] == takings[2] == [0, 1, 2, 3]


def test_more_test_images_than_there_are_is_refused() -> None:
    with pytest.raises(TooFewImages, match="11 test images"):
        a_test_split().limited(11, seed=0)


def test_chosen_classes_are_labelled_in_the_given_order() -> None:
    chosen = a_dataset().with_classes(("cow", "ant"))
    assert chosen.classes == chosen.test.classes == ("cow", "ant")
    assert chosen.train_indices.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert np.array_equal(chosen.train.images[:, 0, 0, 0], chosen.train_indices)
    assert chosen.train.labels.tolist() == [1, 0] * 4  # ant was 0, cow was 2
    new = np.array([1, -1, 0])[LABELS[chosen.test.indices]]
    assert chosen.test.score(perfect_logits(new, 2), run="a").accuracy == 1.0


def test_chosen_classes_have_their_own_digest() -> None:
    digests = {a_dataset().digest} | {
        a_dataset().with_classes(names).digest for names in (("ant", "bee"), ("bee", "ant"), CLASSES)
    }
    assert len(digests) == 4


def test_positions_lead_to_the_whole_split_after_two_choices() -> None:
    twice = a_dataset().with_classes(("cow", "bee", "ant")).with_classes(("bee", "cow"))
    assert np.array_equal(twice.train.images[:, 0, 0, 0], twice.train_indices)
    assert np.array_equal(twice.test.images[:, 0, 0, 0], twice.test.indices)


def with_validation() -> Dataset:
    validation = Split(marked_images(9), np.repeat(np.arange(3), 3), CLASSES)
    train = Split(marked_images(12), np.arange(12) % 3, CLASSES)
    return Dataset("small", train, a_test_split(), validation, digest="d", image_size=2)


@pytest.mark.parametrize(
    "choices",
    [(), (("bee", "ant"),), (("cow", "ant"),), (("cow", "bee", "ant"),), (("cow", "bee", "ant"), ("bee", "cow"))],
)
def test_positions_lead_from_every_selected_split_to_the_same_images_in_the_whole_one(
    choices: tuple[tuple[str, ...], ...],
) -> None:
    whole = chosen = with_validation()
    for names in choices:
        chosen = chosen.with_classes(names)
    assert whole.validation is not None
    assert chosen.validation is not None
    for before, after, positions in (
        (whole.train, chosen.train, chosen.train_indices),
        (whole.validation, chosen.validation, chosen.validation_indices),
        (whole.test, chosen.test, chosen.test.indices),
    ):
        assert np.array_equal(before.images[positions], after.images)
    for before, after, positions in (
        (whole.train, chosen.train, chosen.train_indices),
        (whole.validation, chosen.validation, chosen.validation_indices),
    ):
        true = [before.classes[label] for label in before.labels[positions]]
        assert true == [after.classes[label] for label in after.labels]


def test_without_a_validation_split_there_are_no_positions_in_it() -> None:
    assert len(a_dataset().validation_indices) == 0
    assert len(a_dataset().with_classes(("bee", "cow")).validation_indices) == 0


def test_neighbouring_classes_of_a_sorted_split_share_its_memory() -> None:
    """A folder's arrays are sorted by class; ten of a thousand classes are not copied."""
    split = Split(marked_images(9), np.repeat(np.arange(3), 3), CLASSES)
    assert np.shares_memory(split.select_classes(("cow", "bee"))[0].images, split.images)
    assert split.select_classes(("cow", "bee"))[0].images[:, 0, 0, 0].tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("part", ["test", "validation"])
def test_classes_without_an_image_in_a_part_are_refused(part: str) -> None:
    full = Split(marked_images(3), np.arange(3), CLASSES)
    only_ants = np.zeros(3, np.int64)
    test = TestSplit(marked_images(3), only_ants if part == "test" else full.labels, CLASSES)
    validation = Split(marked_images(3), only_ants, CLASSES) if part == "validation" else full
    data = Dataset("small", full, test, validation, digest="d", image_size=2)
    with pytest.raises(TooFewImages, match=f"its {part} part has no image of the classes bee, cow"):
        data.with_classes(("bee", "cow"))


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no class 'cows'; did you mean 'cow'"):
        a_dataset().with_classes(("ant", "cows"))


@pytest.mark.parametrize("names", [("ant",), ("ant", "ant")])
def test_fewer_than_two_classes_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(StudyError, match="two or more different"):
        a_dataset().with_classes(names)
