"""The notebooks: NAME.py is what is written, NAME.ipynb the same with its outputs, made here.

    python notebooks/make.py                 run all in an empty home folder, write NAME.ipynb
    python notebooks/make.py 2-where-to-cut  this one
    python notebooks/make.py --check         run nothing; say which NAME.ipynb is not that of its NAME.py
    python notebooks/make.py --text          run nothing; take over what has changed of the text between code

The pairing is jupytext's (percent format): either file opens as a notebook.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("[0-9]-*.py")))
TIMEOUT_SECONDS = 900  # of one cell, on a slow machine
PASSING = "progress"  # tag of cells whose output is of the moment, and not kept


def read(name: str) -> NotebookNode:
    """The notebook of NAME.py, without outputs; metadata that name no version of anything."""
    written = jupytext.read(FOLDER / f"{name}.py")
    notebook: NotebookNode = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    for number, cell in enumerate(written.cells, start=1):
        make = nbformat.v4.new_markdown_cell if cell.cell_type == "markdown" else nbformat.v4.new_code_cell
        tags = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        notebook.cells.append(make(cell.source, id=f"cell-{number}", metadata=tags))  # type: ignore[no-untyped-call]
    notebook.metadata = nbformat.from_dict(  # type: ignore[no-untyped-call]
        {
            "jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run it in `folder`, with a home folder that holds nothing; outputs of the moment are dropped."""
    metadata = notebook.metadata.copy()
    before = os.environ.get("REGRAFT_HOME")
    os.environ["REGRAFT_HOME"] = str(folder / "home")
    try:
        client = NotebookClient(
            notebook, timeout=TIMEOUT_SECONDS, record_timing=False, resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    finally:
        os.environ.pop("REGRAFT_HOME")
        if before is not None:
            os.environ["REGRAFT_HOME"] = before
    notebook.metadata = metadata
    for cell in notebook.cells:
        if PASSING in cell.metadata.get("tags", []):
            cell.outputs = []
    return notebook


def source(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """What is written in it: kind, text and tags of every cell."""
    return [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ()))) for cell in notebook.cells]


def with_outputs_of(stored: NotebookNode, name: str) -> NotebookNode:
    """The notebook of NAME.py with the outputs that are kept. Raises SystemExit if its code is another."""
    notebook = read(name)
    old, new = ([cell for cell in one.cells if cell.cell_type == "code"] for one in (stored, notebook))
    if [cell.source for cell in old] != [cell.source for cell in new]:
        raise SystemExit(f"{name}: its code has changed; run: python notebooks/make.py {name}")
    for cell, kept in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = kept.outputs, kept.execution_count
    return notebook


def not_current() -> list[str]:
    """Names of the notebooks that lack their .ipynb, or whose .ipynb is of another .py."""
    stored = {file.stem: _stored(file) for file in FOLDER.glob("*.ipynb")}
    old = [name for name in NAMES if name not in stored or source(stored[name]) != source(read(name))]
    return old + [f"{name} (has no .py)" for name in sorted(stored.keys() - set(NAMES))]


def _stored(file: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def unfit_outputs(notebook: NotebookNode) -> list[str]:
    """What may not be kept of the outputs: errors, warnings, folders and the name of a machine."""
    found = []
    place = re.compile(r"(?<![\w.:/<&;-])/[a-z]\w*/[\w.-]+|\b[A-Z]:\\\w+")
    machine = platform.node()
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            text = output.get("text", "") + "".join(
                str(value) for kind, value in output.get("data", {}).items() if kind != "image/png"
            )
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number}: {text[:200]}{output.get('evalue', '')}")
            found += [f"cell {number}: {hit}" for hit in place.findall(text)]
            found += [f"cell {number}: {machine}"] if len(machine) > 4 and machine in text else []
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--check", action="store_true", help="run nothing, compare the pairs")
    parser.add_argument("--text", action="store_true", help="run nothing, take over text")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.check:
        if old := not_current():
            raise SystemExit(f"not current: {', '.join(old)}; run: python notebooks/make.py")
        return
    for name in given.names or NAMES:
        began, file = time.perf_counter(), FOLDER / f"{name}.ipynb"
        if given.text:
            notebook = with_outputs_of(_stored(file), name)
        else:
            with tempfile.TemporaryDirectory() as folder:
                notebook = execute(read(name), Path(folder))
        if unfit := unfit_outputs(notebook):
            raise SystemExit("\n".join([f"{name}: outputs that cannot be kept:", *unfit]))
        nbformat.write(notebook, file)  # type: ignore[no-untyped-call]
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
