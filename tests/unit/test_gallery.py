"""The gallery: every seed a point, arms told apart everywhere alike, clear refusals, sizes that are exact."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from regraft.errors import StudyError, UnknownName
from regraft.show import gallery
from regraft.show.figures_arms import arms, source_colours, way_looks
from regraft.show.figures_base import spec
from regraft.show.figures_save import font_known, size
from regraft.show.notebook import figure
from regraft.spec import Study
from regraft.study.results import Results
from tests.unit.show_example import HOSTILE, cell, grid_of_cuts, hostile, seven_rows
from tests.unit.show_many import many_arms


def data(name: str, results: Results) -> list[dict[str, Any]]:
    """All entries that the figure's layers draw, each data set once."""
    made = spec(gallery.figure(name, results))
    inner = made.get("spec", made)
    found = [made.get("data"), *(layer.get("data") for layer in inner.get("layer", []))]
    return [entry for one in found if one for entry in one["values"]]


def without(results: Results, **changes: object) -> Results:
    return dataclasses.replace(results, cells=[dataclasses.replace(c, **changes) for c in results.cells])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cuts", "budgets", "cost"])
def test_every_seed_of_every_drawn_row_is_a_point(name: str) -> None:
    results = many_arms()
    entries = data(name, results)
    means = Counter(entry.get("row", entry.get("name")) for entry in entries if entry["kind"] == "mean")
    seeds = Counter(entry.get("row", entry.get("name")) for entry in entries if entry["kind"] == "seed")
    assert len(means) > 20
    assert seeds == {row: 3 * n for row, n in means.items()}
    scores = {100 * c.accuracy for c in results.cells}
    assert {entry["value"] for entry in entries if entry["kind"] == "seed"} <= scores


def test_every_seed_of_a_difference_is_a_point_and_their_mean_is_the_difference() -> None:
    entries = data("differences", grid_of_cuts())
    for mean in (entry for entry in entries if entry["kind"] == "mean"):
        seeds = [entry["value"] for entry in entries if entry["kind"] == "seed" and entry["row"] == mean["row"]]
        assert len(seeds) == 3
        assert sum(seeds) / 3 == pytest.approx(mean["value"])
        assert mean["low"] < mean["value"] < mean["high"]
        assert mean["holm"].endswith("*") == (mean["verdict"] == "clear")


def test_a_source_has_one_colour_and_a_method_one_look_in_all_figures() -> None:
    results = many_arms()
    colours: dict[str, set[str]] = {}
    shapes: dict[str, set[str]] = {}
    for name in ("cuts", "budgets", "cost"):
        made = spec(gallery.figure(name, results))
        for layer in made.get("spec", made)["layer"]:
            for channel, seen in (("color", colours), ("shape", shapes)):
                scale = layer["encoding"].get(channel, {}).get("scale")
                for one, look in zip(scale["domain"], scale["range"], strict=True) if scale else ():
                    seen.setdefault(one, set()).add(look)
    assert colours.keys() == {cell.source for cell in results.cells}
    assert shapes.keys() == {"fine-tuned", "frozen", "frozen, prototype head"}
    assert all(len(seen) == 1 for seen in [*colours.values(), *shapes.values()])


def test_no_two_of_twenty_four_methods_look_the_same() -> None:
    looks = way_looks([str(i) for i in range(21)])
    assert len({(tuple(dash), shape) for dash, shape in looks.values()}) == 24


def test_arms_that_share_a_panel_can_be_told_apart() -> None:
    results = many_arms()
    colours = source_colours(results)
    looks = way_looks([arm.way for arm in arms(results).values()])
    for name in ("cuts", "budgets"):
        panels: dict[str, set[tuple[str, str]]] = {}
        for entry in data(name, results):
            panels.setdefault(entry["panel"], set()).add((entry["source"], entry["way"]))
        for drawn in panels.values():
            assert len({(colours[source], looks[way][1]) for source, way in drawn}) == len(drawn)


def test_rows_that_differ_in_the_recipe_alone_are_arms_of_their_own() -> None:
    results = grid_of_cuts()
    other = results.study.grid[0].model_copy(update={"name": "long {cut} {method}", "recipe": ("long",)})
    study = results.study.model_copy(update={"grid": (*results.study.grid, other)})
    told = arms(dataclasses.replace(results, study=study))
    ways = {told[row.name].way for row in study.all_rows() if row.method == "frozen" and row.target == "cifar10"}
    assert ways == {"frozen, short", "frozen, long"}


