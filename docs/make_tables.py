"""Writes the README's table of results from recorded runs: `python docs/make_tables.py [--check]`.

A recorded run is a `results.json` of `regraft run`, kept as `docs/records/NAME.json` without its large matrices:
`python docs/make_tables.py --record regraft-NAME/results.json`. No number is typed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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


def speed_block() -> str:
    """Tables of the benchmarks of frozen trunks, from their records."""
    tables = {
        "frozen-job": _contenders, "frozen-study": _contenders, "extract": _rates, "memory": _peaks,
    }  # fmt: skip
    parts = []
    for name, table in tables.items():
        path = RECORDS / "benchmarks" / f"{name}.json"
        if not path.is_file():  # not recorded yet
            continue
        content = json.loads(path.read_text("utf-8"))
        title, lines, where = table(content)
        parts.append(f"**{title}**\n\n{_lines(lines)}\n\n`{content['command']}`; {where}; recorded in "
                     f"`docs/records/benchmarks/{path.name}`.")  # fmt: skip
    return "\n\n".join(parts)


Lines = list[list[str]]


def _contenders(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Whole processes: seconds, and how many times as fast as the plain loop."""
    rows = content["contenders"]
    plain = next(row for row in rows if row["name"].startswith("plain"))["median"]
    lines = [["contender", "seconds (range, n)", "times as fast as the plain loop", "test accuracy"]]
    for row in rows:
        if row["median"] is None:
            lines.append([row["name"], row["note"], "", ""])
            continue
        n, low, high = len(row["seconds"]), min(row["seconds"]), max(row["seconds"])
        spread = f" ({low:.1f} to {high:.1f}, n = {n})" if n > 1 else f" (n = {n})"
        accuracy = "" if row["accuracy"] is None else percent(row["accuracy"])
        lines.append([row["name"], f"{row['median']:,.1f}{spread}", f"{plain / row['median']:.1f}", accuracy])
    scaled = "; the plain loop is scaled from a part (its arithmetic is in the record)" if "scaling" in content else ""
    return content["job"], lines, f"{content['machine']}, torch {content['versions']['torch']}{scaled}"


def _rates(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Images a second of what regraft chose, and ratios in the same run."""
    lines = [["network", "chosen", "images/s", "x eager PyTorch", "x ONNX Runtime called directly"]]
    for job in content["results"]:
        name = job["chosen"]
        rate, ratios = job["images_per_second"][name]["median"], job["ratios"][name]
        ours = [f"{rate:,.0f}", f"{ratios['eager PyTorch']:.2f}", f"{ratios['ONNX Runtime']:.2f}"]
        lines.append([job["job"], name.removeprefix("regraft "), *ours])
    where = f"{content['device']}, torch {content['versions']['torch']}, medians of {content['rounds']} rounds"
    return "Extraction of features", lines, where


def _peaks(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Peak resident memory of the whole process, stage by stage."""
    lines = [["stage", "peak memory"], *([stage, f"{gib:.2f} GiB"] for stage, gib in content["peak_gib"].items())]
    return f"Memory: {content['images']:,} images", lines, f"{content['machine']}, {content['cores']} cores"


def _lines(lines: Lines) -> str:
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


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
    update({"README.md": {"results": results_block(), "speed": speed_block()}}, check="--check" in sys.argv[1:])
