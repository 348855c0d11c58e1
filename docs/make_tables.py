"""Writes the README's table of results from recorded runs: `python docs/make_tables.py [--check]`.

A recorded run is a `results.json` of `regraft run`, kept as `docs/records/NAME.json` without its large matrices:
`python docs/make_tables.py --record regraft-NAME/results.json`. No number is typed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from blocks import REPOSITORY, update

from regraft.analysis.table import rows_table
from regraft.show.figures import accuracy_by_cut, save
from regraft.show.text import duration, percent
from regraft.spec import presets
from regraft.study.results import Results

RECORDS = REPOSITORY / "docs" / "records"


def results_block() -> str:
    """A table for every record, in the order of the files' names."""
    records = sorted(RECORDS.glob("*.json"))
    return "\n\n".join(_record(path) for path in records) or "No run is recorded yet."


def _record(path: Path) -> str:
    results = Results.from_json(path)
    rows = rows_table(results)
    with_original = any(row.original is not None for row in rows)
    head = [
        "row",
        "training images",
        "accuracy [95 % t]",
        "n",
        *(["original study"] if with_original else []),
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        accuracy = row.summary.short() if row.summary else f"missing: {'; '.join(row.missing)}"
        images = f"{row.train_images:,}" if row.train_images is not None else ""
        original = [percent(row.original)] if with_original else []
        lines.append([row.name, images, accuracy, str(row.n), *original])
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"**{results.study.study}**: {results.study.question}\n\n{table}\n\n{_where(results, path)}"


def _where(results: Results, path: Path) -> str:
    """Command, device, threads, versions and time, as recorded with the results."""

    def distinct(field: str) -> str:
        return ", ".join(dict.fromkeys(str(cell.cost[field]) for cell in results.cells))

    torch_versions = ", ".join(dict.fromkeys(cell.cost["versions"]["torch"] for cell in results.cells))
    seconds = sum(cell.cost["seconds"] for cell in results.cells)
    name = results.study.study
    command = f"regraft run {name}" if name in presets() else f"regraft run {name}.yaml"
    return (
        f"`{command}`; device {distinct('device')}, {distinct('threads')} threads, torch {torch_versions}; "
        f"{duration(seconds)} of training for the scored cells; recorded in `docs/records/{path.name}`."
    )


def record(path: Path) -> None:
    """Keep a run's results for the README: all scores, curves and costs; not the confusion matrices."""
    content = json.loads(path.read_text("utf-8"))
    for cell in content["cells"]:
        cell |= {"confusion": [], "class_names": []}
    name = content["study"]["study"]
    (RECORDS / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def draw() -> None:
    """The README's figure, from the recorded quickstart."""
    chart = accuracy_by_cut(Results.from_json(RECORDS / "quickstart.json"))
    assert chart is not None
    save(chart, REPOSITORY / "docs" / "figures" / "quickstart.svg")


if __name__ == "__main__":
    if "--record" in sys.argv[1:]:
        record(Path(sys.argv[-1]))
        draw()
    update({"README.md": {"results": results_block()}}, check="--check" in sys.argv[1:])
