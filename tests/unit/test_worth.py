"""Label worth on curves with known answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from regraft.analysis.stats import t_interval
from regraft.analysis.worth import (
    Curve,
    count,
    isotonic,
    label_worth,
    label_worths,
    labels_for,
    labels_per_class,
)
from regraft.seeding import stream
from regraft.spec import Study
from regraft.study.results import Cell, Results
from tests.unit.show_example import cell, grid_of_cuts, seven_rows

QUICKSTART = Path(__file__).parents[2] / "docs" / "records" / "quickstart.json"
STRAIGHT: Curve = ((10.0, 0.2), (100.0, 0.4), (1000.0, 0.6))  # 0.2 more for ten times the labels


@pytest.mark.parametrize(
    ("accuracy", "labels"),
    [(0.2, 10), (0.3, 10**1.5), (0.4, 100), (0.45, 10**2.25), (0.6, 1000), (0.19, 0), (0.61, math.inf)],
)
def test_labels_are_interpolated_in_their_logarithm(accuracy: float, labels: float) -> None:
    assert labels_for(accuracy, STRAIGHT) == pytest.approx(labels)


def test_on_a_flat_part_the_fewest_labels_count() -> None:
    assert labels_for(0.5, ((1, 0.2), (10, 0.5), (100, 0.5), (1000, 0.8))) == 10
    assert labels_for(0.2, ((1, 0.2), (10, 0.2))) == 1


def test_more_accuracy_never_needs_fewer_labels() -> None:
    curve = isotonic({float(2**i): [y] for i, y in enumerate(stream(0, "curve").uniform(size=9))})
    needed = [labels_for(accuracy, curve) for accuracy in np.linspace(0, 1, 101)]
    assert needed == sorted(needed)


def test_isotonic_pools_what_falls_by_its_weight() -> None:
    assert isotonic({1: [0.1], 10: [0.5], 100: [0.3], 1000: [0.9]}) == ((1, 0.1), (10, 0.4), (100, 0.4), (1000, 0.9))
    (_, low), (_, high) = isotonic({1: [0.6, 0.6, 0.6], 10: [0.2]})
    assert low == high == pytest.approx(0.5)
    assert isotonic({10: [0.4], 1: [0.1]}) == ((1, 0.1), (10, 0.4))


def test_isotonic_is_scikit_learns() -> None:
    from sklearn.isotonic import IsotonicRegression

    for i in range(20):
        x = np.arange(1, 13, dtype=float)
        y = stream(i, "isotonic").uniform(size=12)
        expected = IsotonicRegression().fit(x, y).predict(x)
        got = isotonic({labels: [value] for labels, value in zip(x, y, strict=True)})
        assert [value for _, value in got] == pytest.approx(expected)


def test_the_interval_is_students_over_the_seeds_logarithms() -> None:
    accuracies = {0: 0.3, 1: 0.35, 2: 0.4}  # 10^1.5, 10^1.75, 10^2
    worth = label_worth(accuracies, dict.fromkeys(range(3), STRAIGHT), own=10, scratch="random")
    assert worth.labels == pytest.approx(10**1.75)
    low, high = t_interval([1.5, 1.75, 2.0])
    assert (worth.low, worth.high) == pytest.approx((10**low, 10**high))
    assert worth.factor == pytest.approx(10**0.75)
    assert worth.text() == "56.2 [13.5, 235]"
    assert (worth.n, worth.beyond, worth.below) == (3, 0, 0)


def test_every_seed_is_looked_up_on_its_own_curve() -> None:
    better: Curve = ((10.0, 0.4), (100.0, 0.6))
    worth = label_worth({0: 0.5, 1: 0.3}, {0: better, 1: STRAIGHT}, own=5, scratch="random")
    assert worth.labels == pytest.approx(10**1.5)
    assert worth.low == pytest.approx(worth.high) == pytest.approx(10**1.5)


def test_every_seeds_own_labels_are_told() -> None:
    curves = dict.fromkeys(range(4), STRAIGHT)
    worth = label_worth({0: 0.3, 1: 0.4, 2: 0.7, 3: 0.1}, curves, own=5, scratch="random")
    assert [seed for seed, _ in worth.each] == [0, 1, 2, 3]
    assert [labels for _, labels in worth.each] == pytest.approx([10**1.5, 100, math.inf, 0])
    inside = label_worth({0: 0.3, 1: 0.4}, curves, own=5, scratch="random")
    assert inside.labels == pytest.approx(math.sqrt(math.prod(labels for _, labels in inside.each)))


def test_one_seed_gives_a_number_without_interval() -> None:
    worth = label_worth({4: 0.3}, {4: STRAIGHT, 5: STRAIGHT}, own=10, scratch="random")
    assert (worth.n, worth.low, worth.high) == (1, None, None)
    assert worth.text() == "31.6"


def test_n_is_said_where_the_curve_has_fewer_seeds_than_the_row() -> None:
    worth = label_worth(dict.fromkeys(range(5), 0.3), {4: STRAIGHT, 5: STRAIGHT}, own=10, scratch="random")
    assert worth.text() == "31.6 (n = 1 of 5 seeds)"


@pytest.mark.parametrize(
    ("accuracies", "text"),
    [
        ((0.7, 0.8, 0.9), "> 1,000 (beyond the data)"),
        ((0.1, 0.1, 0.0), "< 10 (below the data)"),
        ((0.5, 0.5, 0.7), "≥ 464 (1 of 3 seeds beyond the data)"),
        ((0.1, 0.1, 0.4), "≤ 21.5 (2 of 3 seeds below the data)"),
        ((0.1, 0.9, 0.4), "about 100 (1 of 3 seeds beyond the data, 1 below)"),
        ((0.1, 0.9, 0.9), "2 of 3 seeds beyond the data, the others below"),
        ((0.22, 0.4, 0.58), "100 [< 10, > 1,000]"),
    ],
)
def test_outside_the_budgets_nothing_is_made_up(accuracies: tuple[float, ...], text: str) -> None:
    curves = dict.fromkeys(range(3), STRAIGHT)
    worth = label_worth(dict(enumerate(accuracies)), curves, own=10, scratch="random")
    assert worth.text() == text


def test_a_worth_needs_a_common_seed() -> None:
    with pytest.raises(ValueError, match="common seed"):
        label_worth({0: 0.5}, {1: STRAIGHT}, own=10, scratch="random")


@pytest.mark.parametrize(
    ("labels", "text"),
    [(0.05, "0.05"), (4.1666, "4.17"), (5.0, "5"), (62.34, "62.3"), (99.99, "100"), (416.6, "417"), (12345, "12,300")],
)
def test_labels_are_written_to_three_figures(labels: float, text: str) -> None:
    assert count(labels) == text


def board(
    arms: Mapping[str, tuple[float, ...]], scratch: Mapping[int, tuple[float, ...]], **changes: object
) -> Results:
    """Training from scratch at several budgets, and arms on 10 images of each class; accuracies by seed."""
    targets = {f"{k} per class": {"data": "cifar10", "per_class": k, "validation": 0.2} for k in (10, *scratch)}
    study = Study(
        study="board", seeds=(0, 1, 2), targets=targets, recipes={"short": {}, "again": {"refit": True}},
        sources={"random": {"network": "resnet18"}, "imagenet": {"network": "resnet50", "weights": "pretrained"}},
        rows=[
            *({"name": f"scratch {k}", "source": "random", "target": f"{k} per class", "recipe": "short"}
              for k in scratch),
            *({"name": name, "source": "imagenet", "target": "10 per class", "recipe": ["short", "again"]}
              for name in arms),
        ],
    )  # fmt: skip

    def one(row: str, seed: int, accuracy: float, labels: int, **more: object) -> Cell:
        held = labels // 5
        images = {"train_images": 10 * (labels - held), "validation_images": 10 * held}
        target = f"{labels} per class"
        return cell(row=row, seed=seed, accuracy=accuracy, target=target, budget=target, **images, **more)

    cells = [
        one(f"scratch {k}", seed, value, k, source="random", network="resnet18")
        for k, values in scratch.items() for seed, value in enumerate(values)
    ] + [
        one(name, seed, value, 10, **{"source": "imagenet", "weights": "pretrained", **changes})
        for name, values in arms.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return Results(study, cells, [], len(cells))


SCRATCH = {10: (0.2, 0.22), 100: (0.4, 0.42), 1000: (0.6, 0.62)}


def test_the_worth_of_a_studys_arm_is_read_off_its_scratch_curve() -> None:
    found = label_worths(board({"arm": (0.3, 0.32, 0.9), "best": (0.7, 0.7, 0.7)}, SCRATCH))
    assert found.keys() == {"arm", "best"}
    assert found["arm"].labels == pytest.approx(10**1.5)
    assert (found["arm"].n, found["arm"].own, found["arm"].scratch) == (2, 10.0, "random")  # seed 2 has no curve
    assert found["best"].text() == "> 1,000 (beyond the data) (n = 2 of 3 seeds)"


def test_one_budget_is_no_curve() -> None:
    assert label_worths(board({"arm": (0.3, 0.3)}, {10: (0.2, 0.2)})) == {}
    assert label_worths(grid_of_cuts()) == {}


def test_other_data_or_classes_have_no_worth_on_the_curve() -> None:
    assert label_worths(board({"arm": (0.3, 0.3)}, SCRATCH, data="cifar100")) == {}
    results = board({"arm": (0.3, 0.3)}, SCRATCH)
    study = results.study.model_dump(mode="json", exclude_defaults=True)
    study["targets"]["few"] = {"data": "cifar10", "per_class": 10, "classes": ["cat", "dog"]}
    study["rows"][-1]["target"] = "few"
    arm = [dataclasses.replace(c, target="few") if c.row == "arm" else c for c in results.cells]
    assert label_worths(Results(Study.from_dict(study), arm, [], 0)) == {}


def test_trainings_that_failed_are_no_points_and_chance_is_one() -> None:
    found = label_worths(seven_rows())
    # Seed 1 of row 5 never started learning: its curve has two points, that of the other seeds three.
    assert "6 ImageNet, 50 per class" in found
    assert found["6 ImageNet, 50 per class"].n == 3
    assert "2 cut frozen" not in found  # one budget of cifar100
    few = board({"arm": (0.3, 0.3)}, {1: (0.1, 0.1), 100: (0.5, 0.5)})
    assert label_worths(few)["arm"].labels == pytest.approx(10.0)


def test_labels_count_whole_and_a_refits_validation_images_once() -> None:
    results = board({"arm": (0.3, 0.3)}, SCRATCH)
    rows = {row.name: row for row in results.study.all_rows()}
    arm = next(c for c in results.cells if c.row == "arm")
    assert labels_per_class(results.study, rows["arm"], arm) == 10
    again = dataclasses.replace(arm, recipe="again", train_images=100)
    assert labels_per_class(results.study, rows["arm"], again) == 10


def test_a_curve_of_the_rows_own_network_comes_before_others() -> None:
    results = board({"arm": (0.3, 0.3)}, SCRATCH)
    study = results.study.model_dump(mode="json", exclude_defaults=True)
    study["sources"]["own"] = {"network": "resnet50"}
    study["rows"] += [
        {"name": f"own {k}", "source": "own", "target": f"{k} per class", "recipe": ["short"]} for k in (10, 100)
    ]
    own = [
        cell(row=f"own {k}", seed=seed, source="own", network="resnet50", accuracy=value, target=f"{k} per class",
             budget=f"{k} per class", train_images=8 * k, validation_images=2 * k)
        for k, value in ((10, 0.3), (100, 0.5)) for seed in (0, 1)
    ]  # fmt: skip
    both = Results(Study.from_dict(study), [*results.cells, *own], [], 0)
    arm = [dataclasses.replace(c, network="resnet50") if c.row == "arm" else c for c in both.cells]
    assert label_worths(dataclasses.replace(both, cells=arm))["arm"].scratch == "own"
    other = [dataclasses.replace(c, network="vgg11") if c.row == "arm" else c for c in both.cells]
    assert label_worths(dataclasses.replace(both, cells=other))["arm"].scratch == "random"  # three budgets


def test_a_recorded_study_has_worths_for_all_rows_but_those_from_scratch() -> None:
    results = Results.from_json(QUICKSTART)
    found = label_worths(results)
    names = {row.name for row in results.study.all_rows()}
    assert names - found.keys() == {
        "the source, trained on 0-4", "random, fine-tuned, 5 per class", "random, fine-tuned, 20 per class"
    }  # fmt: skip
    assert all((worth.first, worth.last, worth.n) == (5.0, 20.0, 3) for worth in found.values())
    assert found["trained on 0-4, frozen at stage2, 5 per class"].own == 5.0
