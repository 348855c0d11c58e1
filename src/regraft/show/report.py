"""A study's report as one HTML file that needs no network.

Safety: names come from studies and folders, so the template escapes everything, JSON in scripts holds no "<",
static figures are images (which run no script), and the page's own policy forbids every load and every script
other than the two whose digests it names. Vega evaluates its expressions by interpreter: no eval.
"""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import metadata, resources
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from markupsafe import Markup

from regraft.analysis.alarm import Alarm, alarms
from regraft.analysis.answer import answer
from regraft.analysis.compare import KINDS, Comparisons, comparisons, p_text
from regraft.analysis.stats import binomial_error
from regraft.analysis.table import TableRow, rows_table
from regraft.analysis.variance import Spread, points, spreads
from regraft.analysis.worth import Worth, count, label_worths
from regraft.show import figures, figures_transfer
from regraft.show.text import duration, percent, printable, script_json
from regraft.study.results import Cell, Results

MAX_MATRIX_CLASSES = 20  # beyond it a confusion matrix is not readable; its largest entries are
SHOWN_PAIRS = 12
SHOWN_TARGETS = 4  # with a confusion matrix
FIGURES = (
    figures.accuracy_by_row,
    figures.accuracy_by_cut,
    figures_transfer.lost_by_cut,
    figures.accuracy_by_budget,
    figures.learning_curves,
    figures_transfer.mixing_curve,
)

# Draws every figure over its static image, in the page's colours, and again when those change.
DRAWING = """
"use strict";
const made = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
async function draw() {
  for (const [i, spec] of made.specs.entries()) {
    const figure = document.getElementById("figure-" + i);
    figure.classList.add("drawn");
    try {
      const config = dark.matches ? made.dark : made.light;
      const options = {actions: false, ast: true, renderer: "svg", config};
      await vegaEmbed(figure.querySelector(".live"), spec, options);
    } catch (error) {
      figure.classList.remove("drawn");
      console.error(error);
    }
  }
}
dark.addEventListener("change", draw);
draw();
"""


