"""Writes the generated parts of the site's pages: `python docs/make_pages.py [--check] [--run] [--draw]`.

Of two kinds, so that no number is typed: tables and sentences from recorded studies (docs/records/), and what the
examples in the pages printed when they were last run (docs/outputs.json). `--run` runs them anew, `--draw` draws the
figures from the records. A study without a record is shown as not measured.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import harness_tables
import scale_tables
from blocks import REPOSITORY, table, update
from examples import digest, examples, run

from regraft import errors
from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.analysis.stats import binomial_error, summarise, wilson_interval
from regraft.analysis.table import TableRow, rows_table
from regraft.networks import describe
from regraft.show.gallery import NEEDS, SHOWS, figure, save_figure
from regraft.spec import Study
from regraft.study.results import Results

DOCS = REPOSITORY / "docs"
RECORDS = DOCS / "records"
OUTPUTS = DOCS / "outputs.json"
PACKAGES = ("torch", "numpy", "scikit-learn")
# What a record without a study of its own shows, by the start of its rows' names
FEW_IMAGES = ("6 ", "7 ")
FIGURES = [  # (file, study, figure)
    ("cuts.svg", "cifar-cpu-cuts", "cuts"),
    ("arms.svg", "yosinski-cpu", "cuts"),
    ("transfer.svg", "yosinski-cpu", "transfer"),
]
PAIR = ("random, fine-tuned, 20 per class", "trained on 0-4, fine-tuned, 20 per class")


@cache
def recorded(name: str) -> Results | None:
    """The recorded study, or None where nobody has recorded it."""
    path = RECORDS / f"{name}.json"
    return Results.from_json(path) if path.is_file() else None


def rows_block(name: str, *, starts: tuple[str, ...] = ("",), original: bool = False) -> str:
    """The rows of a recorded study whose names begin so."""
    results = recorded(name)
    if results is None:
        return not_measured(name)
    head = ["row", "training images", "accuracy [95 % t]", "n", *(["the original study"] if original else [])]
    lines = [_row(row, original=original) for row in rows_table(results) if row.name.startswith(starts)]
    return f"{table(head, lines)}\n\n{where(results)}"


def _row(row: TableRow, *, original: bool) -> list[str]:
    measured = row.summary.short() if row.summary else f"missing: {'; '.join(row.missing)}"
    images = "" if row.train_images is None else f"{row.train_images:,}"
    reported = "" if row.original is None else f"{100 * row.original:.0f} %"
    return [row.name, images, measured, str(row.n), *([reported] if original else [])]


def not_measured(name: str) -> str:
    return f"*Not measured yet: `regraft run {name}` does it ({Study.from_yaml(name).cost}).*"


def where(results: Results) -> str:
    name = results.study.study
    devices = ", ".join(dict.fromkeys(str(cell.cost["device"]) for cell in results.cells))
    torch_versions = ", ".join(dict.fromkeys(cell.cost["versions"]["torch"] for cell in results.cells))
    return f"*Recorded: `regraft run {name}`, {devices}, torch {torch_versions}; `docs/records/{name}.json`.*"


def answer_block(name: str) -> str:
    """The answer that the report of a recorded study gives."""
    results = recorded(name)
    if results is None:
        return not_measured(name)
    return "\n>\n".join(f"> {sentence}" for sentence in answer(results)) + f"\n\n{where(results)}"


def comparisons_block(name: str, *, kinds: tuple[str, ...] | None = None, limit: int = 8) -> str:
    """Paired differences of a recorded study, those of each kind with the smallest p."""
    results = recorded(name)
    if results is None:
        return not_measured(name)
    found = comparisons(results)
    shown = [
        pair
        for pair in found.shown(limit if kinds is None else len(found.family))
        if kinds is None or pair.kind in kinds
    ]
    lines = [
        [pair.a, pair.b, pair.difference.text().split(" (")[0], f"{pair.adjusted:.2g}", pair.verdict] for pair in shown
    ]
    made = table(["row", "minus", "difference [95 % paired t]", "p after Holm", "verdict"], lines)
    return f"{made}\n\n{found.note(len(shown))}"


def statistics_block() -> str:
    """The numbers of two recorded rows, step by step."""
    results = recorded("quickstart")
    assert results is not None
    lines = []
    for name in PAIR:
        cells = [cell for cell in results.cells if cell.row == name]
        seeds = ", ".join(f"{100 * cell.accuracy:.1f} %" for cell in cells)
        summary = summarise([cell.accuracy for cell in cells])
        lines.append([name, seeds, summary.short()])
    (pair,) = [pair for pair in comparisons(results).family if {pair.a, pair.b} == set(PAIR)]
    images = results.cells[-1].test_images
    low, high = wilson_interval(round(summary.mean * images), images)
    return "\n\n".join([
        table(["row", "accuracy of each seed", "mean [95 % t]"], lines),
        f"- Seed by seed, {pair.text()}; by itself p = {pair.difference.p:.2f}.\n"
        f"- Seeds it would take: {pair.seeds_needed().text()}.\n"
        f"- The test part has {images:,} images. At {100 * summary.mean:.1f} % their own error is "
        f"{100 * binomial_error(summary.mean, images):.1f} points; Wilson's 95 % interval for one "
        f"network at that level is [{100 * low:.1f}, {100 * high:.1f}].",
        where(results),
    ])  # fmt: skip


def cuts_block(network: str, stem: str, image_size: int) -> str:
    """What `regraft cuts` lists."""
    lines = [
        [f"`{point.name}`", f"{point.depth:.2f}", " x ".join(map(str, point.shape)), f"{point.parameters:,}"]
        for point in describe(network, stem, image_size)
    ]
    return table(["cut", "depth", "shape", "parameters below"], lines)


def figures_block() -> str:
    """What can be drawn."""
    return table(["figure", "shows", "needs"], [[f"`{name}`", SHOWS[name], NEEDS[name]] for name in SHOWS])


def errors_block() -> str:
    """The tree in the docstring of regraft.errors."""
    tree = (errors.__doc__ or "").split("\n\n")[1]
    return f"```text\n{tree}\n```"


def outputs(page: str) -> dict[str, str]:
    """The output blocks of a page, from what was printed when its examples were last run."""
    kept = json.loads(OUTPUTS.read_text("utf-8"))[page]
    if kept["code"] != digest(DOCS / page):
        raise SystemExit(
            f"docs/{page}: its examples have changed since they were run; run: python docs/make_pages.py --run"
        )
    return {f"output:{name}": f"```text\n{printed}\n```" for name, printed in kept["printed"].items()}


def pages_with_outputs() -> list[str]:
    return [
        path.relative_to(DOCS).as_posix()
        for path in sorted(DOCS.rglob("*.md"))
        if any(example.name for example in examples(path))
    ]


def run_all() -> None:
    """Run the examples of every page that shows what they print, and keep it with the versions it was printed by."""
    kept: dict[str, Any] = {}
    for page in pages_with_outputs():
        with tempfile.TemporaryDirectory() as folder:
            printed = run(DOCS / page, Path(folder))
        versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
        kept[page] = {"code": digest(DOCS / page), "versions": versions, "printed": printed}
    OUTPUTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


def draw() -> None:
    """The pages' figures, from the records."""
    for name, study, kind in FIGURES:
        results = recorded(study)
        assert results is not None, study
        save_figure(figure(kind, results), DOCS / "figures" / name)


