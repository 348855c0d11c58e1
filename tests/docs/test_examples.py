"""What the pages and the README show in Python runs; what they print is what stands in the page."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "```python\n" in page.read_text("utf-8")]
# Their examples train networks or draw figures: seconds each
HEAVY = {"how-to/python.md", "how-to/figures.md", "how-to/use-the-network.md"}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    return import_module("examples")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    return tmp_path


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name(page), marks=[pytest.mark.slow] * (name(page) in HEAVY)) for page in PAGES]
)
def test_the_examples_of_a_page_run_and_their_claims_hold(page: Path, written: Any, home: Path) -> None:
    with torch.random.fork_rng():
        printed = written.run(page, home)
    assert all(printed.values()), "an output block stays empty"


def test_an_example_that_fails_is_named_with_its_page_and_line(written: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        written.run(page, tmp_path)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 8)


def test_an_output_belongs_to_the_example_above_it(written: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    block = "```python\nprint({})\n```\n"
    page.write_text(block.format(1) + "\n" + block.format(2) + "\n<!-- output:two:begin -->\n<!-- output:two:end -->\n")
    assert written.run(page, tmp_path) == {"two": "2"}


def test_a_page_whose_example_was_changed_is_refused_until_it_is_run_again(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = import_module("make_pages")
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n<!-- output:one:begin -->\n<!-- output:one:end -->\n")
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    monkeypatch.setattr(pages, "OUTPUTS", tmp_path / "outputs.json")
    pages.run_all()
    assert pages.outputs("page.md") == {"output:one": "```text\n1\n```"}
    page.write_text(page.read_text().replace("print(1)", "print(3)"))
    with pytest.raises(SystemExit, match="changed since they were run"):
        pages.outputs("page.md")


def test_a_study_without_a_record_is_shown_as_not_measured(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = import_module("make_pages")
    monkeypatch.setattr(pages, "RECORDS", Path("nowhere"))
    pages.recorded.cache_clear()
    try:
        for block in (pages.rows_block("leak"), pages.comparisons_block("leak"), pages.answer_block("leak")):
            assert "Not measured yet: `regraft run leak`" in block
            assert not any(sign in block for sign in ("|", "p after Holm"))
    finally:
        pages.recorded.cache_clear()


def test_python_blocks_fit_a_page() -> None:
    """Longer lines are cut off at the right edge."""
    for page in PAGES:
        for block in page.read_text("utf-8").split("```python\n")[1:]:
            for line in block.split("```")[0].splitlines():
                assert len(line) <= 92, f"{name(page)}: {line}"


@pytest.mark.slow
def test_the_five_lines_of_the_readme_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    (code,) = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    ast.parse(code)
    monkeypatch.chdir(home)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert not names["results"].missing
    assert {"report.html", "results.csv"} <= {file.name for file in home.iterdir()}


@pytest.mark.slow
def test_the_study_of_the_tutorial_runs(home: Path) -> None:
    """The file that a reader is told to save, as it stands there."""
    from regraft import Store, Study, run_study

    page = (DOCS / "tutorial" / "own-study.md").read_text("utf-8")
    (home / "teens.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    results = run_study(Study.from_yaml(home / "teens.yaml"), Store(home / "store"), threads=1)
    assert not results.missing
    assert {cell.row for cell in results.cells} == {row.name for row in results.study.all_rows()}
