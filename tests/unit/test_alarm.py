"""Broken runs raise an alarm, healthy ones none; the table carries both."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from regraft.analysis.alarm import alarm_kinds, alarms, chance_p
from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.analysis.table import rows_table
from regraft.analysis.worth import label_worths
from regraft.study.results import Cell, Missing, Results
from regraft.study.store import Store
from tests.unit.show_example import cell, confusion, grid_of_cuts, learning_curve, seven_rows


def kinds(*cells: Cell) -> list[str]:
    return [alarm.kind for alarm in alarms(Results(seven_rows().study, list(cells), [], len(cells)))]


def losses(*values: float) -> list[dict[str, float]]:
    return [{"epoch": i + 1, "train_loss": value} for i, value in enumerate(values)]


def test_healthy_cells_raise_no_alarm() -> None:
    assert kinds(cell()) == []
    assert alarms(grid_of_cuts()) == []


def test_chance_is_an_exact_binomial_test() -> None:
    # P(X >= 1) for 2 images at 1/2 is 3/4; P(X >= 2) is 1/4
    assert chance_p(0.5, 2, 0.5) == pytest.approx(0.75)
    assert chance_p(1.0, 2, 0.5) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("accuracy", "test_images", "raised"),
    [(0.10, 10_000, True), (0.106, 10_000, True), (0.108, 10_000, False), (0.05, 10_000, True),
     (0.12, 100, True), (0.20, 100, False)],
)  # fmt: skip
def test_an_accuracy_not_clearly_above_chance_raises_chance(accuracy: float, test_images: int, raised: bool) -> None:
    broken = cell(accuracy=accuracy, test_images=test_images, train_accuracy=None, curve=[])
    assert kinds(broken) == (["chance"] if raised else [])


@pytest.mark.parametrize(
    "broken",
    [cell(accuracy=math.nan), cell(validation_accuracy=math.nan), cell(train_accuracy=math.inf),
     cell(curve=losses(2.3, 1.9, math.nan))],
)  # fmt: skip
def test_not_a_number_raises_nan_and_nothing_else(broken: Cell) -> None:
    assert kinds(broken) == ["nan"]


def test_a_loss_that_stays_at_guessing_raises_flat() -> None:
    assert kinds(cell(curve=losses(2.31, 2.303, 2.302))) == ["flat"]


def test_a_loss_that_is_low_from_the_start_is_not_flat() -> None:
    assert kinds(cell(curve=losses(0.11, 0.11, 0.11))) == []


def test_a_loss_that_rises_above_guessing_raises_diverged() -> None:
    assert kinds(cell(curve=losses(2.3, 4.0, 9.7))) == ["diverged"]


def test_training_images_learnt_but_validation_at_chance_raises_memorised() -> None:
    assert kinds(cell(train_accuracy=0.99, validation_accuracy=0.101)) == ["memorised"]
    assert kinds(cell(train_accuracy=0.99, validation_accuracy=0.2, validation_images=10)) == []


def test_a_loss_that_never_comes_down_from_far_above_guessing_raises_diverged() -> None:
    assert kinds(cell(curve=losses(90.0, 60.0, 40.0), train_accuracy=0.15)) == ["diverged"]
    assert kinds(cell(curve=losses(90.0, 60.0, 40.0), train_accuracy=0.95)) == []  # right, but for a few far misses


def test_a_cause_that_is_found_stands_in_place_of_guesses_and_once_in_full() -> None:
    renamed = np.roll(np.array(confusion(0.9, 10)), 1, axis=1).tolist()
    moved = cell(
        accuracy=0.0, train_accuracy=0.95, validation_accuracy=0.9, confusion=renamed, curve=losses(2.31, 2.303, 2.302)
    )
    flat, chance = alarms(Results(seven_rows().study, [moved], [], 1))
    assert [flat.kind, chance.kind] == ["flat", "chance"]
    assert [cause.name for cause in chance.causes] == ["class order"]
    assert "Likely cause: class order: with the answers renamed (" in flat.message
    assert "Fix: give both parts the same class names" in flat.message
    assert chance.message.endswith("Likely cause, as above: class order.")
    assert "Likely causes" not in flat.message + chance.message


def test_messages_name_numbers_causes_and_checks() -> None:
    messages = [alarm.message for alarm in alarms(seven_rows())]
    assert len(messages) == 2
    for message in messages:
        assert "Likely causes" in message
        assert "Check" in message
    assert "10.2 % of 10,000 test images" in messages[1]


def test_the_table_has_every_row_in_study_order_with_scores_alarms_and_reasons() -> None:
    results = seven_rows()
    table = rows_table(results)
    assert [row.name for row in table] == [row.name for row in results.study.all_rows()]
    fifth, last = table[4], table[-1]
    assert fifth.scores == {0: 0.871, 1: 0.102, 2: 0.866}
    assert fifth.alarm == "flat (seed 1); chance (seed 1)"
    assert (last.n, last.summary, last.missing) == (0, None, (results.missing[0].reason,))
    assert table[1].what == "own-rn50 at layer2.2, frozen, linear head → cifar100 (all)"


def test_reasons_of_a_partly_scored_row_name_their_seeds() -> None:
    results = seven_rows()
    gone = [Missing("1 rn50 scratch", 1, "diverged"), Missing("1 rn50 scratch", 2, "diverged")]
    cells = [c for c in results.cells if c.row != "1 rn50 scratch" or c.seed == 0]
    table = rows_table(dataclasses.replace(results, cells=cells, missing=gone))
    assert table[0].missing == ("seeds 1, 2: diverged",)


def test_the_kinds_are_those_of_the_alarms_and_no_store_is_looked_into() -> None:
    class Closed(Store):
        def path(self, key: str) -> Path:
            raise AssertionError(f"looked for {key}")

    broken = [cell(seed=0, accuracy=0.1), cell(seed=1), cell(seed=2, accuracy=0.1, curve=losses(2.31, 2.303, 2.302))]
    results = Results(grid_of_cuts().study, broken, [], 3, Closed("nowhere"))
    assert alarm_kinds(results) == {("a", 0): ("chance",), ("a", 2): ("flat", "chance")}
    seen = [(alarm.row, alarm.seed, alarm.kind) for alarm in alarms(dataclasses.replace(results, store=None))]
    assert seen == [("a", 0, "chance"), ("a", 2, "flat"), ("a", 2, "chance")]
    whole = dataclasses.replace(seven_rows(), store=Closed("nowhere"))
    assert rows_table(whole) == rows_table(seven_rows())
    assert label_worths(whole) == label_worths(seven_rows())
    assert comparisons(whole) == comparisons(seven_rows())
    assert answer(whole) == answer(seven_rows())
    with pytest.raises(AssertionError, match="looked for"):
        alarms(whole)


def test_the_example_curve_learns() -> None:
    curve = learning_curve(0.9, 10)
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
