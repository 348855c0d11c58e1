"""Co-adaptation and specificity, from made scores whose differences are known."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.analysis.arms import lost_by_cut
from regraft.show.figures import spec
from regraft.show.figures_transfer import lost_by_cut as figure
from regraft.show.figures_transfer import mixing_curve
from regraft.spec import Study
from regraft.study.results import Cell, Results
from tests.unit.show_example import cell

HALVES = {"A": ["airplane", "bird", "deer", "frog", "ship"], "B": ["automobile", "cat", "dog", "horse", "truck"]}
BASE = {0: 0.80, 1: 0.82, 2: 0.81}
LOST = {"layer1.1": (0.01, 0.00), "layer3.1": (0.04, 0.10)}  # cut -> co-adaptation, specificity
WOBBLE = {0: 0.001, 1: -0.001, 2: 0.0}
GAINED = 0.02


def made(seeds: tuple[int, ...] = (0, 1, 2)) -> Results:
    rows: list[dict[str, Any]] = [
        {"name": f"base {half}", "source": "random", "target": half, "recipe": "short"} for half in HALVES
    ]
    cells: list[Cell] = []

    def score(row: str, accuracy: float, seed: int, **fields: Any) -> None:
        cells.append(cell(row=row, seed=seed, accuracy=accuracy, classes=5, **fields))

    for seed in seeds:
        score("base A", 0.7, seed, target="A")
        score("base B", BASE[seed], seed, target="B")
    for depth, (cut, (torn, specific)) in enumerate(LOST.items(), start=1):
        for source, method in (("A", "frozen"), ("B", "frozen"), ("A", "finetune")):
            name = f"{source} {cut} {method}"
            rows.append(
                {"name": name, "source": source, "cut": cut, "method": method, "head": "rest", "target": "B",
                 "recipe": "short"}
            )  # fmt: skip
            for seed in seeds:
                frozen = BASE[seed] - torn - WOBBLE[seed] - (specific if source == "A" else 0.0)
                accuracy = frozen if method == "frozen" else BASE[seed] + GAINED + WOBBLE[seed]
                score(
                    name,
                    accuracy,
                    seed,
                    source=source,
                    cut=cut,
                    method=method,
                    head="rest",
                    target="B",
                    depth=depth / 4,
                )
    study = Study(
        study="halves",
        seeds=seeds,
        sources={"random": {"network": "resnet18"}, "A": {"run": "base A"}, "B": {"run": "base B"}},
        targets={half: {"data": "cifar10", "classes": classes} for half, classes in HALVES.items()},
        recipes={"short": {}},
        rows=rows,
    )
    return Results(study, cells, [], len(cells))


def test_what_is_lost_is_told_apart() -> None:
    found = {lost.cut: lost for lost in lost_by_cut(made())}
    assert list(found) == list(LOST)
    for cut, (torn, specific) in LOST.items():
        lost = found[cut]
        assert lost.co_adaptation.mean == pytest.approx(torn, abs=1e-9)
        assert lost.specificity.mean == pytest.approx(specific, abs=1e-9)
        assert lost.recovered is not None
        assert lost.recovered.mean == pytest.approx(GAINED, abs=1e-9)
        assert lost.co_adaptation.n == lost.base.n == 3
    assert found["layer3.1"].specificity.clear
    assert not found["layer1.1"].specificity.clear


def test_one_seed_or_no_such_arms_tell_nothing() -> None:
    assert lost_by_cut(made(seeds=(0,))) == []
    whole = made()
    without = [c for c in whole.cells if c.source != "B"]
    assert lost_by_cut(Results(whole.study, without, [], len(without))) == []


def test_the_figure_has_both_losses_at_every_cut() -> None:
    chart = figure(made())
    assert chart is not None
    drawn = str(spec(chart))
    for word in ("co-adaptation", "specificity", *LOST, "A to B"):
        assert word in drawn
    assert figure(made(seeds=(0,))) is None


def test_the_mixing_curve_shows_every_factor_of_a_row_that_mixed() -> None:
    whole = made()
    assert mixing_curve(whole) is None
    mixed = [cell(row="base A", mixing=[[0.0, 1.2, 0.25], [0.5, 0.9, 0.625], [1.0, 1.0, 0.5]])]
    chart = mixing_curve(Results(whole.study, mixed, [], 1))
    assert chart is not None
    drawn = str(spec(chart))
    assert "62.5" in drawn
    assert "base A" in drawn
