"""Laws of finding labels in doubt."""

from __future__ import annotations

import numpy as np
import torch

from regraft.analysis.mislabelled import Floats, Labels, folds, mislabelled, out_of_fold, self_test
from regraft.learn.logistic import logistic

CLASSES = 4


def clouds(n: int, *, apart: float, seed: int = 0) -> tuple[torch.Tensor, Labels]:
    """(n, 6) points about a centre for each class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    centres = apart * rng.standard_normal((CLASSES, 6))
    return torch.from_numpy((centres[labels] + rng.standard_normal((n, 6))).astype(np.float32)), labels


def probabilities(x: torch.Tensor, labels: Labels, seeds: tuple[int, ...] = (0,)) -> Floats:
    def answer(learnt: Labels, asked: Labels) -> list[Floats]:
        heads = logistic(
            x[learnt], torch.from_numpy(labels[learnt]), classes=CLASSES, penalties=(0.01, 0.3), max_iterations=100
        )
        return [(x[asked] @ head.weight.T + head.bias).double().softmax(1).numpy() for head in heads]

    return out_of_fold(labels, CLASSES, answer, seeds=seeds)


def flipped(labels: Labels, count: int) -> tuple[Labels, Labels]:
    rng = np.random.default_rng(7)
    changed = rng.choice(len(labels), count, replace=False)
    wrong = labels.copy()
    wrong[changed] = (wrong[changed] + rng.integers(1, CLASSES, count)) % CLASSES
    return wrong, changed


def test_changed_labels_are_found_first_and_counted() -> None:
    x, labels = clouds(400, apart=3.0)
    wrong, changed = flipped(labels, 20)
    found = mislabelled(probabilities(x, wrong), wrong)
    first = [suspect.index for suspect in found.suspects[:20]]
    assert len(set(first) & set(changed.tolist())) >= 18
    assert 15 <= found.estimate <= 30
    for suspect in found.suspects[:18]:
        if suspect.index in changed:
            assert suspect.proposed == labels[suspect.index]


def test_right_labels_of_clear_classes_are_not_doubted() -> None:
    x, labels = clouds(400, apart=4.0)
    found = mislabelled(probabilities(x, labels), labels)
    assert len(found.suspects) <= 4
    assert found.estimate <= 6


def test_suspects_come_the_surest_first() -> None:
    x, labels = clouds(300, apart=1.5)
    margins = [suspect.margin for suspect in mislabelled(probabilities(x, labels), labels).suspects]
    assert margins == sorted(margins)
    assert all(margin < 0 for margin in margins)


def test_no_picture_is_asked_about_by_a_head_that_learnt_from_it() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    asked: list[int] = []
    for learnt, questions in folds(labels):
        assert not set(learnt.tolist()) & set(questions.tolist())
        asked += questions.tolist()
    assert sorted(asked) == list(range(len(labels)))


def test_the_self_test_finds_more_where_classes_are_clear() -> None:
    clear, mixed = (clouds(300, apart=apart) for apart in (4.0, 0.7))
    tests = [
        self_test(labels, CLASSES, lambda given, repeat, x=x: probabilities(x, given, (repeat,)), repeats=2)  # type: ignore[misc]
        for x, labels in (clear, mixed)
    ]
    assert tests[0].planted == 2 * 15
    assert tests[0].recall > 0.7
    assert tests[0].precision > tests[1].precision
