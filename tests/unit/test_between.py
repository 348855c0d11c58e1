"""Two studies side by side: equal is said to be equal, pairs are pairs, and what differs is named."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regraft.analysis.between import BY, between, made_by, welch
from regraft.analysis.stats import paired_difference
from regraft.errors import StudyError, UnknownName
from regraft.spec import Study
from regraft.study.results import Results
from tests.unit.show_example import cell, grid_of_cuts, seven_rows


def changed(results: Results, **changes: Any) -> Results:
    """With every cell's fields changed by a function of the cell."""
    cells = [dataclasses.replace(c, **{name: change(c) for name, change in changes.items()}) for c in results.cells]
    return dataclasses.replace(results, cells=cells)


def other_study(results: Results, **parts: Any) -> Results:
    study = Study.from_dict({**results.study.model_dump(mode="json", exclude_defaults=True), **parts})
    return dataclasses.replace(results, study=study)


def test_results_are_equal_to_themselves_bit_for_bit() -> None:
    found = between(seven_rows(), seven_rows())
    assert len(found.matches) == 7
    assert {match.verdict for match in found.matches} == {"equal"}
    assert all("under the same keys" in match.text() for match in found.matches)
    assert found.shared == found.machines == ()
    assert found.only == ((), ())
    assert found.summary()[0].startswith("7 rows matched: 7 equal")


@pytest.mark.parametrize("field", ["accuracy", "validation_accuracy", "curve", "confusion"])
def test_any_measured_number_that_differs_makes_rows_unequal(field: str) -> None:
    def change(c: Any) -> Any:
        value = getattr(c, field)
        return value + 1e-12 if isinstance(value, float) else [*value[:-1], value[0]]

    found = between(grid_of_cuts(), changed(grid_of_cuts(), **{field: change}))
    assert "equal" not in {match.verdict for match in found.matches}


def test_another_key_is_said_though_the_numbers_are_equal() -> None:
    found = between(grid_of_cuts(), changed(grid_of_cuts(), key=lambda c: "f" * 64))
    assert {match.why for match in found.matches} == {"bit for bit, under other keys"}


def test_the_same_seeds_on_the_same_images_are_paired() -> None:
    first = grid_of_cuts()
    second = changed(first, accuracy=lambda c: c.accuracy - 0.01 - 0.002 * c.seed)
    for match in between(first, second).matches:
        assert match.kind == "paired"
        scores = [{c.seed: c.accuracy for c in side.cells if c.row == match.first} for side in (first, second)]
        expected = paired_difference(scores[0], scores[1], 1 / 10_000)
        assert (match.gap.low, match.gap.high) == pytest.approx((expected.low, expected.high))
        assert match.gap.mean > 0  # first minus second


def test_other_images_or_seeds_are_compared_by_welch_and_it_is_said_why() -> None:
    first = grid_of_cuts()
    fewer = changed(first, train_images=lambda c: c.train_images - 1, accuracy=lambda c: c.accuracy - 0.01 * c.seed)
    assert {(match.kind, match.why) for match in between(first, fewer).matches} == {("Welch", "other images")}
    later = changed(first, seed=lambda c: c.seed + 3)
    assert {(match.kind, match.why) for match in between(first, later).matches} == (
        {("Welch", "fewer than two seeds in common")}
    )


def test_one_seed_gives_a_difference_without_an_interval() -> None:
    found = between(grid_of_cuts(seeds=(0,)), changed(grid_of_cuts(seeds=(0,)), accuracy=lambda c: c.accuracy - 0.1))
    assert {match.verdict for match in found.matches} == {"not judged"}
    assert {match.gap.low for match in found.matches} == {None}
    assert all(match.gap.mean == pytest.approx(0.1) for match in found.matches)


