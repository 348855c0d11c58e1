"""The answer says what the table and the comparisons say, and no more."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.analysis.table import rows_table
from regraft.spec import Study
from regraft.study.results import Cell, Missing, Results
from tests.unit.show_example import grid_of_cuts, hostile, seven_rows
from tests.unit.test_compare import results_of

RECORDS = sorted((Path(__file__).parents[2] / "docs" / "records").glob("*.json"))


def transferred(*, gap: float, rows: int = 1) -> Results:
    """Training from scratch, `rows` frozen trunks on the same images, each `gap` above the one before."""
    return results_of(
        [{"name": "scratch", "source": "random"}]
        + [{"name": f"frozen {i}", "source": "imagenet", "cut": f"c{i}", "method": "frozen"} for i in range(rows)],
        gap=gap,
    )


def test_transfer_is_compared_with_scratch_by_the_paired_interval_and_the_corrected_p() -> None:
    sentences = answer(seven_rows())
    assert sentences[0].startswith("On cifar10-50 (50 per class), “6 ImageNet, 50 per class” reaches 91.5 %")
    difference = "+32.8 points [+29.1, +36.6] (95 % paired t, n = 3 seeds)"
    verdict = (
        "more than the seeds explain, also after correction for the study's 3 comparisons (Holm-adjusted p = 0.001)"
    )
    assert sentences[0].endswith(f": transfer was worth {difference}, {verdict}.")
    assert sentences[2].startswith("1 of 8 rows raised an alarm")


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_what_is_said_of_a_recorded_studys_differences_is_what_its_comparisons_say(file: Path) -> None:
    results = Results.from_json(file)
    compared, sentences = comparisons(results), answer(results)
    assert 1 <= len(sentences) <= 4
    judged = [sentence for sentence in sentences if "the seeds" in sentence]
    assert judged
    for sentence in judged:
        a, b = re.findall("“(.*?)”", sentence)
        pair = compared.of(a, b)
        assert pair is not None
        assert pair.difference.text() in sentence
        surely = "more than the seeds explain" in sentence and "not clear" not in sentence
        assert surely == pair.clear


def test_a_single_comparison_is_not_corrected_and_not_said_to_be() -> None:
    (sentence,) = answer(transferred(gap=0.1))
    assert sentence.endswith("more than the seeds explain (p = 0.001).")
    assert "Holm" not in sentence


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.020, 0.0201, 0.0202), "more than the seeds explain, also after correction for the study's 15 comparisons"),
        (
            (0.012, 0.020, 0.025),
            "more than the seeds explain if it stood alone, but not clear after correction for the",
        ),
        ((-0.01, 0.020, 0.050), "which the seeds alone could explain (Holm-adjusted p = 1.00)"),
    ],
)
def test_a_difference_is_more_than_the_seeds_explain_only_if_clear_among_all(
    differences: tuple[float, ...], verdict: str
) -> None:
    results = transferred(gap=0.0, rows=8)
    cells: list[Cell] = []
    for c in results.cells:
        if c.row == "frozen 0":
            c = dataclasses.replace(c, accuracy=0.6 + differences[c.seed], validation_accuracy=0.9)
        elif c.row == "scratch":
            c = dataclasses.replace(c, accuracy=0.6)
        cells.append(c)
    changed = dataclasses.replace(results, cells=cells)
    pair = comparisons(changed).of("frozen 0", "scratch")
    assert pair is not None
    assert pair.family == 15
    assert verdict in answer(changed)[0]
    assert pair.clear == ("also after correction" in verdict)


def test_the_rows_are_chosen_on_validation_and_never_on_test() -> None:
    results = transferred(gap=0.05, rows=3)
    for best in ("frozen 0", "frozen 2"):
        cells = [dataclasses.replace(c, validation_accuracy=0.9 if c.row == best else 0.3) for c in results.cells]
        (sentence, *_) = answer(dataclasses.replace(results, cells=cells))
        assert f"“{best}” reaches" in sentence
        assert "the best of 3 transferred rows on validation, and “scratch”" in sentence


def test_without_validation_images_no_choice_by_them_is_claimed() -> None:
    results = transferred(gap=0.05, rows=3)
    cells = [dataclasses.replace(c, validation_accuracy=None, validation_images=0) for c in results.cells]
    (sentence, *_) = answer(dataclasses.replace(results, cells=cells))
    assert "“frozen 0” reaches" in sentence
    assert "the first of 3 transferred rows (there are no validation images to choose by)" in sentence


def test_freezing_is_told_by_the_pair_that_differs_most_and_how_many_are_clear() -> None:
    results = grid_of_cuts()
    sentence = answer(results)[1]
    assert sentence.startswith("Fine-tuning “rn18 | layer")
    assert "changed accuracy, the most of 4 such pairs: +8.0 points" in sentence
    assert sentence.endswith("(Holm-adjusted p < 0.001); 4 of the 4 are clear.")


def test_the_highest_and_the_lowest_cut_are_described_and_the_steps_between_cuts_judged() -> None:
    rows = [{"name": f"{i}", "source": "imagenet", "cut": f"c{i}", "method": "frozen"} for i in range(4)]
    clear, noisy = answer(results_of(rows, gap=0.1))[1], answer(results_of(rows, gap=0.001))[1]
    for sentence in (clear, noisy):
        assert sentence.startswith("Of 4 cuts of imagenet (frozen, t), c")
        assert sentence.count("(95 % t, n = 3 seeds)") == 2
    assert clear.endswith("of the 3 steps from one cut to the next 3 are clear after correction for the study's 3 "
                          "comparisons.")  # fmt: skip
    assert "of the 3 steps from one cut to the next 0 are clear" in noisy
    single = answer(results_of(rows, seeds=(0,)))[1]
    assert "with fewer than two common seeds no step between cuts can be judged" in single


def test_the_original_figures_reached_are_counted_with_n_and_with_the_whole_interval() -> None:
    assert answer(seven_rows())[1] == (
        "6 of the 6 rows with a figure in the original study reach it (means over n = 3 seeds); "
        "6 of them with the whole 95 % interval."
    )
    results, name = seven_rows(), "1 rn50 scratch"
    (summary,) = [row.summary for row in rows_table(results) if row.name == name]
    assert summary is not None
    fields = results.study.model_dump(mode="json", exclude_defaults=True)
    for row in fields["rows"]:
        if row["name"] == name:
            row["original"] = summary.mean - 1e-6  # reached by the mean, not by the whole interval
    raised = dataclasses.replace(results, study=Study.from_dict(fields))
    assert "6 of the 6 rows" in answer(raised)[1]
    assert "; 5 of them with the whole" in answer(raised)[1]
    single = dataclasses.replace(results, cells=[c for c in results.cells if c.seed == 0])
    assert "rows with a figure in the original study reach it (n = 1 seed)." in answer(single)[1]


def test_rows_with_an_alarm_are_left_out() -> None:
    assert not any("5 rn50" in sentence for sentence in answer(seven_rows()))


def test_it_says_when_it_cannot_tell() -> None:
    sentences = answer(grid_of_cuts(seeds=(0,)))
    assert "cannot say what transfer was worth" in sentences[0]
    assert "no interval can be given" in sentences[1]
    assert "one seed only" in sentences[2]


def test_a_study_without_a_score_has_an_answer_too() -> None:
    results = seven_rows()
    gone = [Missing(row.name, 0, "no data") for row in results.study.all_rows()]
    sentences = answer(dataclasses.replace(results, cells=[], missing=gone))
    assert sentences == ["No row of this study has a score to rely on.", "8 cells have no score."]


def test_at_most_four_sentences_and_none_with_an_interval_but_without_n() -> None:
    recorded = [Results.from_json(file) for file in RECORDS]
    made = [seven_rows(), grid_of_cuts(), hostile(), grid_of_cuts(seeds=(0, 1)), transferred(gap=0.1, rows=3)]
    for results in (*made, *recorded):
        sentences = answer(results)
        assert 1 <= len(sentences) <= 4
        for sentence in sentences:
            intervals = re.findall(r"\[[+-]?\d+\.\d, [+-]?\d+\.\d\]", sentence)
            assert bool(intervals) <= ("n = " in sentence), sentence
