"""The report in a real browser: drawn under its own policy, at every width, in both colour schemes, on paper and
without scripts; tables that sort and are searched; names that stay text."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.show.report import write_report
from regraft.spec import Study
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.browser.driver import ENTER, NEEDS_BROWSER, SPACE, TAB, Browser
from tests.study.conftest import small_study
from tests.unit.show_example import HOSTILE, grid_of_cuts, hostile, seven_rows

pytestmark = NEEDS_BROWSER
DRAWN = """[...document.querySelectorAll("figure")].every(
    (figure) => figure.classList.contains("drawn") && figure.querySelector(".live svg"))"""
FIGURES = "return document.querySelectorAll('figure .live svg').length"
COLUMN = """return [...document.querySelectorAll("#rows tbody tr:not([hidden])")].map(
    (row) => row.cells[%d].querySelector("bdi").textContent)"""
HEAD = "#rows thead th:nth-child(%d) button"
SORTED = "return [...document.querySelectorAll('#rows thead th')].map((head) => head.getAttribute('aria-sort'))"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    quickstart = Results.from_json(Path(__file__).parents[2] / "docs" / "records" / "quickstart.json")
    made = {"seven": seven_rows(), "cuts": grid_of_cuts(), "hostile": hostile(), "quickstart": quickstart}
    return {name: write_report(results, folder / f"{name}.html") for name, results in made.items()}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small study that has just been run, its store at hand."""
    folder = tmp_path_factory.mktemp("real")
    results = run_study(Study.from_dict(small_study()), Store(folder / "store"))
    return write_report(results, folder / "report.html", command="regraft run small.yaml")