def test_welch_is_scipys(  # of another author
) -> None:
    rng = np.random.default_rng(0)
    for n, m in ((2, 3), (5, 9), (30, 4)):
        a, b = rng.normal(0.6, 0.02, n), rng.normal(0.58, 0.05, m)
        expected = stats.ttest_ind(a, b, equal_var=False)
        low, high = expected.confidence_interval(0.95)
        found = welch(a.tolist(), b.tolist())
        assert found.p == pytest.approx(float(expected.pvalue))
        assert (found.low, found.high) == pytest.approx((float(low), float(high)))


def test_holm_counts_the_rows_that_are_judged() -> None:
    first = grid_of_cuts()
    second = changed(first, accuracy=lambda c: c.accuracy - 0.01 * (c.seed + 1) * (c.cut == "layer1.1"))
    found = between(first, second)
    judged = [match for match in found.matches if match.adjusted is not None]
    assert len(judged) == 2
    assert len(found.matches) - len(judged) == [match.verdict for match in found.matches].count("equal")
    assert max(match.adjusted or 0 for match in judged) >= max(match.gap.p or 0 for match in judged)


def test_what_differs_in_the_spec_is_named_once_where_all_rows_share_it() -> None:
    first = grid_of_cuts()
    recipes = {"short": {"epochs": 12, "lr": 0.25}, "long": {"epochs": 20}}
    found = between(first, other_study(first, recipes=recipes))
    (only,) = found.shared
    assert (only.what, only.second) == ("recipe.lr", "0.25")
    assert all(match.differs == () for match in found.matches)


def test_what_differs_in_one_row_is_named_there_also_through_its_source() -> None:
    first = seven_rows()
    sources = {
        name: source.model_dump(mode="json", exclude_defaults=True) for name, source in first.study.sources.items()
    }
    found = between(first, other_study(first, sources={**sources, "rn50": {"network": "resnet50", "stem": "imagenet"}}))
    told = {match.first: {one.what for one in match.differs} for match in found.matches}
    assert told["1 rn50 scratch"] == {"source.stem"}
    assert told["2 cut frozen"] == {"source's source.stem"}
    assert told["4 rn18 scratch"] == set()


def test_devices_and_versions_that_differ_are_named() -> None:
    versions = {"torch": "2.15.0", "torchvision": "0.29.1", "regraft": "0.1.0"}
    second = changed(seven_rows(), cost=lambda c: {**c.cost, "device": "cpu", "versions": versions})
    told = {one.what: (one.first, one.second) for one in between(seven_rows(), second).machines}
    assert told == {"device": ("NVIDIA H100", "cpu"), "versions.torch": ("2.14.1", "2.15.0")}


def test_rows_that_only_one_side_has_are_told() -> None:
    first = grid_of_cuts()
    less = dataclasses.replace(first, cells=[c for c in first.cells if c.cut != "layer1.1"])
    found = between(first, less)
    assert [len(rows) for rows in found.only] == [2, 0]
    assert "Only the first has scores of 2 rows" in " ".join(found.summary())


def test_rows_can_be_matched_by_what_they_are() -> None:
    first = grid_of_cuts()
    rows = [
        {"name": f"renamed {i}", "source": "rn18", "cut": row.cut, "method": row.method, "target": row.target,
         "recipe": "short"}
        for i, row in enumerate(first.study.all_rows())
    ]  # fmt: skip
    renamed = dict(zip([row.name for row in first.study.all_rows()], [row["name"] for row in rows], strict=True))
    second = changed(other_study(first, grid=[], rows=rows), row=lambda c: renamed[c.row])
    found = between(first, second, by=("source", "cut", "method", "target"))
    assert {(match.first, match.second) for match in found.matches} == set(renamed.items())
    assert {match.verdict for match in found.matches} == {"equal"}


