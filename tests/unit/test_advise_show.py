"""Advice as sentences and as a page: whole, safe with hostile names, and honest about what cannot be told."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from regraft.analysis.extrapolate import Extrapolation, Forecast, Point
from regraft.analysis.findings import (
    Candidate,
    ClassGain,
    Confused,
    Doubted,
    Findings,
    NextLabels,
    Pictures,
    Problem,
    expected_accuracy,
)
from regraft.analysis.mislabelled import SelfTest
from regraft.show import figures_advice, figures_base
from regraft.show.advice import advice_html, curve_text, sentences, short_html, text_lines, write_advice

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202eevil"


def findings() -> Findings:
    points = tuple(Point(n, accuracy, 0.01, 5) for n, accuracy in ((100.0, 0.6), (200.0, 0.7), (400.0, 0.78)))
    forecasts = (Forecast(2.0, 800.0, 0.83, 0.79, 0.87), Forecast(4.0, 1600.0, 0.87, 0.8, 0.93))
    tried = tuple(
        Candidate("mobilenet_v2 at 224 px", cut, "frozen", "linear", "ridge 1", accuracy, 0.02, 5, 3.0)
        for cut, accuracy in (("features.15", 0.79), ("all but the classifier", 0.76), (HOSTILE, 0.6))
    )
    gains = (ClassGain(HOSTILE, 160, 0.3, 0.23, 0.37, 0.02, 160), ClassGain("b", 160, 0.1, 0.06, 0.16, 0.01, 160))
    return Findings(
        pictures=Pictures(HOSTILE, (HOSTILE, "b"), (200, 200), 320, 80, False, 128,
                          (Problem("1 file cannot be read", (HOSTILE,), serious=True), Problem("odd", ()))),
        tried=tried, chosen=tried[0], expected=expected_accuracy([0.8, 0.79], 80),
        extrapolation=Extrapolation(points, forecasts, (0.95, 3.0, 0.5), ""), answered=0.78,
        confused=(Confused(HOSTILE, "b", 20, 160, 0.08, 0.19),),
        doubted=(Doubted(HOSTILE, "b", HOSTILE, 0.02, -0.9),), wrong_labels=3.0,
        self_test=SelfTest(planted=30, found=24, doubted=40, first=20),
        next=NextLabels(gains, True, ((HOSTILE, 0.01),)),
        notes=(HOSTILE,), seconds=100.0, minutes=5.0, predictor_file=None, trained_on=400, thumbnails=(b"",),
    )  # fmt: skip


def test_names_of_files_and_classes_can_do_nothing_in_page_terminal_and_figure() -> None:
    found = findings()
    page, notebook = advice_html(found), short_html(found)
    for text in (page, notebook):
        assert "<script>alert" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "&lt;script&gt;alert" in page
    assert not any(bad in line for line in text_lines(found) for bad in ("\x1b", "\u202e", "\n"))
    for make in (figures_advice.label_curve, figures_advice.candidates):
        chart = make(found)
        assert chart is not None
        made = json.dumps(figures_base.spec(chart), ensure_ascii=False)
        assert "\x1b" not in made
        assert "\u202e" not in made


def test_every_number_comes_with_its_interval_and_count() -> None:
    said = " ".join(sentences(findings()))
    changed = "80 % came to be in doubt"
    for part in (
        "[",
        "80 held-back",
        "2 seeds",
        "n = 5 seeds",
        "83.0 % [79.0, 87.0] with 2 times",
        changed,
    ):
        assert part in said


def test_what_cannot_be_told_is_said_so() -> None:
    found = findings()
    silent = replace(found, extrapolation=replace(found.extrapolation, forecasts=(), reason="too few budgets"))
    assert curve_text(silent) == "What more labels would bring cannot be told: too few budgets."
    unclear = replace(found, next=replace(found.next, clear=False))
    assert "No class stands out" in advice_html(unclear)


@pytest.mark.parametrize(
    ("accuracies", "trained"),
    [([0.8], "one training"), ([0.8, 0.8, 0.8], "3 seeds, which gave the same answers"),
     ([0.7, 0.9], "2 seeds, deviation 14.1 points")],
)  # fmt: skip
def test_it_is_said_what_an_expected_accuracy_rests_on(accuracies: list[float], trained: str) -> None:
    expected = expected_accuracy(accuracies, 100)
    assert f"Wilson of 100 held-back pictures, joined with what training varies ({trained})" in expected.how()
    assert expected.text() == f"80.0 % [{100 * expected.low:.1f}, {100 * expected.high:.1f}]"


def test_nothing_wrong_is_told_as_nothing_to_do() -> None:
    found = findings()
    right = (ClassGain("a", 160, 0.0, 0.0, 0.02, 0.0, 160),)
    clean = replace(found, doubted=(), self_test=None, next=NextLabels(right, False, ()))
    said = sentences(clean)
    assert "No label is in doubt." in said
    assert "No class would gain: every training picture was answered rightly by a head that had not seen it." in said
    untested = " ".join(sentences(replace(found, self_test=None)))
    assert "1 of 320 training pictures have a label in doubt" in untested
    assert "changed on purpose" not in untested


@pytest.mark.parametrize("make", [figures_advice.label_curve, figures_advice.candidates])
def test_there_is_no_figure_of_nothing(make) -> None:  # type: ignore[no-untyped-def]
    found = findings()
    empty = replace(found, tried=found.tried[:1], extrapolation=replace(found.extrapolation, points=()))
    assert make(empty) is None
    assert "data:image/svg" not in advice_html(empty)


def test_a_folder_without_doubts_says_no_more_than_was_found(tmp_path: Path) -> None:
    """All answered rightly, nothing unlabelled: no heading stands above nothing, and no link leads nowhere."""
    found = findings()
    clean = replace(
        found, confused=(), doubted=(), thumbnails=(), notes=(), tried=found.tried[:1],
        extrapolation=replace(found.extrapolation, points=()), next=replace(found.next, classes=(), pictures=()),
        pictures=replace(found.pictures, problems=(), own_test=True), predictor_file="best.regraft",
    )  # fmt: skip
    lines = text_lines(clean)
    assert not [line for line in lines if line.endswith(":") or line.startswith(("  ", "!", "- "))]
    assert not [line for line in lines if "Most confused" in line]
    for said in ("No label is in doubt.", "No class would gain", "(its own test part)",
                 "trained on 400 pictures: best.regraft"):  # fmt: skip
        assert [line for line in lines if said in line], said
    page = write_advice(clean, tmp_path / "new" / "advice.html", command="regraft advise <b>").read_text("utf-8")
    assert page == advice_html(clean, command="regraft advise <b>")
    assert "regraft advise &lt;b&gt;" in page
    assert "Confused classes" not in page
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))


def test_findings_are_plain_data() -> None:
    plain = {**asdict(findings()), "thumbnails": []}
    assert json.loads(json.dumps(plain))["expected"]["test_images"] == 80
