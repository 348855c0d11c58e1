"""Few-shot episodes: what they draw, and that solving thousands together is solving each alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from regraft.data import Dataset, load_dataset
from regraft.data.episodes import EpisodeScore, draw_distinct
from regraft.errors import StudyError, TooFewImages
from regraft.learn.episodes import (
    EpisodeHead,
    Episodes,
    draw_episodes,
    heads_in_parts,
    run_episodes,
    solve_episodes,
    unit,
)
from regraft.seeding import stream

HEADS: tuple[EpisodeHead, ...] = ("prototype", "ridge", "logistic")
WEIGHT_DECAY = 0.04  # 1 / (5 ways * 5 shots): scikit-learn's C = 1, the setting of Tian et al. 2020
ITERATIONS = 200


@cache
def digits() -> Dataset:
    return load_dataset("digits")


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """(n, 8, 8, 1) -> (n, 64): the pixels are features good enough for digits."""
    return torch.from_numpy(images.reshape(len(images), -1)).float()


def draw(shots: int = 5, count: int = 40, ways: int = 5, seed: int = 0) -> Episodes:
    return draw_episodes(digits().train.labels, classes=10, ways=ways, shots=shots, count=count, seed=seed)


def score(
    episodes: Episodes,
    head: EpisodeHead,
    *,
    features: tuple[Tensor, Tensor] | None = None,
    queries: int = 10,
    seed: int = 0,
    advance: Callable[[float], None] = lambda done: None,
) -> EpisodeScore:
    data = digits()
    test = data.with_classes(data.classes).test  # a split of its own: a run is scored once
    train_x, test_x = features or (pixels(data.train.images), pixels(test.images))
    return run_episodes(
        train_x, episodes, test, test_x,
        queries=queries, head=head, weight_decay=WEIGHT_DECAY, max_iterations=ITERATIONS, run="a", seed=seed,
        advance=advance,
    )  # fmt: skip


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_an_episode_has_the_same_number_of_images_of_each_of_its_classes() -> None:
    episodes, labels = draw(shots=3), digits().train.labels
    assert np.array_equal(labels[episodes.support], np.repeat(episodes.ways, 3, axis=1))
    assert all(len(set(row)) == 5 for row in episodes.ways.tolist())
    assert all(len(set(row)) == 15 for row in episodes.support.tolist())
    assert episodes.support_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_an_episode_is_the_same_whatever_their_number() -> None:
    few, many = draw(count=7), draw(count=40)
    assert np.array_equal(few.ways, many.ways[:7])
    assert np.array_equal(few.support, many.support[:7])
    assert not np.array_equal(draw(seed=1).support, many.support)


def test_fewer_shots_are_the_first_of_more() -> None:
    few, many = draw(shots=2), draw(shots=7)
    assert np.array_equal(few.ways, many.ways)
    assert np.array_equal(few.support.reshape(40, 5, 2), many.support.reshape(40, 5, 7)[..., :2])


def test_every_ordered_choice_is_equally_likely() -> None:
    sizes = np.full(12_000, 4)
    chosen = draw_distinct(sizes, 2, seed=0, name="any")  # 12 ordered pairs, 1,000 expected of each
    _, counts = np.unique(chosen @ [4, 1], return_counts=True)
    assert len(counts) == 12
    assert ((counts - 1000) ** 2 / 1000).sum() < 31.3  # chi-squared, 11 degrees of freedom: p = 0.001


def test_as_many_as_there_are_is_all_of_them() -> None:
    sizes = np.array([[3, 3], [3, 3]])
    assert np.array_equal(np.sort(draw_distinct(sizes, 3, seed=5, name="any")), np.tile(np.arange(3), (2, 2, 1)))


def test_more_shots_than_images_are_refused_with_the_counts() -> None:
    labels = np.repeat(np.arange(3), [9, 4, 9])
    with pytest.raises(TooFewImages, match=r"5 images of each class.*but class 1 has 4.*At most 4"):
        draw_episodes(labels, classes=3, ways=2, shots=5, count=1, seed=0)
    with pytest.raises(TooFewImages, match="but bee has 4"):
        draw_episodes(labels, classes=3, ways=2, shots=5, count=1, seed=0, names=("ant", "bee", "cow"))


@pytest.mark.parametrize("ways", [1, 11])
def test_more_ways_than_classes_or_a_single_one_are_refused(ways: int) -> None:
    with pytest.raises(StudyError, match=f"from 2 to the number of classes, 10, got {ways}"):
        draw(ways=ways)


# --- heads --------------------------------------------------------------------------------------------------------


def gathered(episodes: Episodes) -> tuple[Tensor, Tensor]:
    x = pixels(digits().train.images)[torch.from_numpy(episodes.support)]
    return x, torch.from_numpy(episodes.support_labels).expand(len(episodes), -1)


def solve(support: Tensor, labels: Tensor, head: EpisodeHead) -> tuple[Tensor, Tensor]:
    return solve_episodes(support, labels, ways=5, head=head, weight_decay=WEIGHT_DECAY, max_iterations=ITERATIONS)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shots", [1, 5, 20])
def test_heads_solved_together_are_the_heads_solved_alone(head: EpisodeHead, shots: int) -> None:
    x, y = gathered(draw(shots=shots, count=6))
    together = solve(x, y, head)
    for i in range(6):
        alone = solve(x[i : i + 1], y[i : i + 1], head)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_the_order_of_the_support_images_does_not_matter(head: EpisodeHead) -> None:
    x, y = gathered(draw(count=3))
    order = torch.from_numpy(stream(0, "order").permutation(25))
    one = solve(x, y, head)
    other = solve(x[:, order], y[:, order], head)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_the_length_of_a_feature_vector_does_not_matter(head: EpisodeHead) -> None:
    episodes = draw(count=10)
    train_x, test_x = pixels(digits().train.images), pixels(digits().test.images)
    lengths = torch.from_numpy(stream(0, "lengths").uniform(0.1, 10, (len(train_x), 1))).float()
    plain = score(episodes, head, features=(train_x, test_x))
    stretched = score(episodes, head, features=(train_x * lengths, test_x * 3))
    np.testing.assert_allclose(plain.accuracies, stretched.accuracies, atol=0.021)  # an image at the border, of 50


def test_a_prototype_is_the_nearest_mean_by_cosine() -> None:
    x, y = gathered(draw(count=1, shots=3))
    weight, bias = solve(x, y, "prototype")
    for way in range(5):
        mean = torch.stack([v / v.norm() for v in x[0][y[0] == way]]).mean(0)
        torch.testing.assert_close(weight[0, way], mean / mean.norm())
    assert not bias.any()


@pytest.mark.parametrize("shots", [1, 5])
def test_ridge_heads_are_scikit_learns_on_unit_features_as_they_are(shots: int) -> None:
    """No division by deviations within the episode, which at one shot are noise."""
    x, y = gathered(draw(count=4, shots=shots))
    weight, bias = solve(x, y, "ridge")
    for i in range(4):
        peer = Ridge(alpha=5 * shots * WEIGHT_DECAY).fit(unit(x[i]).double().numpy(), np.eye(5)[y[i]])
        np.testing.assert_allclose(weight[i], peer.coef_, atol=1e-4)
        np.testing.assert_allclose(bias[i], peer.intercept_, atol=1e-4)


def test_logistic_heads_are_scikit_learns_on_unit_features_as_they_are() -> None:
    x, y = gathered(draw(count=4))
    weight, bias = solve(x, y, "logistic")
    for i in range(4):
        peer = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(unit(x[i]).double().numpy(), y[i].numpy())
        np.testing.assert_allclose(weight[i], peer.coef_, atol=0.01)
        np.testing.assert_allclose(bias[i], peer.intercept_, atol=0.01)


# --- scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_parts_of_any_size_give_the_same_score(head: EpisodeHead) -> None:
    episodes, data = draw(count=23), digits()
    x = unit(pixels(data.test.images)).numpy()
    found = []
    for most in (1, 4 * 25 * 64, 10**9):  # one episode at a time, four, all
        heads = heads_in_parts(
            pixels(data.train.images), episodes,
            head=head, weight_decay=WEIGHT_DECAY, max_iterations=ITERATIONS, most_numbers=most,
        )  # fmt: skip
        test = data.with_classes(data.classes).test
        found.append(test.score_episodes(x, episodes.ways, heads, queries=10, run="a", seed=0).accuracies)
    # Sums in another order: an image at the border between two classes may change sides, one of 50.
    assert np.abs(found[0] - found[2]).max() < 0.021
    assert np.abs(found[1] - found[2]).max() < 0.021


@pytest.mark.parametrize("head", HEADS)
def test_accuracy_rises_with_shots(head: EpisodeHead) -> None:
    accuracies = [score(draw(shots=shots, count=100), head).accuracy for shots in (1, 5, 20)]
    assert accuracies[0] + 0.05 < accuracies[1] < accuracies[2]
    assert accuracies[0] > 0.5


@pytest.mark.parametrize("head", HEADS)
def test_features_without_meaning_give_chance(head: EpisodeHead) -> None:
    rng, data = stream(0, "noise"), digits()
    features = tuple(torch.from_numpy(rng.standard_normal((n, 16))).float() for n in (len(data.train), len(data.test)))
    found = score(draw(count=150), head, features=(features[0], features[1]))
    assert abs(found.accuracy - 0.2) < 4 * found.std / np.sqrt(found.n)


@pytest.mark.parametrize("head", HEADS)
def test_labels_without_meaning_give_chance(head: EpisodeHead) -> None:
    data = digits()
    labels = stream(0, "shuffled").permutation(data.train.labels)
    episodes = draw_episodes(labels, classes=10, ways=5, shots=5, count=150, seed=0)
    found = score(episodes, head)
    assert abs(found.accuracy - 0.2) < 4 * found.std / np.sqrt(found.n)


def test_features_that_are_all_alike_give_exactly_chance() -> None:
    data = digits()
    for head in HEADS:
        found = score(draw(count=5), head, features=(torch.zeros(len(data.train), 4), torch.zeros(len(data.test), 4)))
        assert found.accuracies.tolist() == [0.2] * 5


def test_progress_reaches_the_end() -> None:
    seen: list[float] = []
    score(draw(count=9), "prototype", advance=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
