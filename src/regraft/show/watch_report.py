"""The report of a study under way, drawn again and again in a process of its own.

A report takes a second or so of Python. In the process that trains, every step of the training would wait for the
interpreter meanwhile; here it takes idle processor time only. The parent (regraft.show.watch) writes one line of JSON
that says what to draw, then a line for each report it wants; an answer is a line of JSON, then the page in bytes.
The process ends with its parent, when there is nothing left to read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from regraft.analysis.table import rows_table
from regraft.errors import Diverged, RegraftError
from regraft.show.report import report_html
from regraft.show.text import percent, printable
from regraft.spec import Run, Study
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.results import Results, read_results
from regraft.study.store import Store, store_at

NICENESS = 15  # training comes first


def drawn(study: Study, store: Store, command: str) -> tuple[list[dict[str, Any]], bytes]:
    """Rows so far, and the report of what is scored so far. Nothing is computed; test labels are not touched."""
    keys = Keys(plan(study), store, offline=True)
    results = read_results(study, store, keys=keys)
    return rows_so_far(results, keys), report_html(results, command=command).encode()


def rows_so_far(results: Results, keys: Keys) -> list[dict[str, Any]]:
    """Of each row, as text for the page: trainings done, validation accuracy by seed, test accuracy once scored.

    Scores are taken last, when all is chosen; until then a row is known by its validation images alone."""
    rows: dict[str, dict[str, Any]] = {
        row.name: {
            "name": printable(row.name, 120), "trained": 0, "of": 0, "validation": list[str](),
            "test": row.summary.short() if row.summary else "", "alarm": row.alarm,
        }
        for row in rows_table(results)
    }  # fmt: skip
    for (name, seed), runs in keys.by_cell.items():
        merits = [merit for run in runs if (merit := _merit(run, keys)) is not None]
        told = rows[name]
        told["trained"] += len(merits)
        told["of"] += len(runs)
        if merits:  # the best recipe so far is the one that would be chosen
            told["validation"].append(f"seed {seed}: {percent(max(merits)) if max(merits) >= 0 else 'no figure'}")
    return list(rows.values())


def _merit(run: Run, keys: Keys) -> float | None:
    """Validation accuracy of a trained run, -1 without one (diverged, no validation images); None: not trained."""
    try:
        accuracy = keys.fitted(run).values["validation_accuracy"]
    except Diverged:
        return -1.0
    except RegraftError:
        return None
    return -1.0 if accuracy is None else float(accuracy)


def main() -> None:
    """Answer on what was standard output; what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform != "win32":
        os.nice(NICENESS)
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        given = json.loads(sys.stdin.readline())
        study, store = Study.from_dict(given["study"]), store_at(given["store"])
        for _ in sys.stdin:
            rows, page = drawn(study, store, given["command"])
            answers.write(json.dumps({"rows": rows, "bytes": len(page)}).encode() + b"\n" + page)
            answers.flush()


if __name__ == "__main__":
    main()
