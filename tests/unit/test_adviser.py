"""Laws of the adviser: what it advises, and how it is judged."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from regraft.analysis.adviser import (
    AT_RANDOM,
    ELSEWHERE,
    Choice,
    Judgement,
    advice,
    advised,
    adviser_table,
    judged,
    table_lines,
)
from regraft.analysis.stats import paired_difference, t_interval
from regraft.errors import UnknownName
from regraft.learn.score_names import PROBE
from regraft.show.figures_science import advice_page, measured_by_score, regret_by_score
from regraft.study.scores import ScoreRow

CUTS = {"a": 0.5, "b": 0.7, "c": 0.8, "d": 0.6}


def choices(values: dict[str, float], target: str = "digits", seed: int = 0, among: str = "") -> dict[Choice, float]:
    return {Choice(target, seed, name, among): value for name, value in values.items()}


def of(table: list[Judgement], score: str) -> Judgement:
    return next(one for one in table if one.score == score)


def test_the_highest_score_is_advised_and_equal_ones_together() -> None:
    assert advised({"a": 1.0, "b": 3.0, "c": 2.0}) == ["b"]
    assert advised({"a": 3.0, "b": 3.0, "c": math.nan}) == ["a", "b"]
    assert advised({"a": math.nan}) == []


def test_a_score_in_the_order_of_the_accuracies_has_no_regret() -> None:
    good = judged({"s": choices({name: 10 * value for name, value in CUTS.items()})}, choices(CUTS))
    one = of(good, "s")
    assert (one.regret.mean, one.hits, one.groups, one.candidates, one.trivial) == (0.0, 1.0, 1, 4, False)
    assert one.kendall is not None and one.kendall.mean == pytest.approx(1.0)
    assert one.weighted is not None and one.weighted.mean == pytest.approx(1.0)
    bad = of(judged({"s": choices({name: -value for name, value in CUTS.items()})}, choices(CUTS)), "s")
    assert bad.regret.mean == pytest.approx(0.3)
    assert bad.kendall is not None and bad.kendall.mean == pytest.approx(-1.0)


def test_rank_correlations_are_those_of_scipy() -> None:
    scores = {"a": 3.0, "b": 1.0, "c": 4.0, "d": 3.0}
    one = of(judged({"s": choices(scores)}, choices(CUTS)), "s")
    x, y = list(scores.values()), list(CUTS.values())
    assert one.kendall is not None and one.kendall.mean == pytest.approx(stats.kendalltau(x, y).statistic)
    assert one.weighted is not None and one.weighted.mean == pytest.approx(stats.weightedtau(x, y).statistic)
    # Of six pairs, a-d is tied: (c > a, b, d) right, (b < a, b < d) wrong; over sqrt(5 * 6)
    assert one.kendall.mean == pytest.approx((3 - 2) / math.sqrt(30))


def test_equal_scores_share_the_regret() -> None:
    one = of(judged({"s": choices({"a": 1.0, "b": 2.0, "c": 2.0, "d": 0.0})}, choices(CUTS)), "s")
    assert one.regret.mean == pytest.approx(0.05)
    assert one.hits == 0.5


def test_any_candidate_is_judged_beside_every_score() -> None:
    table = judged({"s": choices(CUTS)}, choices(CUTS))
    one = of(table, AT_RANDOM)
    assert one.trivial
    assert one.kendall is None
    assert one.regret.mean == pytest.approx(0.8 - 0.65)
    assert one.hits == 0.25
    assert [entry.score for entry in table] == ["s", AT_RANDOM]  # least regret first


def test_intervals_are_over_seeds_each_the_mean_of_its_targets() -> None:
    scores: dict[Choice, float] = {}
    accuracies: dict[Choice, float] = {}
    losses = {("x", 0): 0.1, ("y", 0): 0.3, ("x", 1): 0.0, ("y", 1): 0.2, ("x", 2): 0.0, ("y", 2): 0.0}
    for (target, seed), loss in losses.items():
        scores |= choices({"a": 1.0, "b": 0.0}, target, seed)
        accuracies |= choices({"a": 0.5, "b": 0.5 + loss}, target, seed)
    one = of(judged({"s": scores}, accuracies), "s")
    assert (one.groups, one.regret.seeds) == (6, 3)
    assert one.regret.mean == pytest.approx(0.1)
    assert (one.regret.low, one.regret.high) == pytest.approx(t_interval([0.2, 0.1, 0.0]))
    assert one.kendall is not None and one.kendall.seeds == 2  # accuracies that are all equal have no order


def test_every_regret_is_compared_with_the_ridge_probes_seed_by_seed() -> None:
    scores: dict[str, dict[Choice, float]] = {"s": {}, PROBE: {}}
    accuracies: dict[Choice, float] = {}
    own, probes = [0.1, 0.0, 0.2], [0.0, 0.0, 0.3]
    for seed in range(3):
        accuracies |= choices({"a": 0.9, "b": 0.9 - own[seed], "c": 0.9 - probes[seed]}, seed=seed)
        scores["s"] |= choices({"a": 0.0, "b": 1.0, "c": 0.0}, seed=seed)
        scores[PROBE] |= choices({"a": 0.0, "b": 0.0, "c": 1.0}, seed=seed)
    table = judged(scores, accuracies)
    margin = of(table, "s").margin
    expected = paired_difference(dict(enumerate(own)), dict(enumerate(probes)))
    assert margin is not None
    assert (margin.mean, margin.low, margin.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert of(table, PROBE).margin is None
    assert of(table, AT_RANDOM).margin is not None


def test_a_single_seed_has_no_interval() -> None:
    one = of(judged({"s": choices(CUTS)}, choices(CUTS)), "s")
    assert (one.regret.low, one.regret.high, one.margin) == (None, None, None)


def test_a_score_is_judged_where_every_candidate_has_it() -> None:
    scores = choices(CUTS) | choices({**CUTS, "a": math.nan}, seed=1)
    del scores[Choice("digits", 0, "d")]
    scores |= choices(CUTS, seed=2)
    accuracies = choices(CUTS) | choices(CUTS, seed=1) | choices(CUTS, seed=2)
    table = judged({"s": scores}, accuracies)
    assert (of(table, "s").groups, of(table, AT_RANDOM).groups) == (1, 3)


def test_scores_that_tell_nothing_apart_and_groups_of_one_are_left_out() -> None:
    table = judged({"same": choices(dict.fromkeys(CUTS, 1.0)), "none": {}}, choices(CUTS))
    assert [one.score for one in table] == [AT_RANDOM]
    assert judged({"s": choices({"a": 1.0})}, choices({"a": 0.5})) == []


def test_the_best_on_other_targets_never_sees_the_target_itself() -> None:
    accuracies = choices({"a": 0.9, "b": 0.5}, "x") | choices({"a": 0.2, "b": 0.4}, "y")
    one = of(judged({}, accuracies), ELSEWHERE)
    assert one.trivial
    assert one.regret.mean == pytest.approx((0.4 + 0.2) / 2)
    alike = accuracies | choices({"a": 0.8, "b": 0.1}, "z")
    assert of(judged({}, alike), ELSEWHERE).regret.mean == pytest.approx((0.0 + 0.2 + 0.0) / 3)
    assert ELSEWHERE not in [entry.score for entry in judged({}, choices({"a": 0.9, "b": 0.5}))]


def row(source: str, cut: str, depth: float, accuracy: float | None, seed: int = 0, **scores: float) -> ScoreRow:
    return ScoreRow(
        row=f"{source} {cut}", seed=seed, source=source, cut=cut, target="digits", head="linear", optimizer="ridge",
        images=50, scores={"depth": depth, **scores}, accuracy=accuracy,
    )  # fmt: skip


ROWS = [
    row("one", "early", 0.2, 0.5, LogME=1.0), row("one", "late", 0.9, 0.8, LogME=3.0),
    row("two", "early", 0.3, 0.9, LogME=2.0), row("two", "last", 1.0, 0.6, LogME=1.5),
]  # fmt: skip


def test_cuts_are_compared_within_a_source() -> None:
    table = adviser_table(ROWS)
    assert (of(table, "LogME").groups, of(table, "LogME").candidates) == (2, 2)
    assert of(table, "LogME").regret.mean == 0.0
    assert of(table, "depth").regret.mean == pytest.approx(0.15)  # 0 for one, 0.3 for two
    assert of(table, "depth").trivial


def test_sources_are_compared_at_their_deepest_cuts() -> None:
    table = adviser_table(ROWS, by="source")
    assert of(table, "LogME").groups == 1
    assert of(table, "LogME").regret.mean == 0.0
    assert of(table, "depth").regret.mean == pytest.approx(0.2)


def test_sources_and_cuts_are_compared_together() -> None:
    table = adviser_table(ROWS, by="both")
    assert of(table, "LogME").candidates == 4
    assert of(table, "LogME").regret.mean == pytest.approx(0.1)


def test_rows_that_are_not_scored_yet_are_left_out() -> None:
    table = adviser_table([*ROWS, row("one", "middle", 0.5, None, LogME=9.0)])
    assert of(table, "LogME").regret.mean == 0.0
    assert adviser_table([row("one", "middle", 0.5, None)]) == []


def test_advice_needs_no_accuracy_and_knows_its_scores() -> None:
    rows = [*ROWS, row("one", "middle", 0.5, None, LogME=9.0)]
    assert advice(rows, "LogME") == {
        ("digits", 0, "one; linear, ridge"): ["middle"],
        ("digits", 0, "two; linear, ridge"): ["early"],
    }
    assert list(advice(rows, "depth", "both").values()) == [["two at last"]]
    with pytest.raises(UnknownName, match="LogME"):
        advice(rows, "logme")


def test_the_table_in_words_names_scores_regrets_and_their_n() -> None:
    lines = table_lines(adviser_table([*ROWS, *(row(r.source, r.cut, r.scores["depth"], 0.5, 1) for r in ROWS)]))
    assert len(lines) == 1 + 3  # LogME, depth, any candidate
    assert lines[0].split()[:3] == ["score", "regret,", "points"]
    found = next(line for line in lines if line.startswith("depth"))
    assert "trivial" in found
    assert "7.5 [" in found
    assert found.split()[-2:] == ["4", "2"]


def test_there_is_no_figure_of_advice_where_nothing_was_to_be_chosen_between() -> None:
    """A source with one cut, and rows that are not scored yet."""
    alone, unscored = ROWS[:1], [row(r.source, r.cut, r.scores["depth"], None, LogME=1.0) for r in ROWS]
    for rows in (alone, unscored, []):
        assert advice_page(rows) is None
        assert regret_by_score(adviser_table(rows)) is None
        assert measured_by_score(rows) is None
