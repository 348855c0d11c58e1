"""Figures: what they draw, when there is nothing to draw, and what files they make."""

from __future__ import annotations

import base64
import dataclasses
import math
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from regraft.errors import UnknownName
from regraft.learn.lr_find import LearningRates
from regraft.show import figures
from regraft.study.results import Results
from tests.unit.show_example import HOSTILE, cell, grid_of_cuts, hostile, seven_rows

MAKERS = (
    figures.accuracy_by_row,
    figures.accuracy_by_cut,
    figures.accuracy_by_budget,
    figures.learning_curves,
)


def values(chart: figures.Chart | None) -> list[dict[str, Any]]:
    """The entries of the chart's first data set."""
    assert chart is not None
    made = figures.spec(chart)
    found: list[dict[str, Any]] = (made.get("data") or made["layer"][0]["data"])["values"]
    return found


def empty() -> Results:
    results = seven_rows()
    return dataclasses.replace(results, cells=[])


@pytest.mark.parametrize("make", MAKERS)
def test_without_cells_there_is_no_figure(make: Any) -> None:
    assert make(empty()) is None


def test_every_seed_mean_original_and_chance_is_a_mark() -> None:
    entries = values(figures.accuracy_by_row(seven_rows()))
    first = {kind: [e["value"] for e in entries if e["row"] == 0 and e["kind"] == kind]
             for kind in ("each seed", "mean, 95 % t-interval", "original study", "chance")}  # fmt: skip
    assert first["each seed"] == pytest.approx([95.2, 94.9, 95.5])
    assert first["mean, 95 % t-interval"] == pytest.approx([95.2])
    assert first["original study"] == pytest.approx([80.0])
    assert first["chance"] == pytest.approx([10.0])


def test_a_single_seed_has_no_interval_mark() -> None:
    kinds = {entry["kind"] for entry in values(figures.accuracy_by_row(grid_of_cuts(seeds=(0,))))}
    assert kinds == {"each seed", "chance"}


def test_cuts_are_compared_within_one_source_method_head_and_target() -> None:
    assert figures.accuracy_by_cut(seven_rows()) is None
    entries = values(figures.accuracy_by_cut(grid_of_cuts()))
    assert {entry["panel"] for entry in entries} == {"cifar10 (all)"}
    assert {(entry["source"], entry["way"]) for entry in entries} == {("rn18", "frozen"), ("rn18", "fine-tuned")}
    frozen = [entry["x"] for entry in entries if entry["way"] == "frozen" and entry["kind"] == "mean"]
    assert frozen == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]


def test_budgets_are_compared_on_one_data_set_at_one_cut() -> None:
    entries = values(figures.accuracy_by_budget(grid_of_cuts()))
    assert {entry["panel"] for entry in entries} == {"cifar10, cut at layer4.1"}
    frozen = [entry["x"] for entry in entries if entry["way"] == "frozen" and entry["kind"] == "mean"]
    assert sorted(frozen) == [450, 4_500, 45_000]


def test_learning_curves_leave_out_numbers_that_are_none() -> None:
    curve = [{"epoch": 1, "validation_accuracy": 0.5}, {"epoch": 2, "validation_accuracy": math.nan},
             {"epoch": 3}]  # fmt: skip
    results = dataclasses.replace(seven_rows(), cells=[cell(row="1 rn50 scratch", curve=curve)])
    drawn = [(entry["epoch"], entry["accuracy"]) for entry in values(figures.learning_curves(results))]
    assert drawn == [(1, 50.0)]


@pytest.mark.parametrize("make", MAKERS)
def test_figures_have_a_title_and_a_description(make: Any) -> None:
    made = figures.spec(make(grid_of_cuts()))
    assert made["title"]
    assert len(made["description"]) > 20


