"""Parts of the report: worst errors, classes, cost, colours; and what a page may not tell."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regraft.analysis.stats import wilson_interval
from regraft.data import load_dataset
from regraft.show import page
from regraft.show.report import report_html
from regraft.show.sections import brief
from regraft.show.sections_classes import BEST, WORST, class_table
from regraft.show.sections_costs import provenance, rows_costs, spent, stages_table
from regraft.show.sections_errors import MOST_BYTES, SHOWN, SIDE, thumbnail, worst_mistakes
from regraft.spec import Study
from regraft.study.answers import score_key
from regraft.study.results import Results
from regraft.study.store import Payload, Store, key_of
from tests.unit.show_example import cell, seven_rows

DIGITS = tuple(map(str, range(10)))
WRONG = {"best": [*range(10)], "other": [*range(5, 15)], "third": [0, 1, 5]}  # row -> images that it is wrong about
STUDY: dict[str, Any] = {
    "study": "two", "seeds": [0], "sources": {"random": {"network": "resnet18", "image_size": 32}},
    "targets": {"few": {"data": "digits", "per_class": 10, "test_images": 30}}, "recipes": {"short": {"epochs": 2}},
    "rows": [{"name": name, "source": "random", "target": "few", "recipe": "short"} for name in WRONG],
}  # fmt: skip


def scored(tmp_path: Path, *, confident: bool, digest: str = "") -> Results:
    """Three rows on 30 test images, their answers in a store."""
    store, cells = Store(tmp_path / "store"), []
    digest = digest or load_dataset("digits").digest
    for number, (row, wrong) in enumerate(WRONG.items()):
        spec = {"stage": "fit", "version": 2, "data": {"digest": digest}, "trunk": {"random": 0}, "row": row}
        store.cached(spec, lambda _: Payload({}))
        correct = torch.ones(30, dtype=torch.bool)
        correct[wrong] = False
        tensors = {"positions": torch.arange(30), "predicted": torch.full((30,), 3), "correct": correct}
        if confident:
            tensors["confidence"] = torch.arange(30) / 30
        key = key_of(spec)
        answered = Payload({}, tensors)
        score = {"stage": "score", "version": 2, "fit": key, "test": {"images": 30}}
        store.cached(score, lambda _, answered=answered: answered)  # type: ignore[misc]
        assert store.has(score_key(key, 30))
        cells.append(cell(row=row, accuracy=2 / 3, validation_accuracy=0.9 - 0.1 * number, key=key, target="few",
                          data="digits", test_images=30, class_names=DIGITS, source="random"))  # fmt: skip
    return Results(Study(**STUDY), cells, [], len(cells), store)


def test_the_worst_errors_are_the_best_rows_and_the_surest_come_first(tmp_path: Path) -> None:
    (found,) = worst_mistakes(scored(tmp_path, confident=True))
    assert (found.row, found.wrong, found.test_images, found.by_confidence) == ("best", 10, 30, True)
    assert [one.position for one in found.shown] == list(range(9, -1, -1))
    assert [one.confidence for one in found.shown] == pytest.approx([n / 30 for n in range(9, -1, -1)])
    assert all(one.predicted == "3" for one in found.shown)


def test_without_confidences_those_that_most_runs_got_wrong_come_first_but_not_those_that_all_did(
    tmp_path: Path,
) -> None:
    (found,) = worst_mistakes(scored(tmp_path, confident=False))
    assert not found.by_confidence
    assert [one.position for one in found.shown] == [0, 1, 6, 7, 8, 9, 2, 3, 4, 5]
    assert [one.wrong for one in found.shown] == [2] * 6 + [1] * 3 + [3]
    assert {one.asked for one in found.shown} == {3}


def test_a_true_class_is_told_only_where_another_run_was_right(tmp_path: Path) -> None:
    (found,) = worst_mistakes(scored(tmp_path, confident=True))
    assert {one.position: one.true for one in found.shown} == {n: "" if n == 5 else "3" for n in range(10)}
    assert [one.position for one in found.shown if "its class is known from no run" in one.text] == [5]


def test_the_pictures_are_the_test_images_at_their_positions(tmp_path: Path) -> None:
    (found,) = worst_mistakes(scored(tmp_path, confident=True))
    images = load_dataset("digits").test.images
    for one in found.shown:
        png = base64.b64decode(one.picture.removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.array(Image.open(io.BytesIO(png))), images[one.position][:, :, 0])


def test_pictures_of_data_that_has_changed_since_are_left_out(tmp_path: Path) -> None:
    assert worst_mistakes(scored(tmp_path, confident=True, digest="another")) == []
    assert worst_mistakes(replace(scored(tmp_path, confident=True), store=None)) == []


def test_a_report_shows_them_with_alternative_texts(tmp_path: Path) -> None:
    html = report_html(scored(tmp_path, confident=True))
    assert html.count('src="data:image/png') == 10 == len(re.findall(r'alt="test image \d+: taken for 3 \(', html))
    assert "A test label is never\n    read for this" in html


def test_all_thumbnails_together_stay_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    png = thumbnail(noise)
    assert max(Image.open(io.BytesIO(png)).size) == SIDE
    assert MOST_BYTES * 4 / 3 < 300_000
    assert SHOWN * len(png) < 2 * MOST_BYTES  # noise is the worst there is


def test_each_class_has_its_wilson_interval_and_many_classes_show_the_worst_and_best() -> None:
    few = class_table(cell(accuracy=0.87))
    assert len(few.rows) == 10
    low, high = wilson_interval(87, 100)
    assert few.rows[0][1].text == f"87.0 % [{100 * low:.1f}, {100 * high:.1f}]"
    bar = few.rows[0][2].bar
    assert bar is not None
    assert (bar.low, bar.share, bar.high) == (low, 0.87, high)
    many = cell(classes=30, class_names=())
    for label in range(30):
        many.confusion[label][label] = 40 + label
    shown = [entry[0].text for entry in class_table(many).rows]
    assert shown == [str(n) for n in (*range(WORST), *range(30 - BEST, 30))]


def test_images_through_networks_are_counted_from_epochs_and_images() -> None:
    results = seven_rows()
    found = spent(results)
    first = [one for one in found if one.row == "1 rn50 scratch"]
    assert [one.stage for one in first] == ["training"] * 3
    assert {one.images for one in first} == {12 * (45_000 + 5_000)}
    assert sum(one.seconds for one in found) == pytest.approx(21 * 412.5)
    assert [entry.text for entry in stages_table(found).rows[0]][:3] == ["training on images", "21", "8,662.5"]
    assert rows_costs(found).rows[0][1].text == "3"


def test_cost_by_stage_of_a_recorded_study_adds_up() -> None:
    results = Results.from_json(Path(__file__).parents[2] / "docs" / "records" / "quickstart.json")
    rows = stages_table(spent(results)).rows
    values = {row[0].text: row[2].value for row in rows}
    assert values["heads on features"] == pytest.approx(
        sum(c.cost["seconds"] for c in results.cells if "features" in c.cost)
    )
    assert values["all"] == pytest.approx(math.fsum(v for name, v in values.items() if v and name != "all"))
    assert rows[1][3].text == "0"  # no image passes a network while heads are solved


def test_provenance_names_digests_of_data(tmp_path: Path) -> None:
    facts = dict(provenance(scored(tmp_path, confident=False), "regraft run two"))
    assert facts["Data, SHA-256"] == f"digits: {load_dataset('digits').digest}"
    assert facts["Command"] == "regraft run two"
    assert "Weights, SHA-256" not in facts


def test_no_home_folder_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    person, kept = tmp_path / "anna", tmp_path / "kept"
    monkeypatch.setenv("HOME", str(person))
    monkeypatch.setenv("REGRAFT_HOME", str(kept))
    command = f"regraft run {person}/my.yaml --store {kept}/store"
    assert page.told(command) == "regraft run ~/my.yaml --store $REGRAFT_HOME/store"
    assert page.told_all({"a": [f"{person}/x", 1]}) == {"a": ["~/x", 1]}
    assert page.told(f"{person}s/x") == f"{person}s/x"  # another person's
    unfinished = replace(seven_rows(), cells=[])  # nothing to draw
    html = report_html(unfinished, command=command)
    assert str(person) not in html
    assert "regraft run ~/my.yaml" in html


def luminance(colour: str) -> float:
    """Relative, of '#rrggbb' (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_controls_have_contrast_on_every_ground(dark: bool) -> None:
    """4.5:1 for text, 3:1 for controls and bars (WCAG 2.2, 1.4.3 and 1.4.11)."""
    style = page.source("base.css")
    light, after = style.split("@media (prefers-color-scheme: dark)", 1)
    colours = dict(re.findall(r"--([a-z-]+): (#\w{6})", light))
    if dark:
        colours |= dict(re.findall(r"--([a-z-]+): (#\w{6})", after.split("* {", 1)[0]))
    needed = {"ink": 4.5, "soft": 4.5, "link": 4.5, "control": 3.0, "blue": 3.0}
    pairs = [(name, ground, least) for name, least in needed.items() for ground in ("page", "card")]
    for name, ground, least in [*pairs, ("warn", "warn-page", 4.5), ("ink", "warn-page", 4.5)]:
        a, b = sorted((luminance(colours[name]), luminance(colours[ground])))
        assert (b + 0.05) / (a + 0.05) >= least, (name, ground)


def test_seconds_are_said_as_far_as_they_are_known() -> None:
    assert [brief(seconds) for seconds in (0.01, 0.05, 1234.56)] == ["< 0.1", "0.1", "1,234.6"]