def test_a_row_that_starts_with_the_head_of_a_row_keeps_its_source_s_colour_and_says_how_it_came_about() -> None:
    """Linear probing, then fine-tuning: the weights are those that the probe was cut from, no source of their own."""
    rows: list[dict[str, Any]] = [
        {"name": "probe", "source": "imagenet", "method": "frozen", "head": "mlp"},
        {"name": "lp-ft", "source": "probed", "head": {"kind": "mlp", "start": "source"}},
        {"name": "tuned", "source": "imagenet"},
        {"name": "again", "source": "went on", "head": {"kind": "linear", "start": "source"}},
    ]
    study = Study.from_dict({
        "study": "handed", "seeds": [0],
        "sources": {"imagenet": {"network": "resnet50", "weights": "pretrained"}, "probed": {"run": "probe"},
                    "went on": {"run": "tuned"}},
        "targets": {"cifar10": {"data": "cifar10"}}, "recipes": {"short": {"epochs": 12}},
        "rows": [{"target": "cifar10", "recipe": "short", **row} for row in rows],
    })  # fmt: skip
    cells = [
        cell(row=row.name, source=row.source, method=row.method, head=row.head.label, weights="pretrained", cut="all")
        for row in study.all_rows()
    ]
    told = arms(Results(study, cells, [], len(cells)))
    assert {arm.source for arm in told.values()} == {"imagenet"}
    assert [told[row["name"]].way for row in rows] == [
        "frozen, mlp head", "LP-FT, mlp head", "fine-tuned, short", "again",
    ]  # fmt: skip


def test_budgets_are_images_per_class_where_every_target_says_so() -> None:
    assert {entry["x"] for entry in data("budgets", many_arms())} == {1, 5, 20, 50}
    assert {entry["x"] for entry in data("budgets", grid_of_cuts())} == {450, 4_500, 45_000}


def test_scratch_is_drawn_in_every_panel_of_its_data() -> None:
    results = many_arms()
    results = dataclasses.replace(  # ImageNet's rows at another cut, so that there are two panels
        results,
        cells=[dataclasses.replace(c, cut="layer4.0") if c.source == "ImageNet" else c for c in results.cells
               if c.source in ("random", "ImageNet") and c.head == "linear" and c.cut == "penultimate"],
    )  # fmt: skip
    panels: dict[str, set[tuple[str, str]]] = {}
    for entry in data("budgets", results):
        panels.setdefault(entry["panel"], set()).add((entry["source"], entry["way"]))
    assert len(panels) == 2
    assert all(("random", "fine-tuned") in drawn for drawn in panels.values())


def test_the_worth_of_rows_lies_where_scratch_reaches_their_accuracy() -> None:
    entries = {e["name"]: e for e in data("worth", many_arms()) if "own" in e}
    one = entries["ImageNet | all | finetune | linear | 5 per class"]
    assert one["own"] == 5
    assert one["own"] < one["value"] < 20
    assert one["low"] <= one["value"] <= one["high"]


def test_the_best_cell_by_validation_gives_the_matrix_and_the_classes() -> None:
    results = seven_rows()
    best = max((c for c in results.cells), key=lambda c: c.validation_accuracy or 0)
    matrix = data("confusion", results)
    assert sum(entry["count"] for entry in matrix) == sum(map(sum, best.confusion))
    assert [e["value"] for e in data("classes", results) if e["kind"] == "seed" and e["seed"] == str(best.seed)] == (
        [100 * best.confusion[i][i] / sum(best.confusion[i]) for i in range(10)]
    )


def test_many_classes_are_told_by_their_largest_confusions_and_hardest_classes() -> None:
    row = "2 cut frozen"
    made = spec(gallery.figure("confusion", seven_rows(), row=row))
    assert len(made["data"]["values"]) == 25
    assert "25 most frequent confusions of 100 classes" in made["title"]["text"]
    made = spec(gallery.figure("classes", seven_rows(), row=row))
    assert "30 hardest and the 10 easiest of 100" in made["title"]["text"]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cuts'"):
        gallery.figure("cutz", seven_rows())
    with pytest.raises(UnknownName, match="did you mean '2 cut frozen'"):
        gallery.figure("confusion", seven_rows(), row="2 cut froze")


@pytest.mark.parametrize("name", gallery.FIGURES)
def test_nothing_to_draw_is_said_with_what_is_needed(name: str) -> None:
    with pytest.raises(StudyError, match=re.escape(gallery.NEEDS[name])):
        gallery.figure(name, dataclasses.replace(seven_rows(), cells=[]))


