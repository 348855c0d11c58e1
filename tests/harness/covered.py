"""Branch coverage of the default suite: which files are under 95 %, and what of them is not run.

python -m tests.harness.covered [--part tests/unit ...] [--record]      (needs: pip install coverage)

The suite runs in pieces, one process a test file, so that it may be stopped and gone on with: a piece that was measured
before is not run again unless `--anew` is given. Code that only a device or a cluster runs is left out by the patterns
of `[tool.coverage.report]` in pyproject.toml.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harness.figures import finish

REPOSITORY = Path(__file__).parents[2]
CHOSEN = "not slow and not gpu and not network"
LIMIT = 95.0  # percent of statements and branches
# Whatever leaves the process would need coverage in its children too: they are measured by the in-process tests.
DEVICE_ONLY = (
    "*/learn/graphs.py",  # CUDA graphs
    "*/study/ray_executor.py",  # needs Ray: tests/study/test_ray.py with a cluster
    "*/study/devices.py",  # several GPUs
)


def data_file(folder: Path, test: Path) -> Path:
    content = hashlib.sha256(test.read_bytes()).hexdigest()[:12]
    return folder / f"{test.stem}-{content}.coverage"


def measure(test: Path, file: Path) -> str:
    """Run one test file under coverage; returns what went wrong, or ''."""
    run = [sys.executable, "-m", "coverage", "run", "--branch", "--source=regraft", f"--data-file={file}"]
    chosen = ["-m", "pytest", "-n", "0", "-q", "-m", CHOSEN, str(test.relative_to(REPOSITORY))]
    environment = {**os.environ, "COVERAGE_CORE": "ctrace"}
    done = subprocess.run([*run, *chosen], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode in (0, 5):  # 5: no test of this file is in the default suite
        return ""
    return f"{test.name}: exit code {done.returncode}: {done.stdout.strip().splitlines()[-1:]}"


def combined(files: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The JSON report over all pieces."""
    whole, report = folder / "whole", folder / "report.json"
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "combine", "--keep", "-q", f"--data-file={whole}", *map(str, files)], check=True)
    omit = f"--omit={','.join(DEVICE_ONLY)}"
    command = [*coverage, "json", "-q", f"--data-file={whole}", omit, "-o", str(report)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
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


def figures(report: dict[str, Any], failed: list[str], pieces: int) -> dict[str, Any]:
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
            "test files": pieces,
            "percent of statements and branches": round(totals["percent_covered"], 2),
            "statements": totals["num_statements"],
            "branches": totals["num_branches"],
            "files": len(report["files"]),
            f"files under {LIMIT:g} %": len(low),
            "left out": list(DEVICE_ONLY),
            "violations": failed,
        },
        "under the limit": low,
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", action="append", help="a folder of tests, or a test file; default: all")
    options.add_argument("--anew", action="store_true")
    options.add_argument("--seconds", type=float, default=float("inf"), help="begin no further piece after this time")
    options.add_argument("--record", action="store_true")
    given = options.parse_args()
    folder = Path(tempfile.gettempdir()) / "regraft-coverage"
    folder.mkdir(exist_ok=True)
    parts = [REPOSITORY / part for part in given.part or ["tests"]]
    tests = sorted({file for part in parts for file in ([part] if part.is_file() else part.rglob("test_*.py"))})
    end, failed = time.monotonic() + given.seconds, []
    files = []
    for test in tests:
        file = data_file(folder, test)
        if given.anew or not file.is_file():
            if time.monotonic() > end:
                failed.append(f"{test.name}: no time left")
                continue
            if wrong := measure(test, file):
                failed.append(wrong)
            print(f"{test.name}: {wrong or 'measured'}", file=sys.stderr, flush=True)
        if file.is_file():
            files.append(file)
    return finish("coverage", figures(combined(files, folder), failed, len(files)), record=given.record)


if __name__ == "__main__":
    raise SystemExit(main())