def write_report(results: Results, path: str | Path, *, command: str = "") -> Path:
    """Write the report of `results` to `path`, whole or not at all; returns the path.

    command: what a reader types to repeat the study.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(report_html(results, command=command), "utf-8")
    unfinished.replace(file)
    return file


def report_html(results: Results, *, command: str = "") -> str:
    """The report as HTML."""
    template = resources.files("regraft.show").joinpath("templates/report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Names must not reorder the text around them, nor hide: no control characters.
    environment.finalize = lambda value: (
        printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
    )
    environment.filters["percent"] = percent
    environment.filters["count"] = lambda n: "–" if n is None else f"{n:,}"
    return environment.from_string(template).render(**_content(results, command))


def _content(results: Results, command: str) -> dict[str, Any]:
    rows, best = rows_table(results), _best_cells(results)
    worths, seconds = label_worths(results), _seconds(results.cells)
    compared = comparisons(results)
    charts = [chart for make in FIGURES if (chart := make(results)) is not None]
    vega = figures.javascript() if charts else ""
    specs = [figures.spec(chart) for chart in charts]
    themes = {"light": figures.theme(dark=False), "dark": figures.theme(dark=True)}
    return {
        "policy": _policy(vega, DRAWING),
        "study": results.study.study,
        "question": results.study.question or f"What did the study {results.study.study} find?",
        "answer": answer(results),
        "alarms": _joined(alarms(results)),
        "missing": [row for row in rows if row.missing],
        "rows": [
            {
                **_fields(row),
                "below": _below_accuracy(row),
                "worth": worths[row.name].text() if row.name in worths else "–",
                "seconds": seconds.get(row.name, "–"),
            }
            for row in rows
        ],
        "single": any(row.n == 1 for row in rows),
        "worth_note": _worth_note(worths),
        "with_seconds": bool(seconds),
        "with_original": any(row.original is not None for row in rows),
        "with_note": any(row.note for row in rows),
        "figures": [{**figures.images(spec), "description": spec["description"]} for spec in specs],
        "comparisons": _compared(compared),
        "comparisons_note": compared.note(len(compared.shown())),
        "spreads": [_spread(row, spread) for row, spread in spreads(results)],
        "confusions": [_confusion(cell) for cell in best[:SHOWN_TARGETS]],
        "more_targets": len(best) > SHOWN_TARGETS,
        "provenance": _provenance(results, command),
        "keys": results.cells,
        "version": metadata.version("regraft"),
        # In the page a figure takes its width from its place.
        "figures_json": Markup(script_json({"specs": [{**spec, "width": "container"} for spec in specs], **themes})),
        "vega": Markup(vega),
        "drawing": Markup(DRAWING),
    }


def _fields(row: TableRow) -> dict[str, Any]:
    return {**vars(row), "what": row.what}


def _below_accuracy(row: TableRow) -> str:
    """Every seed; or of a single one, what its interval is over, or which its test images alone give."""
    if row.n != 1:
        return ", ".join(f"{100 * score:.1f}" for score in row.scores.values()) + " %" if row.n else ""
    assert row.summary is not None
    return row.summary.test_sample() if row.summary.episodes is None else f"over {row.summary.episodes:,} episodes"


def _seconds(cells: list[Cell]) -> dict[str, str]:
    """Row -> mean seconds of its scored trainings, of those that recorded them."""
    spent: dict[str, list[float]] = {}
    for cell in cells:
        if "seconds" in cell.cost:
            spent.setdefault(cell.row, []).append(float(cell.cost["seconds"]))
    return {row: "< 0.1" if (mean := fmean(each)) < 0.05 else f"{mean:,.1f}" for row, each in spent.items()}


def _worth_note(worths: dict[str, Worth]) -> str:
    """Which curves the label worths were read off; "" if there are none."""
    curves = dict.fromkeys(
        f"{worth.scratch} from {count(worth.first)} to {count(worth.last)} per class" for worth in worths.values()
    )
    return f"measured with {'; '.join(curves)}" if curves else ""


def _compared(compared: Comparisons) -> list[dict[str, Any]]:
    """The pairs that are shown, each with what its line says."""
    return [
        {
            "what": KINDS[pair.kind],
            "a": pair.a,
            "b": pair.b,
            "difference": pair.difference.text().partition(" (")[0],
            "n": pair.difference.n,
            "p": p_text(pair.difference.p).removeprefix("= "),
            "adjusted": p_text(pair.adjusted).removeprefix("= "),
            "clear": pair.clear,
            "verdict": pair.verdict,
            "seeds": pair.seeds_needed().short(),
        }
        for pair in compared.shown()
    ]


def _spread(row: TableRow, spread: Spread) -> dict[str, Any]:
    limit = "" if spread.measured else "at most "
    return {
        "name": row.name,
        "n": spread.n,
        "total": spread.text(),
        "test": f"{limit}{points(spread.test)} points",
        "test_images": spread.test_images,
        "training": spread.told(),
    }


def _policy(*scripts: str) -> str:
    """No load from anywhere; only these scripts, named by their digests."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def _joined(raised: list[Alarm]) -> list[dict[str, str]]:
    """Alarms; those of one row that say the same are joined."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for alarm in raised:
        seeds.setdefault((alarm.row, alarm.message), []).append(alarm.seed)
    return [
        {
            "row": row,
            "message": message,
            "seeds": ("seed " if len(numbers) == 1 else "seeds ") + ", ".join(map(str, numbers)),
        }
        for (row, message), numbers in seeds.items()
    ]


def _best_cells(results: Results) -> list[Cell]:
    """Per target the cell with a confusion matrix and the highest validation accuracy."""
    best: dict[str, Cell] = {}
    for cell in results.cells:
        if not cell.confusion:
            continue
        other = best.get(cell.target)
        if other is None or (cell.validation_accuracy or 0.0) > (other.validation_accuracy or 0.0):
            best[cell.target] = cell
    return list(best.values())


def _confusion(cell: Cell) -> dict[str, Any]:
    """A matrix with each line's shares, or for many classes its largest entries off the diagonal."""
    n = len(cell.confusion)
    names = cell.class_names or tuple(map(str, range(n)))
    found = {"row": cell.row, "seed": cell.seed, "target": cell.target, "names": names, "classes": n}
    if n <= MAX_MATRIX_CLASSES:
        matrix = [
            [{"count": count, "share": f"{0.75 * count / max(1, sum(line)):.3f}"} for count in line]
            for line in cell.confusion
        ]
        return {**found, "matrix": matrix}
    wrong = [(count, i, j) for i, line in enumerate(cell.confusion) for j, count in enumerate(line) if i != j]
    largest = sorted(wrong, reverse=True)[:SHOWN_PAIRS]
    pairs = [{"true": names[i], "predicted": names[j], "count": count} for count, i, j in largest if count]
    return {**found, "matrix": None, "pairs": pairs}


def _provenance(results: Results, command: str) -> list[tuple[str, str]]:
    """Name and value of what a reader needs to judge and repeat the study."""
    costs = [cell.cost for cell in results.cells]
    seconds = sum(float(cost.get("seconds", 0)) for cost in costs)
    facts = [
        ("Test scores taken", f"{results.scores_taken}; test labels were read once for each"),
        ("Test set's own error", _test_errors(results.cells)),
        ("Computing time", f"{duration(seconds)} for the scored fits"),
    ]
    for name, title in (("device", "Device"), ("threads", "Threads"), ("machine", "Machine")):
        facts.append((title, ", ".join(dict.fromkeys(str(cost[name]) for cost in costs if cost.get(name)))))
    facts.append(("Command", command))
    versions = {key: value for cost in costs for key, value in cost.get("versions", {}).items()}
    facts.append(("Versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
    return [(name, value) for name, value in facts if value]


def _test_errors(cells: list[Cell]) -> str:
    """Binomial standard error of the best accuracy on each test set."""
    best: dict[tuple[str, int], float] = {}
    for cell in cells:
        key = (cell.data, cell.test_images)
        best[key] = max(best.get(key, 0.0), cell.accuracy)
    return "; ".join(
        f"± {100 * binomial_error(accuracy, n):.2f} points "
        f"(standard error at {percent(accuracy)}, {n:,} images of {data})"
        for (data, n), accuracy in best.items()
    )
