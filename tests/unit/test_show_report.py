"""The report file: complete, self-contained, and safe with any name. Its parts are in test_show_sections.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from functools import cache, partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from regraft.analysis.answer import answer
from regraft.analysis.compare import SHOWN, comparisons
from regraft.analysis.table import rows_table
from regraft.analysis.variance import spreads
from regraft.analysis.worth import label_worths
from regraft.show.report import report_html, write_report
from regraft.show.sections import compared_table
from regraft.show.tables import plain_text
from regraft.study.results import Results
from tests.unit.show_example import HOSTILE, grid_of_cuts, hostile, seven_rows


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and the scripts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.style = ""
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem == "style":
            self.style += data
        else:
            self.text += data


def quickstart() -> Results:
    return Results.from_json(Path(__file__).parents[2] / "docs" / "records" / "quickstart.json")


STUDIES: dict[str, Callable[[], Results]] = {
    "seven": seven_rows,
    "cuts": grid_of_cuts,
    "hostile": hostile,
    "quickstart": quickstart,
    "single": partial(grid_of_cuts, seeds=(0,)),
}


@cache
def page(name: str) -> Page:
    return Page(report_html(STUDIES[name](), command="regraft run <cifar>"))


def test_the_report_is_one_file_written_whole(tmp_path: Path) -> None:
    path = write_report(seven_rows(), tmp_path / "new" / "report.html")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size < 3_000_000


def test_question_answer_rows_missing_alarms_and_provenance_are_there() -> None:
    text = " ".join(page("seven").text.split())
    results = seven_rows()
    for wanted in (
        results.study.question, *answer(results), *(row.name for row in results.study.all_rows()),
        "95.2 % [94.5, 95.9]", "95.2, 94.9, 95.5 %", "no way to get the weights here",
        "it never started learning",
        "21; test labels were read once for each", "± 0.21 points", "NVIDIA H100", "torch 2.14.1",
        "regraft run <cifar>", results.cells[0].key, "regraft audit STUDY", "No power was measured",
        *results.study.to_yaml().split("\n")[0].split(),
    ):  # fmt: skip
        assert wanted in text


@pytest.mark.parametrize("name", STUDIES)
def test_the_contents_name_every_part_of_the_page_once_and_in_its_order(name: str) -> None:
    anchors = [attributes["href"] for tag, attributes in page(name).tags if tag == "a"]
    assert anchors[0] == "#main"  # past the contents
    parts = [f"#{attributes['id']}" for tag, attributes in page(name).tags if tag == "section"]
    assert anchors[1:] == parts
    assert len(set(parts)) == len(parts)


def test_headings_go_down_one_level_at_a_time() -> None:
    levels = [int(tag[1]) for tag, _ in page("seven").tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_says_how_large_it_is() -> None:
    html = report_html(seven_rows())
    said = re.search(r"This file of ([\d.]+) MB", html)
    assert said is not None
    assert float(said[1]) == pytest.approx(len(html.encode()) / 1e6, abs=0.006)


def test_many_classes_show_their_largest_confusions_and_few_a_matrix() -> None:
    text = " ".join(page("seven").text.split())
    assert "100 classes; the most frequent confusions." in text
    assert "A line is a true class" in text


@pytest.mark.parametrize("name", ["seven", "cuts", "hostile"])
def test_nothing_is_loaded_from_anywhere(name: str) -> None:
    for tag, attributes in page(name).tags:
        for attribute in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(attribute) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, attribute, value[:80])
    assert page(name).style
    assert not re.search(r"url\(|@import", page(name).style)


def test_the_policy_allows_exactly_the_pages_own_scripts() -> None:
    policy = next(a["content"] for tag, a in page("seven").tags if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    code = page("seven").scripts[1:]  # the first is data
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in code]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests


def test_every_image_has_an_alternative_text() -> None:
    for name in STUDIES:
        images = [attributes for tag, attributes in page(name).tags if tag == "img"]
        drawn = [attributes for _, attributes in page(name).tags if attributes.get("class") == "live"]
        assert len(images) == len(drawn) >= 2
        assert all(image["alt"] for image in images)
        assert all(figure["role"] == "img" and figure["aria-label"] for figure in drawn)


@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_has_its_data_as_a_table(name: str) -> None:
    assert page(name).text.count("Its data as a table") == sum(tag == "figure" for tag, _ in page(name).tags)


@pytest.mark.parametrize("name", STUDIES)
def test_every_number_of_a_table_says_what_it_is_sorted_by(name: str) -> None:
    cells = [attributes for tag, attributes in page(name).tags if tag == "td" and attributes.get("role") == "cell"]
    numbers = [cell for cell in cells if "number" in (cell["class"] or "").split()]
    assert len(numbers) > 20
    for cell in numbers:
        float(cell["data-value"] or "")  # nan is what has no number


def test_hostile_names_stay_text() -> None:
    tags = page("hostile").tags
    assert not [a for tag, a in tags if tag == "img" and not (a["src"] or "").startswith("data:image/svg+xml")]
    assert not [a for _, attributes in tags for a in attributes if a.startswith("on")]
    assert page("hostile").text.count(HOSTILE) > 10
    assert "\u202e" not in page("hostile").text
    assert len(page("hostile").scripts) == 4


def test_the_data_of_the_figures_is_valid_json_with_hostile_names() -> None:
    data = page("hostile").scripts[0]
    assert "<" not in data
    assert HOSTILE in json.dumps(json.loads(data))


def test_comparisons_say_how_many_there_are_and_what_the_correction_is_over() -> None:
    text, found = " ".join(page("quickstart").text.split()), comparisons(quickstart())
    assert found.note(SHOWN) in text
    assert f"the {SHOWN} shown are" in text
    for pair in found.shown():
        assert f"{pair.a} − {pair.b}" in text
        assert pair.difference.text().partition(" (")[0] in text
    lines = compared_table(found.shown()).rows
    assert [line[5].text for line in lines] == [pair.verdict for pair in found.shown()]
    assert [line[5].strong for line in lines] == [pair.clear for pair in found.shown()]


def test_without_two_seeds_nothing_is_compared() -> None:
    assert "Comparisons" not in page("single").text
    assert "How far the seeds lie apart" not in page("single").text
    assert "Comparisons" in page("cuts").text


def test_label_worth_is_there_where_a_scratch_curve_is() -> None:
    text = " ".join(page("quickstart").text.split())
    worths = label_worths(quickstart())
    assert "measured with random from 5 to 20 per class" in text
    assert all(worth.text() in text for worth in worths.values())
    assert "label worth" in page("seven").text
    assert "abel worth" not in page("cuts").text


def test_the_spread_over_seeds_says_what_it_can_come_from() -> None:
    text = " ".join(page("quickstart").text.split())
    for row, spread in spreads(quickstart()):
        assert row.name in text
        assert spread.text() in text
        assert spread.told() in text


def test_every_count_is_stated() -> None:
    text = " ".join(page("seven").text.split())
    for wanted in ("n seeds", "training images", "test images", "test 10,000", "45,000"):
        assert wanted in text
    single = rows_table(grid_of_cuts(seeds=(0,)))
    assert all(row.summary and row.summary.test_sample() in page("single").text for row in single)
    assert "One seed alone has no interval over seeds" in page("single").text
    assert "One seed alone" not in page("seven").text


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_says_label_worth_and_what_n_and_accuracies_are_of(width: int) -> None:
    text = " ".join(plain_text(quickstart(), width).split())
    assert "Label worth: labelled images per class" in text
    assert "n: seeds. Test images: " in text
    assert "n: seeds, each scored on 10,000 test images." in plain_text(grid_of_cuts(), width)
    assert "abel worth" not in plain_text(grid_of_cuts(), width)
    single = " ".join(plain_text(grid_of_cuts(seeds=(0,)), width).split())
    assert "so no interval over seeds; the test images alone leave up to ± 1.0 points open (95 % Wilson)." in single