@pytest.mark.parametrize("name", ["seven", "cuts", "hostile", "quickstart"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_figures_are_drawn_and_nothing_overflows_or_is_loaded(
    browser: Browser, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    browser.show(pages[name], width=width, scheme=scheme, ready=DRAWN)
    assert browser.run(FIGURES) == browser.run("return document.querySelectorAll('figure').length") >= 2
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))") == []
    assert browser.log() == []


def test_the_report_of_a_study_that_was_just_run_shows_its_worst_errors_and_cost(browser: Browser, real: Path) -> None:
    browser.show(real, ready=DRAWN)
    assert (
        browser.run("""return [...document.querySelectorAll("#errors img")].map(
        (image) => image.complete && image.naturalWidth > 0 && image.alt.startsWith("test image"))""").count(True)
        > 4
    )
    assert "features of frozen trunks" in browser.run("return document.querySelector('#cost').textContent")
    assert browser.log() == []


def test_dark_pages_have_light_text(browser: Browser, pages: dict[str, Path]) -> None:
    ink = "return getComputedStyle(document.body).color"
    label = 'return getComputedStyle(document.querySelector(".live svg .role-axis-label text")).fill'
    for scheme, colour in (("light", "rgb(27, 30, 36)"), ("dark", "rgb(232, 234, 237)")):
        browser.show(pages["seven"], width=1000, scheme=scheme, ready=DRAWN)
        assert browser.run(ink) == colour
        assert browser.run(label) == colour


def test_paper_shows_the_static_figures_and_no_controls(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    browser.show(pages["quickstart"], width=800, print_media=True, ready=DRAWN)
    shown = browser.run(
        "return [...document.querySelectorAll('figure')].map(f => "
        "[getComputedStyle(f.querySelector('.live')).display, f.querySelector('img').naturalWidth > 0,"
        " getComputedStyle(f.querySelector('picture')).display])"
    )
    assert shown == [["none", True, "block"]] * len(shown)
    hidden = "return ['nav', '.tools', '.skip'].map(s => getComputedStyle(document.querySelector(s)).display)"
    assert browser.run(hidden) == ["none"] * 3
    for name in pages:
        browser.show(pages[name], width=800, print_media=True)
        assert browser.run("return document.documentElement.scrollWidth") <= 800, name
    browser.medium()
    pdf = browser.print(tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000


def test_details_that_are_worth_it_are_opened_for_paper_and_closed_again(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.show(pages["quickstart"])
    opened = "return document.querySelectorAll('details[open]').length"
    assert browser.run(opened) == 0
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(opened) == browser.run("return document.querySelectorAll('details[data-print]').length") > 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(opened) == 0


def test_without_scripts_the_static_figures_and_all_rows_are_there(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.without_scripts():
        browser.size(1000)
        browser.medium()
        browser.visit(pages["quickstart"].as_uri())
        images = browser.find("figure img")
        assert len(images) >= 4
        assert all(browser.call("GET", f"/element/{image}/rect")["width"] > 400 for image in images)
        assert len(browser.find("#rows tbody tr")) == 21
        assert browser.find(".sort") == browser.find(".tools") == []  # no control that does nothing


# --- tables -------------------------------------------------------------------------------------------------------


def numbers(browser: Browser, column: int) -> list[float]:
    return [float(text.split(" ")[0]) for text in browser.run(COLUMN % column)]


def test_a_column_sorts_by_number_up_down_and_back(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["quickstart"])
    written = numbers(browser, 1)
    (head,) = browser.find(HEAD % 2)
    for order, said in ((sorted(written), "ascending"), (sorted(written, reverse=True), "descending"), (written, None)):
        browser.click(head)
        assert numbers(browser, 1) == order
        assert browser.run(SORTED)[1] == said
    assert written not in (sorted(written), sorted(written, reverse=True))


def test_a_column_of_names_sorts_as_people_count(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["quickstart"])
    (head,) = browser.find(HEAD % 1)
    browser.click(head)
    names = browser.run(COLUMN % 0)
    assert names.index("random, frozen at stage2, 5 per class") < names.index("random, frozen at stage2, 20 per class")


def test_what_has_no_number_comes_last_either_way(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["seven"])
    (head,) = browser.find(HEAD % 2)
    for _ in range(2):
        browser.click(head)
        assert browser.run(COLUMN % 1)[-1] == "missing"


@pytest.mark.parametrize("key", [ENTER, SPACE], ids=["enter", "space"])
def test_a_column_sorts_by_the_keyboard(browser: Browser, pages: dict[str, Path], key: str) -> None:
    browser.show(pages["quickstart"])
    browser.run(f"document.querySelector({HEAD % 1!r}).focus()")
    browser.press(TAB)
    assert browser.run("return document.activeElement.textContent") == "accuracy"
    browser.press(key)
    assert numbers(browser, 1) == sorted(numbers(browser, 1))
    assert browser.run(SORTED)[1] == "ascending"
    status = "return document.querySelector('#rows [role=status]').textContent"
    assert browser.run(status) == "sorted by accuracy, ascending"


def test_rows_are_found_by_any_of_their_text(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["quickstart"])
    (field,) = browser.find("#rows input[type=search]")
    browser.type(field, "FROZEN at stage2")
    assert len(browser.run(COLUMN % 0)) == 4
    assert all("frozen at stage2" in name for name in browser.run(COLUMN % 0))
    assert browser.run("return document.querySelector('#rows [role=status]').textContent") == "4 of 21 rows"
    browser.show(pages["seven"])
    assert browser.find("#rows input[type=search]") == []  # eight rows need no search


def test_on_a_phone_a_row_is_a_block_of_named_values_that_still_sorts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["quickstart"], width=375)
    before = "return getComputedStyle(document.querySelector('#rows td[data-name=chance]'), '::before').content"
    assert browser.run(before).replace('"', "").replace(" ", "") in ("attr(data-name):", "chance:")
    assert browser.run("return [...document.querySelectorAll('#rows td')].every(c => c.scrollWidth <= 375)")
    (head,) = browser.find(HEAD % 2)
    browser.click(head)
    assert numbers(browser, 1) == sorted(numbers(browser, 1))


# --- pointer and keyboard -----------------------------------------------------------------------------------------


def tooltip(browser: Browser, mark: str) -> str:
    """What is said of the first mark that a selector finds."""
    browser.hover(browser.find(mark)[0])
    assert browser.wait("document.querySelector('#vg-tooltip-element.visible')")
    return str(browser.run("return document.querySelector('#vg-tooltip-element').textContent"))


def test_the_pointer_over_a_mark_tells_its_row_and_value(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["seven"], ready=DRAWN)
    told = tooltip(browser, "#figure-0 .live svg .mark-symbol.role-mark path")
    assert "1 rn50 scratch" in told
    assert "%" in told
    assert browser.log() == []


def test_the_first_key_leads_past_the_contents(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["seven"])
    browser.press(TAB)
    assert browser.run("return document.activeElement.className") == "skip"
    assert browser.run("return document.activeElement.getBoundingClientRect().top >= 0")
    browser.press(ENTER)
    assert browser.wait("document.activeElement.id === 'main'")


def test_every_link_of_the_contents_leads_to_its_part(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["seven"], ready=DRAWN)
    for link in browser.find("nav a"):
        browser.click(link)
        anchor = browser.run("return location.hash.slice(1)")
        assert browser.run(f"return document.getElementById({anchor!r}) === document.querySelector(':target')")
    (last,) = browser.find("nav li:last-child a")
    browser.click(last)
    assert browser.wait("document.getElementById('provenance').getBoundingClientRect().top < innerHeight")


def test_whatever_scrolls_can_be_reached_by_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["seven"])
    assert browser.run("return [...document.querySelectorAll('.scroll')].every(s => s.tabIndex === 0 && s.ariaLabel)")


# --- names --------------------------------------------------------------------------------------------------------


def test_hostile_names_stay_text_everywhere(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["hostile"], ready=DRAWN)
    assert browser.run("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.run("return [...document.images].every(image => image.src.startsWith('data:image/'))")
    assert browser.run("return document.querySelectorAll('[onerror], iframe, object, embed').length") == 0
    assert HOSTILE in tooltip(browser, "#figure-0 .live svg .mark-symbol.role-mark path")
    assert browser.run("return document.querySelectorAll('#vg-tooltip-element img').length") == 0
    browser.click(browser.find(HEAD % 1)[0])
    assert sorted(browser.run(COLUMN % 0))[0] == HOSTILE
    assert browser.log() == []


def test_a_page_that_is_tampered_with_runs_no_other_script(browser: Browser, pages: dict[str, Path]) -> None:
    other = pages["hostile"].with_name("tampered.html")
    html = pages["hostile"].read_text("utf-8")
    other.write_text(html.replace("</main>", '<script>window.ran = 1</script><img src="x" onerror="ran=1"></main>'))
    browser.show(other, ready=DRAWN)
    assert browser.run("return window.ran === undefined")
    assert any("Content Security Policy" in message for message in browser.log())
