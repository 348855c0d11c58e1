"""Branch coverage of the suite: which files are under 95 %, and what of them is not run.

python -m tests.harness.covered [--part tests/unit ...] [--slow] [--record]

Processes that tests start are measured as well, but for those that are killed. Code that only a device, a cluster or
another system runs is left out: DEVICE_ONLY, and what is marked so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harness.figures import finish

REPOSITORY = Path(__file__).parents[2]
LIMIT = 95.0  # percent of statements and branches
DEVICE_ONLY = (
    "*/learn/graphs.py",  # CUDA graphs
    "*/study/ray_executor.py",  # needs Ray: tests/study/test_ray.py with a cluster
    "*/study/devices.py",  # several GPUs
)
TIMED = (  # tests with a limit of time, which measuring slows down
    "takes_less_than_half_a_second", "loads_nothing_heavy", "a_broken_study_is_planned_or_refused",
)  # fmt: skip
SETTINGS = """
[run]
branch = True
source = regraft
parallel = True
patch = subprocess, _exit
sigterm = True
data_file = {folder}/data
[report]
omit = {omit}
exclude_also =
    if TYPE_CHECKING:
    @overload
    if os.name == "nt"
    device.type == "cuda"
"""


def measure(parts: Sequence[str], folder: Path, *, slow: bool) -> list[str]:
    """Run the tests under coverage, slow ones one after the other; returns what went wrong."""
    settings = folder / "coverage.ini"
    settings.write_text(SETTINGS.format(folder=folder, omit="\n    ".join(DEVICE_ONLY)))
    start = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest"]
    untimed = ["-k", " and ".join(f"not {name}" for name in TIMED)]
    runs = {"default": ["-m", "not slow and not gpu and not network"]}
    if slow:
        runs["slow"] = ["-n", "0", "-m", "slow and not gpu and not network"]
    failed = []
    for name, chosen in runs.items():
        done = subprocess.run([*start, *chosen, *untimed, *parts], cwd=REPOSITORY, stdout=sys.stderr, check=False)
        if done.returncode:
            failed.append(f"the {name} tests ended with exit code {done.returncode}")
    return failed


def combined(folder: Path) -> dict[str, Any]:
    """The JSON report over all processes."""
    coverage, settings = [sys.executable, "-m", "coverage"], f"--rcfile={folder / 'coverage.ini'}"
    report = folder / "report.json"
    quiet = {**os.environ, "COVERAGE_PROCESS_START": ""}
    subprocess.run([*coverage, "combine", "-q", settings, str(folder)], check=True, cwd=REPOSITORY, env=quiet)
    subprocess.run([*coverage, "json", "-q", settings, "-o", str(report)], check=True, cwd=REPOSITORY, env=quiet)
    found: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return found


def ranges(lines: Sequence[int]) -> str:
    """'3, 7-9'."""
    found: list[list[int]] = []
    for line in lines:
        if found and line == found[-1][-1] + 1:
            found[-1].append(line)
        else:
            found.append([line])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def figures(report: dict[str, Any], failed: list[str], *, slow: bool) -> dict[str, Any]:
    low = {
        name.removeprefix("src/regraft/"): {
            "percent": round(one["summary"]["percent_covered"], 1),
            "lines not run": ranges(one["missing_lines"]),
            "branches not taken": len(one["missing_branches"]),
        }
        for name, one in sorted(report["files"].items(), key=lambda item: item[1]["summary"]["percent_covered"])
        if one["summary"]["percent_covered"] < LIMIT
    }
    totals = report["totals"]
    return {
        "coverage": {
            "percent of statements and branches": round(totals["percent_covered"], 2),
            "statements": totals["num_statements"],
            "branches": totals["num_branches"],
            "files": len(report["files"]),
            "tests": "default and slow" if slow else "default",
            f"files under {LIMIT:g} %": len(low),
            "left out": list(DEVICE_ONLY),
            "violations": failed,
        },
        "under the limit": low,
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", action="append", help="a folder of tests, or a test file; default: all")
    options.add_argument("--slow", action="store_true", help="slow tests, too")
    options.add_argument("--record", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="regraft-coverage-") as name:
        failed = measure(given.part or ["tests"], Path(name), slow=given.slow)
        found = figures(combined(Path(name)), failed, slow=given.slow)
    return finish("coverage", found, record=given.record)


if __name__ == "__main__":
    raise SystemExit(main())
