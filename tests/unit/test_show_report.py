"""The report file: complete, self-contained, and safe with any name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from regraft.analysis.answer import answer
from regraft.show.report import report_html, write_report
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


@cache
def page(name: str) -> Page:
    return Page(
        report_html(
            {"seven": seven_rows, "cuts": grid_of_cuts, "hostile": hostile}[name](),
            command="regraft run <cifar>",
        )
    )


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
        "regraft run <cifar>", results.cells[0].key,
    ):  # fmt: skip
        assert wanted in text


def test_many_classes_show_their_largest_confusions_and_few_a_matrix() -> None:
    text = " ".join(page("seven").text.split())
    assert "100 classes; the most frequent confusions." in text
    assert "A line is a true class" in text


@pytest.mark.parametrize("name", ["seven", "cuts", "hostile"])
def test_nothing_is_loaded_from_anywhere(name: str) -> None:
    for tag, attributes in page(name).tags:
        for attribute in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(attribute) or ""
            assert value.startswith("data:") or not value, (tag, attribute, value[:80])
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
    images = [attributes for tag, attributes in page("cuts").tags if tag == "img"]
    assert len(images) == 4
    assert all(image["alt"] for image in images)


def test_hostile_names_stay_text() -> None:
    tags = page("hostile").tags
    assert not [a for tag, a in tags if tag == "img" and not (a["src"] or "").startswith("data:image/svg+xml")]
    assert not [a for _, attributes in tags for a in attributes if a.startswith("on")]
    assert page("hostile").text.count(HOSTILE) > 10
    assert "\u202e" not in page("hostile").text
    assert len(page("hostile").scripts) == 3


def test_the_data_of_the_figures_is_valid_json_with_hostile_names() -> None:
    data = page("hostile").scripts[0]
    assert "<" not in data
    assert HOSTILE in json.dumps(json.loads(data))
