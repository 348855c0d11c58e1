"""The documentation as a site: it builds without a warning and without a network, and nothing is left out of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import regraft
from regraft.analysis.alarm import SEEN
from regraft.errors import RegraftError
from regraft.learn.backends import BACKENDS
from regraft.spec import Head, Recipe
from regraft.spec.tuning import Method, Norms

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
ELSEWHERE = re.compile(r"(?:src|href|srcset|action)=[\"']?(?:https?:)?//", flags=re.I)


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def shown_names(text: str) -> list[str]:
    """What `::: NAME` blocks show."""
    return re.findall(r"^::: ([\w.]+)$", text, flags=re.M)


def found(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return import_module(name) if find_spec(module) and not hasattr(import_module(module), attribute) else getattr(
        import_module(module), attribute
    )  # fmt: skip


def test_every_public_name_has_its_place_in_the_reference() -> None:
    shown = [found(name) for name in shown_names(page("api.md"))]
    for name in regraft.__all__:
        if name == "__version__":
            assert "`regraft.__version__`" in page("api.md")
        else:
            assert any(each is getattr(regraft, name) for each in shown), f"regraft.{name} is not in docs/api.md"


def test_everything_that_the_reference_shows_exists_and_has_a_docstring() -> None:
    for name in (*shown_names(page("api.md")), *shown_names(page("api-parts.md"))):
        assert found(name).__doc__, name


def test_every_error_is_in_the_reference() -> None:
    def kinds(parent: type[RegraftError]) -> set[str]:
        own = {child.__name__ for child in parent.__subclasses__() if child.__module__ == "regraft.errors"}
        return own.union(*(kinds(child) for child in parent.__subclasses__()))

    for name in kinds(RegraftError):
        assert name in page("api-parts.md"), name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (get_args(Method), "how-to/choose-a-method.md"),
        (get_args(Norms), "how-to/choose-a-method.md"),
        (get_args(Head.model_fields["kind"].annotation), "how-to/compare-heads.md"),
        (tuple(SEEN), "how-to/repair-an-alarm.md"),
        (tuple(BACKENDS), "how-to/speed.md"),
    ],
    ids=["methods", "norms", "heads", "alarms", "back ends"],
)
def test_every_choice_is_explained_where_one_looks_for_it(words: tuple[str, ...], name: str) -> None:
    assert words
    for word in words:
        assert f"`{word}`" in page(name), f"docs/{name} does not explain {word!r}"


def test_every_field_of_a_recipe_is_in_the_study_file_page() -> None:
    fields = page("study-file.md").split("### `recipes`: how to train")[1].split("\n### ")[0]
    for field in Recipe.model_fields:
        assert f"| `{field}` |" in fields, field


def configuration() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text("utf-8"))
    return made


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [name for inner in (entry.values() if isinstance(entry, dict) else entry) for name in pages(inner)]

    hooks_place = str(DOCS)
    sys.path.insert(0, hooks_place)
    try:
        listed = pages(import_module("site_hooks").on_config(configuration())["nav"])
    finally:
        sys.path.remove(hooks_place)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_site_asks_for_nothing_from_elsewhere_and_takes_warnings_for_errors() -> None:
    made = configuration()
    assert made["strict"] is True
    assert made["theme"]["font"] is False
    assert all(value == "warn" for part in made["validation"].values() for value in part.values())


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_other_host(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: python -m pip install '.[docs]'")
    # A proxy that refuses: whoever asks for something of another host while building gets an error.
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(list(DOCS.rglob("*.md"))) - 1
    for file in built:
        for tag in re.findall(r"<(?:script|link|img|iframe|source|form|video)\b[^>]*>", file.read_text("utf-8")):
            assert not ELSEWHERE.search(tag), f"{file.name}: {tag}"
    for file in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import [\"']?https?:", file.read_text("utf-8")), file.name
    # Not meant for readers
    assert not [file for file in (tmp_path / "site").rglob("*") if file.suffix == ".py" or "records" in file.parts]