def generated() -> dict[str, dict[str, str]]:
    """{page: {block: content}}."""
    made: dict[str, dict[str, str]] = {
        "index.md": {"answer": answer_block("quickstart")},
        "tutorial/first-study.md": {"quickstart": rows_block("quickstart")},
        "tutorial/reading-the-report.md": {
            "answer": answer_block("quickstart"),
            "comparisons": comparisons_block("quickstart"),
        },
        "how-to/choose-a-cut.md": {
            "cuts": cuts_block("resnet18", "cifar", 32),
            "curve": rows_block("cifar-cpu-cuts", starts=("cut at",)),
        },
        "how-to/figures.md": {"figures": figures_block()},
        "how-to/choose-a-method.md": {"board": rows_block("board-cpu")},
        "explanation/co-adaptation.md": {"yosinski": rows_block("yosinski-cpu")},
        "explanation/statistics.md": {"statistics": statistics_block()},
        "explanation/pitfalls.md": {
            "leak": rows_block("leak"),
            "leak-pairs": comparisons_block("leak"),
            "row-6": rows_block("cifar-cpu", starts=FEW_IMAGES, original=True),
        },
        "explanation/scale.md": scale_tables.blocks(),
        "explanation/determinism.md": harness_tables.determinism_blocks(),
        "explanation/testing.md": harness_tables.testing_blocks(),
        "api-parts.md": {"errors": errors_block()},
    }
    for page in pages_with_outputs():
        made.setdefault(page, {}).update(outputs(page))
    return {f"docs/{page}": blocks for page, blocks in made.items()}


if __name__ == "__main__":
    if "--run" in sys.argv[1:]:
        run_all()
    if "--draw" in sys.argv[1:]:
        draw()
    update(generated(), check="--check" in sys.argv[1:])