def test_every_figure_says_what_it_shows_and_what_it_needs() -> None:
    assert gallery.FIGURES.keys() == gallery.SHOWS.keys() == gallery.NEEDS.keys()
    drawable = gallery.drawable(without(grid_of_cuts(), confusion=[]))
    assert [n for n, there in drawable.items() if there] == ["rows", "cuts", "budgets", "differences", "curves", "cost"]


@pytest.mark.parametrize(
    ("name", "millimetres"), [pytest.param("differences", 85, marks=pytest.mark.slow), ("cuts", 170)]
)
def test_a_figure_is_as_wide_as_it_was_asked_to_be(name: str, millimetres: float, tmp_path: Path) -> None:
    chart = gallery.figure(name, grid_of_cuts())
    wide, _ = size(gallery.save_figure(chart, tmp_path / "figure.svg", width_mm=millimetres).read_text("utf-8"))
    assert wide == pytest.approx(millimetres / 25.4 * 96, abs=1.5)


def test_a_picture_for_print_has_300_dots_per_inch_and_a_page_its_points(tmp_path: Path) -> None:
    chart = gallery.figure("cuts", grid_of_cuts())
    png = Image.open(io.BytesIO(gallery.save_figure(chart, tmp_path / "a.png", width_mm=85).read_bytes()))
    assert png.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert png.width == pytest.approx(85 / 25.4 * 300, abs=5)
    pdf = gallery.save_figure(chart, tmp_path / "a.pdf", width_mm=85).read_bytes()
    box = re.search(rb"MediaBox ?\[0 0 ([\d.]+)", pdf)
    assert box is not None
    assert float(box[1]) == pytest.approx(85 / 25.4 * 72, abs=1.5)
    assert b"/FontFile" in pdf  # letters, not pictures of them


@pytest.mark.slow
def test_a_slide_is_not_higher_than_a_screen(tmp_path: Path) -> None:
    width, height = gallery.SIZES["slide"]
    for name in ("rows", "confusion"):
        chart = gallery.figure(name, seven_rows())
        file = gallery.save_figure(chart, tmp_path / "a.svg", width_mm=width, height_mm=height)
        wide, high = size(file.read_text("utf-8"))
        assert wide <= 254 / 25.4 * 96 + 1.5
        assert high <= 143 / 25.4 * 96 + 1.5


def test_json_and_html_hold_the_whole_figure_and_no_markup_of_names(tmp_path: Path) -> None:
    chart = gallery.figure("rows", hostile())
    made = json.loads(gallery.save_figure(chart, tmp_path / "a.json", dark=True).read_text("utf-8"))
    assert made["config"]["background"] == "#1c2026"
    assert HOSTILE in {entry.get("name") for entry in made["layer"][0]["data"]["values"]}
    html = gallery.save_figure(chart, tmp_path / "a.html").read_text("utf-8")
    assert HOSTILE not in html
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", html.partition("<script>")[0])
    assert "<script src" not in html


def test_endings_widths_and_fonts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    chart = gallery.figure("rows", grid_of_cuts())
    with pytest.raises(UnknownName, match=r"\.json"):
        gallery.save_figure(chart, tmp_path / "a.bmp")
    with pytest.raises(StudyError, match="at least 40 mm"):
        gallery.save_figure(chart, tmp_path / "a.svg", width_mm=5)
    with pytest.raises(UnknownName, match="no font 'No Such Font'"):
        gallery.save_figure(chart, tmp_path / "a.svg", font="No Such Font")
    assert font_known("sans-serif")


def test_a_notebook_gets_a_light_and_a_dark_picture_that_need_no_script() -> None:
    html = figure("rows", hostile())._repr_html_()
    assert html.count("data:image/svg+xml;base64,") == 2
    assert "prefers-color-scheme: dark" in html
    assert "<script" not in html
    assert HOSTILE not in html


def test_a_figure_of_a_notebook_is_saved_as_the_command_saves_it(tmp_path: Path) -> None:
    picture = figure("rows", seven_rows())
    file = picture.save(tmp_path / "here.svg", width_mm=85)
    chart = gallery.figure("rows", seven_rows())
    assert file.read_bytes() == gallery.save_figure(chart, tmp_path / "there.svg", width_mm=85).read_bytes()


def test_panels_without_a_second_row_say_nothing_of_cost() -> None:
    one = dataclasses.replace(seven_rows(), cells=[cell(row="1 rn50 scratch")])
    assert gallery.FIGURES["cost"](one) is None