def test_matches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'method'"):
        between(grid_of_cuts(), grid_of_cuts(), by=("methd",))
    with pytest.raises(StudyError, match="have the same source"):
        between(grid_of_cuts(), grid_of_cuts(), by=("source",))
    with pytest.raises(StudyError, match="no scored row of cuts has the same name as one of cifar"):
        between(grid_of_cuts(), seven_rows())
    one = dataclasses.replace(seven_rows(), cells=[cell(row="1 rn50 scratch")])
    assert len(between(one, one, by=tuple(BY)).matches) == 1


def test_how_a_row_was_made_names_the_row_that_trained_its_source() -> None:
    study = seven_rows().study
    told = made_by(study, {row.name: row for row in study.all_rows()}, "2 cut frozen", usual=False)
    assert told["source's source.network"] == "resnet50"
    assert told["source's recipe.epochs"] == told["recipe.epochs"] == "12"
    assert told["target.data"] == "cifar100"


def test_a_difference_is_told_with_its_interval_and_what_it_rests_on() -> None:
    first = grid_of_cuts()
    paired = between(first, changed(first, accuracy=lambda c: c.accuracy - 0.01 - 0.002 * c.seed)).matches[0]
    assert re.fullmatch(r"\+1\.20 points \[\+0\.70, \+1\.70\] \(95 % paired t, n = 3 seeds\)", paired.text())
    less = dataclasses.replace(first, cells=[c for c in first.cells if c.seed < 2])
    fewer = changed(less, train_images=lambda c: c.train_images - 1)
    assert (
        between(first, fewer).matches[0].text().endswith("(95 % Welch t; not paired: other images, n = 3 and 2 seeds)")
    )
    one = grid_of_cuts(seeds=(0,))
    same, other = (changed(one, accuracy=lambda c: c.accuracy - 0.1, train_images=lambda c, n=n: c.train_images + n)
                   for n in (0, 1))  # fmt: skip
    assert between(one, same).matches[0].text() == "+10.00 points (no interval: fewer than two seeds in common)"
    assert between(one, other).matches[0].text() == "+10.00 points (no interval: other images, and one seed)"


def test_the_summary_tells_what_all_rows_differ_in_and_what_computed_them() -> None:
    first = grid_of_cuts()
    second = other_study(first, recipes={"short": {"epochs": 12, "lr": 0.25}, "long": {"epochs": 20}})
    seeds = {"mechanism": {"mechanism": "seeds", "seeds": 3}}
    said = between(first, changed(second, cost=lambda c: {**c.cost, **seeds, "threads": 2 + c.seed})).summary()
    assert said[1:] == [
        "In all matched rows differ: recipe.lr: 0.1, 0.25.",
        "Computed differently: threads: 8, 2 and 3 and 4; mechanism: –, seeds.",
    ]


def test_samples_that_do_not_vary_differ_surely_or_not_at_all() -> None:
    assert (welch([0.5, 0.5], [0.5, 0.5, 0.5]).p, welch([0.5, 0.5], [0.4, 0.4, 0.4]).p) == (1.0, 0.0)
    rounded = welch([0.5, 0.5], [0.49, 0.49], step=0.01)  # a hundred images tell no less than a point apart
    assert rounded.low is not None
    assert rounded.low < rounded.mean


def test_fields_of_fields_are_named_one_by_one() -> None:
    first = seven_rows()
    shots = {**first.study.model_dump(mode="json")["targets"], "few": {"data": "cifar10", "episodes": {"ways": 3}}}
    rows = [
        {"name": "few", "source": "rn18", "method": "frozen", "head": {"kind": "knn", "neighbours": 3}, "target": "few"}
    ]
    study = Study.from_dict(
        {"study": "few", "sources": {"rn18": {"network": "resnet18"}}, "targets": shots, "rows": rows}
    )
    told = made_by(study, {row.name: row for row in study.all_rows()}, "few", usual=False)
    assert told["target.episodes.ways"] == "3"
    assert told["head.neighbours"] == "3"
    assert "target.episodes" not in told
    assert "target.episodes.shots" not in told  # nothing was said of them