def test_learning_rates_are_drawn_with_both_suggestions_told_by_dash_and_colour() -> None:
    rates = tuple(10.0**i for i in range(-6, 1))
    losses = (2.3, 2.3, 2.2, 1.5, 0.9, 2.0, 9.0)
    found = LearningRates(rates, losses, losses, steepest=1e-3, lowest=1e-2, stopped=True)
    made = figures.spec(figures.lr_curve(found, HOSTILE))
    points, line, rules = made["layer"]
    assert [entry["rate"] for entry in points["data"]["values"]] == list(rates)
    assert line["encoding"]["x"]["scale"]["type"] == "log"
    assert [mark["rate"] for mark in rules["data"]["values"]] == pytest.approx([1e-3, 1e-3])
    assert {"color", "strokeDash"} <= rules["encoding"].keys()
    assert "falls fastest: 0.001" in made["description"]
    assert ElementTree.fromstring(figures.svg(figures.lr_curve(found, HOSTILE))) is not None


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", figures.COLOURS)
@pytest.mark.parametrize("page", ["#ffffff", "#1c2026"])
def test_colours_have_three_to_one_contrast_on_light_and_dark_pages(colour: str, page: str) -> None:
    light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_no_two_lines_look_the_same() -> None:
    names = [str(i) for i in range(len(figures.COLOURS) * len(figures.DASHES))]
    look = figures.line_look(names, "rows")
    colours, dashes = (look[k].to_dict()["scale"]["range"] for k in ("color", "strokeDash"))
    assert len({(c, tuple(d)) for c, d in zip(colours, dashes, strict=True)}) == len(names)


@pytest.mark.parametrize(
    ("ending", "start"),
    [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("html", b"<!doctype html>")],
)
def test_figures_are_saved_by_their_ending(ending: str, start: bytes, tmp_path: Path) -> None:
    chart = figures.accuracy_by_row(hostile())
    assert chart is not None
    path = figures.save(chart, tmp_path / f"figure.{ending}")
    content = path.read_bytes()
    assert content.startswith(start)
    if ending in ("svg", "html"):
        assert HOSTILE.encode() not in content


def test_an_svg_with_hostile_names_is_well_formed_and_holds_them_as_text() -> None:
    chart = figures.accuracy_by_row(hostile())
    assert chart is not None
    tree = ElementTree.fromstring(figures.svg(chart))
    texts = "".join(tree.itertext())
    assert HOSTILE in texts
    assert not [element.tag for element in tree.iter() if element.tag.endswith(("script", "img", "image"))]


@pytest.mark.parametrize("make", MAKERS)
def test_the_dark_image_of_a_figure_is_what_drawing_it_dark_gives(make: Any) -> None:
    chart = make(grid_of_cuts()) or make(seven_rows())
    addresses = figures.images(figures.spec(chart))
    for kind, address in addresses.items():
        drawn = base64.b64decode(address.partition("base64,")[2]).decode()
        assert drawn == figures.svg(chart, dark=kind == "dark")
    assert addresses["light"] != addresses["dark"]


def test_a_damaged_copy_of_the_drawing_script_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))
    damaged = (
        tmp_path / "show" / f"vega-{metadata.version('vl-convert-python')}-{figures.vega_lite_version()}-{'0' * 32}.js"
    )
    damaged.parent.mkdir()
    damaged.write_text("cut off", "utf-8")
    script = figures.javascript()
    assert len(script) > 500_000
    (kept,) = set(damaged.parent.iterdir()) - {damaged}
    assert figures.javascript() == script == kept.read_text("utf-8")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    chart = figures.learning_curves(seven_rows())
    assert chart is not None
    with pytest.raises(UnknownName, match=r"\.bmp"):
        figures.save(chart, tmp_path / "figure.bmp")


def test_cuts_stand_in_the_order_of_the_network_whatever_the_order_of_the_rows() -> None:
    results = grid_of_cuts()
    first, *others = results.study.grid
    turned = first.model_copy(update={"cut": first.cut[::-1]})
    study = results.study.model_copy(update={"grid": (turned, *others)})
    for each in (results, dataclasses.replace(results, study=study)):
        chart = figures.accuracy_by_cut(each)
        assert chart is not None
        layer = next(layer for layer in figures.spec(chart)["layer"] if "x" in layer["encoding"])
        assert layer["encoding"]["x"]["sort"] == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
