"""The notebooks: each .ipynb is its .py with outputs, runs from an empty home folder, and tells of no machine."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("[0-9]-*.py"))


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def stored(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_four_notebooks_and_each_is_its_script_with_outputs() -> None:
    assert len(NAMES) == 4
    assert make.not_current() == []


def test_a_changed_script_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    monkeypatch.setattr(make, "NAMES", ("1-a",))
    (tmp_path / "1-a.py").write_text("# %% [markdown]\n# # A\n\n# %%\nx = 1\n")
    assert make.not_current() == ["1-a"]
    nbformat.write(make.read("1-a"), tmp_path / "1-a.ipynb")  # type: ignore[no-untyped-call]
    assert make.not_current() == []
    (tmp_path / "1-a.py").write_text("# %% [markdown]\n# # B\n\n# %%\nx = 1\n")
    assert make.not_current() == ["1-a"]
    kept = make.with_outputs_of(stored_in(tmp_path), "1-a")  # of the text alone: no need to run it again
    assert kept.cells[0].source == "# B"
    (tmp_path / "1-a.py").write_text("# %% [markdown]\n# # B\n\n# %%\nx = 2\n")
    with pytest.raises(SystemExit, match="its code has changed"):
        make.with_outputs_of(stored_in(tmp_path), "1-a")


def stored_in(folder: Path) -> Any:
    return nbformat.read(folder / "1-a.ipynb", as_version=4)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_there_and_hold_no_error_and_no_place_of_a_machine(name: str) -> None:
    notebook = stored(name)
    nbformat.validate(notebook)
    assert make.unfit_outputs(notebook) == []
    for cell in code(notebook):
        assert cell.execution_count is not None
        shows = "print(" in cell.source or "display(" in cell.source
        assert bool(cell.outputs) == (shows and "progress" not in cell.metadata.get("tags", [])), cell.source
    drawn = [output.data for cell in code(notebook) for output in cell.outputs if "data" in output]
    assert any("image/svg+xml" in data for data in drawn)
    assert any("text/html" in data for data in drawn)  # the table of rows
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000


def test_what_may_not_be_kept_is_found() -> None:
    for text in ("see /home/somebody/x.py", "in /usr/lib/python3", r"at C:\Users\x"):
        cell = nbformat.v4.new_code_cell("x")  # type: ignore[no-untyped-call]
        cell.outputs = [nbformat.v4.new_output("stream", text=text)]  # type: ignore[no-untyped-call]
        found = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
        assert make.unfit_outputs(found), text


@pytest.mark.parametrize("name", NAMES)
def test_it_installs_regraft_only_where_it_is_missing_and_names_a_way_to_cifar(name: str) -> None:
    first = code(stored(name))[0].source
    tree = ast.parse(first)  # a script as well: no magic stands in it
    (install,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert "find_spec('regraft') is None" in ast.unparse(install.test)
    assert "install -q regraft" in ast.unparse(install)
    assert re.search(r"CIFAR-10 \(.*\)", (FOLDER / f"{name}.py").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_no_measured_number_is_typed(name: str) -> None:
    """Text speaks of what is seen; the numbers stand in the outputs. Of percentages, the interval's 95 % is meant."""
    for cell in stored(name).cells:
        if cell.cell_type == "markdown":
            text = cell.source.replace("95 %", "").replace("reached 12 %", "")  # the student's, shown by a cell as well
            assert not re.search(r"\d\s?%|\d\.\d", text), cell.source


def test_the_original_study_is_told_in_ten_cells() -> None:
    assert len(code(stored("1-original-study"))) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:jupyter_client", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_it_runs_from_an_empty_home_folder(name: str, tmp_path: Path) -> None:
    notebook = make.execute(make.read(name), tmp_path)
    assert make.unfit_outputs(notebook) == []
    kinds = [[output.output_type for output in cell.outputs] for cell in code(notebook)]
    assert kinds == [[output.output_type for output in cell.outputs] for cell in code(stored(name))]
