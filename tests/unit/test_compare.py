"""Which pairs are compared, by rule, and what is said of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from regraft.analysis.compare import KINDS, RULES, Comparison, Transfer, comparisons, p_text
from regraft.analysis.stats import holm, paired_difference
from regraft.spec import Study
from regraft.spec.tuning import told
from regraft.study.results import Cell, Results
from tests.unit.show_example import cell, grid_of_cuts, seven_rows

QUICKSTART = Path(__file__).parents[2] / "docs" / "records" / "quickstart.json"
SOURCES = {
    "random": {"network": "resnet18"},
    "imagenet": {"network": "resnet18", "weights": "pretrained"},
    "other": {"network": "resnet18", "weights": "pretrained:other"},
    "probed": {"run": "probe"},
}


def results_of(rows: Sequence[Mapping[str, object]], seeds: tuple[int, ...] = (0, 1, 2), gap: float = 0.05) -> Results:
    """A study of these rows on CIFAR-10; each row `gap` above the one before, its seeds apart from each other."""
    used = {row["source"] for row in rows}
    study = Study(
        study="made", seeds=seeds, targets={"t": {"data": "cifar10"}}, recipes={"short": {}, "long": {}, "both": {}},
        sources={name: source for name, source in SOURCES.items() if name in used},
        rows=[{"target": "t", "recipe": [] if row.get("head") == "prototype" else ["short"], **row} for row in rows],
    )  # fmt: skip
    weights = {"random": "random", "imagenet": "pretrained", "other": "pretrained", "probed": "probe"}
    cells = [
        cell(row=row.name, seed=seed, source=row.source, network="resnet18", weights=weights[row.source],
             cut=row.cut or "penultimate", method=told(row.method, row.tuning), head=row.head.label, target="t",
             accuracy=0.5 + gap * i + 0.003 * ((seed * (i + 2)) % 5))
        for i, row in enumerate(study.all_rows()) for seed in seeds
    ]  # fmt: skip
    return Results(study, cells, [], len(cells))


def pairs(results: Results) -> list[tuple[str, str, str]]:
    return [(pair.kind, pair.a, pair.b) for pair in comparisons(results).family]


def test_every_kind_has_its_rule_and_words() -> None:
    assert list(RULES) == list(KINDS)


def test_transfer_is_compared_with_scratch_on_the_same_images() -> None:
    got = pairs(seven_rows())
    assert ("scratch", "6 ImageNet, 50 per class", "7 rn50, 50 per class") in got
    assert ("scratch", "2 cut frozen", "4 rn18 scratch") in got  # both all images of cifar100
    assert ("scratch", "3 cut fine-tuned", "1 rn50 scratch") in got
    assert len([pair for pair in got if pair[0] == "scratch"]) == 3


def test_scratch_is_of_the_same_network_or_else_the_best_on_validation_never_on_test() -> None:
    rows = [{"name": "a", "source": "random"}, {"name": "b", "source": "random", "head": "mlp"},
            {"name": "tuned", "source": "imagenet"}]  # fmt: skip
    results = results_of(rows)
    for better, worse in (("a", "b"), ("b", "a")):
        held = {better: 0.9, worse: 0.2, "tuned": 0.5}
        cells = [dataclasses.replace(c, validation_accuracy=held[c.row]) for c in results.cells]
        assert ("scratch", "tuned", better) in pairs(dataclasses.replace(results, cells=cells))
    other = [dataclasses.replace(c, network="resnet50") if c.row == "b" else c for c in results.cells]
    other = [dataclasses.replace(c, validation_accuracy=0.9 if c.row == "b" else 0.2) for c in other]
    assert ("scratch", "tuned", "a") in pairs(dataclasses.replace(results, cells=other))


def test_the_best_of_both_kinds_on_validation_are_compared_whatever_their_networks() -> None:
    rows = [
        {"name": "a", "source": "random"},
        {"name": "b", "source": "random", "head": "mlp"},
        {"name": "tuned", "source": "imagenet"},
        {"name": "probe", "source": "imagenet", "method": "frozen"},
    ]
    results = results_of(rows)
    held = {"a": 0.2, "b": 0.9, "tuned": 0.5, "probe": 0.6}
    cells = [
        dataclasses.replace(c, validation_accuracy=held[c.row], network="resnet50" if c.row == "b" else "resnet18")
        for c in results.cells
    ]
    found = comparisons(dataclasses.replace(results, cells=cells))
    scratch = [(pair.a, pair.b) for pair in found.family if pair.kind == "scratch"]
    assert scratch == [("tuned", "a"), ("probe", "a"), ("probe", "b")]
    assert found.transfers == (Transfer("probe", "b", among=2, validated=True),)


def test_recipes_for_the_same_head_are_compared_with_the_first() -> None:
    rows: list[dict[str, object]] = [
        {"name": "ridge", "source": "imagenet", "method": "frozen", "recipe": ["short"]},
        {"name": "logistic", "source": "imagenet", "method": "frozen", "recipe": ["long"]},
        {"name": "chosen", "source": "imagenet", "method": "frozen", "recipe": ["short", "long"]},
        {"name": "ridge again", "source": "imagenet", "method": "frozen", "recipe": ["short"]},
        {"name": "mlp", "source": "imagenet", "method": "frozen", "head": "mlp", "recipe": ["long"]},
    ]
    assert pairs(results_of(rows)) == [
        ("head", "mlp", "logistic"),  # the linear head with the same recipe
        ("recipe", "logistic", "ridge"),
        ("recipe", "chosen", "ridge"),
    ]


def test_one_row_stands_opposite_that_of_the_same_recipes_or_else_the_best_on_validation() -> None:
    rows: list[dict[str, object]] = [
        {"name": f"{source} {method} {recipe}", "source": source, "method": method, "recipe": [recipe]}
        for source in ("random", "imagenet", "other") for method in ("frozen", "finetune")
        for recipe in ("short", "long")
    ]  # fmt: skip
    got = pairs(results_of(rows))
    for kind in ("weights", "source", "frozen"):
        own = [(a.rsplit(" ", 1), b.rsplit(" ", 1)) for name, a, b in got if name == kind]
        assert own
        assert all(a[-1] == b[-1] for a, b in own)
    assert len([pair for pair in got if pair[0] == "frozen"]) == 6
    results = results_of([*rows[:2], {**rows[2], "name": "tuned", "recipe": ["both"]}])
    for best in ("random frozen short", "random frozen long"):
        cells = [dataclasses.replace(c, validation_accuracy=0.9 if c.row == best else 0.3) for c in results.cells]
        assert ("frozen", "tuned", best) in pairs(dataclasses.replace(results, cells=cells))


def test_without_a_linear_head_the_first_one_stands_for_it() -> None:
    heads: tuple[object, ...] = ("prototype", {"kind": "knn", "neighbours": 3}, {"kind": "knn", "neighbours": 9})
    rows = [
        {"name": name, "source": "imagenet", "method": "frozen", "head": head, "recipe": []}
        for name, head in zip(("means", "three", "nine"), heads, strict=True)
    ]
    assert pairs(results_of(rows)) == [("head", "three", "means"), ("head", "nine", "means")]


def test_the_pairs_of_a_shipped_study_are_about_as_many_as_its_rows() -> None:
    study = Study.from_yaml("heads")  # five kinds of head, three recipes for the linear one, two budgets, episodes
    sources = {"random": "random", "trained on 0-4": "the source, trained on 0-4"}
    cells = [
        cell(row=row.name, seed=seed, source=row.source, weights=sources[row.source], network="shufflenet",
             cut=row.cut or "penultimate", method=row.method, head=row.head.label, target=row.target, classes=5,
             data="digits", budget=study.targets[row.target].budget, accuracy=0.6 + 0.01 * i + 0.002 * seed)
        for i, row in enumerate(study.all_rows()) for seed in (0, 1, 2)
    ]  # fmt: skip
    got = pairs(Results(study, cells, [], 0))
    assert 15 <= len(got) <= len(study.all_rows())
    for budget in ("5 per class", "20 per class"):
        own = [(kind, a.partition(", ")[2], b.partition(", ")[2]) for kind, a, b in got if a.startswith(f"{budget}, ")]
        assert ("recipe", "linear head by SGD", "linear head by ridge") in own
        assert ("head", "linear grid-2 head by ridge", "linear head by ridge") in own
        assert len([pair for pair in own if pair[0] == "head"]) == 5


def test_a_comparison_is_found_either_way_round() -> None:
    found = comparisons(seven_rows())
    pair = found.family[0]
    assert found.of(pair.a, pair.b) == pair
    back = found.of(pair.b, pair.a)
    assert back is not None
    assert (back.a, back.b, back.adjusted, back.clear) == (pair.b, pair.a, pair.adjusted, pair.clear)
    assert (back.difference.mean, back.difference.low) == (-pair.difference.mean, -pair.difference.high)
    assert found.of(pair.a, "no such row") is None


def test_frozen_is_compared_with_fine_tuned_and_cuts_with_their_neighbours() -> None:
    got = pairs(grid_of_cuts())
    cuts = ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    name = "rn18 | {} | {} | linear | cifar10"
    assert [pair for pair in got if pair[0] == "frozen"] == [
        ("frozen", name.format(cut, "finetune"), name.format(cut, "frozen")) for cut in cuts
    ]
    assert [pair for pair in got if pair[0] == "cut"] == [
        ("cut", name.format(later, method), name.format(cut, method))
        for method in ("frozen", "finetune")
        for cut, later in pairwise(cuts)
    ]
    assert len(got) == 10


def test_neighbours_follow_the_depth_where_it_is_known() -> None:
    cuts = {"layer3": 0.7, "layer1": 0.2, "layer2": 0.4}
    results = results_of([{"name": c, "source": "imagenet", "cut": c, "method": "frozen"} for c in cuts])
    deep = [dataclasses.replace(c, depth=cuts[c.cut]) for c in results.cells]
    assert pairs(dataclasses.replace(results, cells=deep)) == [
        ("cut", "layer2", "layer1"),
        ("cut", "layer3", "layer2"),
    ]


def test_sources_heads_and_methods_are_each_compared_alone() -> None:
    rows: list[dict[str, object]] = [
        {"name": "random features", "source": "random", "method": "frozen"},
        {"name": "probe", "source": "imagenet", "method": "frozen"},
        {"name": "other probe", "source": "other", "method": "frozen"},
        {"name": "prototypes", "source": "imagenet", "method": "frozen", "head": "prototype"},
        {"name": "tuned", "source": "imagenet"},
        {"name": "lp-ft", "source": "probed", "head": {"kind": "linear", "start": "source"}},
    ]
    assert pairs(results_of(rows)) == [
        ("weights", "probe", "random features"),
        ("weights", "other probe", "random features"),
        ("source", "probe", "other probe"),
        ("method", "lp-ft", "tuned"),
        ("frozen", "tuned", "probe"),
        ("head", "prototypes", "probe"),
    ]
    without = [row for row in rows if row["name"] != "tuned"]
    assert ("method", "lp-ft", "probe") in pairs(results_of(without))


def test_a_method_is_compared_with_its_usual_form_before_fine_tuning() -> None:
    rows: list[dict[str, object]] = [
        {"name": "frozen", "source": "imagenet", "method": "frozen"},
        {"name": "leak", "source": "imagenet", "method": "frozen", "tuning": {"norms": "target"}},
        {"name": "tuned", "source": "imagenet"},
        {"name": "tuned, norms still", "source": "imagenet", "tuning": {"norms": "source"}},
        {"name": "l2-sp", "source": "imagenet", "method": "l2-sp"},
        {"name": "l2-sp, strong", "source": "imagenet", "method": "l2-sp", "tuning": {"pull": 1.0}},
        {"name": "lora 4", "source": "imagenet", "method": "lora", "tuning": {"rank": 4}},
    ]
    assert pairs(results_of(rows)) == [
        ("method", "leak", "frozen"),
        ("method", "tuned, norms still", "tuned"),
        ("method", "l2-sp", "tuned"),
        ("method", "l2-sp, strong", "l2-sp"),
        ("method", "lora 4", "tuned"),
        ("frozen", "tuned", "frozen"),
    ]


def test_layer_transfer_compares_the_arms_of_yosinski() -> None:
    """B n B with the base (co-adaptation), A n B with B n B (specificity), + with frozen, random with trained."""
    study = Study.from_yaml("yosinski-cpu")
    cells = [
        cell(row=row.name, seed=seed, source=row.source, weights=study.sources[row.source].run or "random",
             network="resnet18", cut=row.cut or "penultimate", method=row.method, head=row.head.label,
             target=row.target, classes=5, budget=study.targets[row.target].budget,
             accuracy=0.6 + 0.01 * i + 0.002 * seed)
        for i, row in enumerate(study.all_rows()) for seed in (0, 1, 2)
    ]  # fmt: skip
    got = pairs(Results(study, cells, [], 0))
    assert ("scratch", "B layer1.1 B, frozen", "base B") in got
    assert ("source", "A layer1.1 B, frozen", "B layer1.1 B, frozen") in got
    assert ("frozen", "A layer1.1 B, finetune", "A layer1.1 B, frozen") in got
    assert ("weights", "A layer1.1 B, frozen", "random layer1.1 B, frozen") in got
    assert not any("base A" in pair for pair in got)  # other classes


def test_no_pair_is_compared_twice_and_none_with_other_images() -> None:
    results = Results.from_json(QUICKSTART)
    classes = {name: target.classes for name, target in results.study.targets.items()}
    images = {c.row: (c.data, c.budget, classes[c.target]) for c in results.cells}
    found = comparisons(results).family
    assert len({frozenset((pair.a, pair.b)) for pair in found}) == len(found) > 20
    assert all(images[pair.a] == images[pair.b] for pair in found)


def test_p_is_corrected_over_the_whole_family() -> None:
    results = Results.from_json(QUICKSTART)
    found = comparisons(results).family
    assert [pair.adjusted for pair in found] == holm([pair.difference.p for pair in found])
    assert all(pair.family == len(found) for pair in found)
    assert all(pair.clear == (pair.adjusted < 0.05) for pair in found)
    assert all(pair.verdict == ("clear" if pair.clear else "not clear") for pair in found)
    by_row: dict[str, dict[int, float]] = {}
    for c in results.cells:
        by_row.setdefault(c.row, {})[c.seed] = c.accuracy
    step = 1 / results.cells[-1].test_images
    for pair in found:
        assert pair.difference == paired_difference(by_row[pair.a], by_row[pair.b], step)
        assert pair.difference.n == 3


def test_what_is_clear_alone_may_not_be_clear_among_many() -> None:
    rows = [{"name": f"{i}", "source": "imagenet", "cut": f"c{i}", "method": "frozen"} for i in range(8)]
    noisy = results_of(rows, gap=0.01)
    found = comparisons(noisy).family
    assert sum(pair.difference.p < 0.05 for pair in found) == 4
    assert not any(pair.clear for pair in found)


def test_rows_with_an_alarm_are_left_out_and_counted() -> None:
    found = comparisons(seven_rows())
    assert not any("5 rn50, 10 %" in (pair.a, pair.b) for pair in found.family)
    assert "1 row with an alarm left out" in found.note(3)


def test_pairs_without_two_common_seeds_are_counted_not_judged() -> None:
    found = comparisons(grid_of_cuts(seeds=(0,)))
    assert (found.family, found.too_few) == ((), 10)
    assert {kind for kind, _, _ in found.unjudged} == {"frozen", "cut"}
    assert "10 more have fewer than two seeds in common" in found.note(0)


def test_the_pairs_shown_are_of_every_kind_and_counted() -> None:
    found = comparisons(Results.from_json(QUICKSTART))
    shown = found.shown(8)
    assert len(shown) == 8
    assert {pair.kind for pair in shown} == {pair.kind for pair in found.family}
    for kind in KINDS:
        left = [pair.adjusted for pair in found.family if pair.kind == kind and pair not in shown]
        assert all(pair.adjusted <= min(left, default=1.0) for pair in shown if pair.kind == kind)
    clear = sum(pair.clear for pair in found.family)
    said = f"{len(found.family)} pairs were compared, {clear} of them clear; p is adjusted after Holm over all"
    assert found.note(8).startswith(said)
    assert set(found.shown(1000)) == set(found.family)
    assert "shown are" not in found.note(len(found.family))


def test_a_comparison_says_difference_n_p_family_and_verdict() -> None:
    pair: Comparison = comparisons(grid_of_cuts()).family[0]
    text = pair.text()
    assert text.startswith("“rn18 | layer1.1 | finetune | linear | cifar10” − “rn18 | layer1.1 | frozen")
    assert "+8.0 points" in text
    assert "(95 % paired t, n = 3 seeds), Holm-adjusted p < 0.001 of 10: clear" in text
    assert pair.seeds_needed().seeds == 2


@pytest.mark.parametrize(("p", "text"), [(0.0, "< 0.001"), (0.0124, "= 0.012"), (0.25, "= 0.25"), (1.0, "= 1.00")])
def test_p_is_written_with_what_it_can_tell(p: float, text: str) -> None:
    assert p_text(p) == text


def test_a_study_without_scores_has_no_comparisons() -> None:
    found = comparisons(dataclasses.replace(seven_rows(), cells=[]))
    assert found.family == ()
    assert found.shown() == ()


def test_cells_in_any_order_give_the_same_pairs() -> None:
    results = grid_of_cuts()
    turned: list[Cell] = results.cells[::-1]
    assert pairs(dataclasses.replace(results, cells=turned)) == pairs(results)
