"""What the documents say is so: commands, files, fields, examples exist; generated parts are current."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import regraft
from regraft.cli import app
from regraft.spec import Episodes, Grid, Head, Preprocessing, Recipe, Row, Source, Study, Target, presets
from regraft.spec.tuning import Tuning

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
CLI_PAGE = (REPOSITORY / "docs" / "cli.md").read_text("utf-8")


def documented() -> dict[str, str]:
    """Command -> its section of docs/cli.md."""
    parts = re.split(r"^## (regraft.*)$", CLI_PAGE, flags=re.M)
    return {name.strip(): text for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language, "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), flags=re.M | re.S)
    return [text for name, text in fenced if name == language]


def mentioned_commands(path: Path) -> list[str]:
    """Commands of regraft in inline code and in blocks."""
    lines = [line for block in blocks(path, "") for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S))
    parts = [part.strip() for text in (*lines, *spans) for part in re.split(r"&&|[|>#]", text)]
    return [part for part in parts if re.match(r"regraft( |$)", part)]


@pytest.mark.parametrize("script", ["make_reference.py", "make_tables.py", "make_pages.py"])
def test_generated_parts_are_current(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    monkeypatch.setattr(sys, "argv", [f"docs/{script}", "--check"])
    runpy.run_path(str(REPOSITORY / "docs" / script), run_name="__main__")  # SystemExit says what is old


def test_every_command_is_documented() -> None:
    """The page is generated from the functions; here its list is compared with what the program itself offers."""

    def commands(name: str, command: object) -> set[str]:
        inner: dict[str, object] = getattr(command, "commands", {})
        return {name}.union(*(commands(f"{name} {word}", each) for word, each in inner.items()))

    assert set(documented()) == commands("regraft", get_command(app)) - {"regraft data"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_option_that_is_mentioned_exists(path: Path) -> None:
    known = documented()
    for mention in mentioned_commands(path):
        words = mention.split()[1:]
        if not words or words[0].startswith(("-", "[")):
            continue  # the program itself
        command = " ".join(["regraft", *words[: 2 if words[0] == "data" else 1]])
        if words != ["data"]:
            assert command in known, f"{path.name}: {mention}"
        for option in (word for word in words if re.match(r"--\w", word)):
            assert f"`{option}`" in known[command], f"{path.name}: {command} has no {option}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_mentioned_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    named = re.findall(r"`((?:src|docs|tests|notebooks|benchmarks|\.ci)/[\w./-]*)`", text)
    for name in linked:
        assert (path.parent / name).exists(), f"{path.name}: {name}"
    for name in named:
        assert (REPOSITORY / name).exists(), f"{path.name}: {name}"


def test_the_map_names_every_folder_and_module_of_the_package() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    package = REPOSITORY / "src" / "regraft"
    for item in package.iterdir():
        if (item.is_dir() and (item / "__init__.py").is_file()) or (
            item.suffix == ".py" and item.name != "__init__.py"
        ):
            assert f"src/regraft/{item.name}" in readme, item.name


def test_the_two_commands_stand_in_the_readme() -> None:
    commands = [line for block in blocks(REPOSITORY / "README.md", "") for line in block.splitlines()]
    assert "python -m pip install . && regraft run" in commands
    assert "python -m pip install '.[test]' && python -m pytest" in commands


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_study_that_is_shown_is_a_study(path: Path) -> None:
    for block in blocks(path, "yaml"):
        data = yaml.safe_load(block)
        if isinstance(data, dict) and "study" in data:
            assert Study.from_dict(data).all_rows()


def test_every_name_of_the_package_that_the_readme_uses_exists() -> None:
    (example,) = blocks(REPOSITORY / "README.md", "python")
    assert len([line for line in example.splitlines() if line]) == 5
    used = {node.attr for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Attribute)}
    assert {"Study", "from_yaml", "run_study", "write_report", "to_csv"} == used
    assert {"Study", "run_study", "write_report"} <= set(regraft.__all__)
    assert hasattr(regraft.Results, "to_csv")


def test_every_field_of_a_study_is_documented() -> None:
    page = (REPOSITORY / "docs" / "study-file.md").read_text("utf-8")
    for model in (Study, Source, Preprocessing, Target, Episodes, Recipe, Row, Tuning, Head, Grid):
        for field in model.model_fields:
            assert re.search(rf"^\| `{field}` \|", page, flags=re.M), f"{model.__name__}.{field}"


def test_every_preset_is_in_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    for name in presets():
        assert f"`{name}`" in readme or f"regraft run {name}`" in readme, name


def test_every_decision_has_context_decision_and_consequences() -> None:
    for path in sorted((REPOSITORY / "docs" / "decisions").glob("*.md")):
        text = path.read_text("utf-8")
        assert re.match(rf"# {path.name[:4]}: ", text), path.name
        for part in ("## Context", "## Decision", "## Consequences"):
            assert part in text, f"{path.name}: {part}"
