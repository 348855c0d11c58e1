"""A thousand files that mean ill: each is refused with a message, or found harmless; none runs code, writes outside of
its folder, hangs or fills the memory.

python -m tests.harness.hostile_files --n 1000 [--seed 0] [--record]

Child processes with limited memory try them. After each file: the trace that its code would leave is not there, and
nothing has changed beside the folders that regraft was given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tests.harness.figures import finish

BATCH = 50  # files of a child
LIMIT_SECONDS = 10.0  # of computing, a file
LIMIT_BYTES = 3 * 2**30  # of address space, beyond what a child has when it begins
OWN = ("in", "home", "out")  # folders of a case in which files may appear


@dataclass(frozen=True)
class Tried:
    """What became of one file."""

    made: str  # the function that made it
    outcome: str  # "harmless", the name of the refusal's class, or "FAILED"
    said: str
    seconds: float
    megabytes: float  # by which the peak of the process rose


class TooSlow(BaseException):
    """Raised by the clock."""


def attempt(make: Any, random: np.random.Generator, root: Path) -> Tried:
    """Make a file below `root`, do with it what a user would, and look at what is left."""
    from regraft.errors import RegraftError

    for name in OWN:
        (root / name).mkdir(parents=True)
    (root / "sentinel" / "deep").mkdir(parents=True)
    (root / "sentinel" / "deep" / "file").write_text("untouched")
    os.environ["REGRAFT_HOME"] = str(root / "home")
    action = make(random, root / "in")
    before, peak, began = _tree(root), _peak(), time.process_time()
    outcome, said = "FAILED", ""
    signal.setitimer(signal.ITIMER_REAL, 6 * LIMIT_SECONDS)
    try:
        said = action()
        outcome = "harmless" if said else "FAILED"
        said = said or "taken in silence"
    except RegraftError as error:
        outcome, said = type(error).__name__, str(error)
    except TooSlow:
        said = "did not end"
    except BaseException as error:
        said = f"{type(error).__name__}: {error!s:.300}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.process_time() - began
    if outcome != "FAILED" and (wrong := _wrong(said, seconds, before, root)):
        outcome, said = "FAILED", f"{wrong}: {said[:200]!r}"
    return Tried(
        make.__name__,
        outcome,
        said.replace(str(root), "CASE")[:400],
        round(seconds, 3),
        round((_peak() - peak) / 1e6, 1),
    )


def _wrong(said: str, seconds: float, before: set[str], root: Path) -> str:
    if (root / "in" / "canary").exists():
        return "its code was run"
    if changed := _tree(root) ^ before:
        return f"wrote outside: {sorted(changed)[:3]}"
    if (root / "sentinel" / "deep" / "file").read_text() != "untouched":
        return "changed a file outside"
    if seconds > LIMIT_SECONDS:
        return f"took {seconds:.1f} s"
    if any(ord(c) < 32 and c not in "\n\t" for c in said):
        return "a message that steers a terminal"
    return f"a message of {len(said):,} characters" if not 10 <= len(said) <= 20_000 else ""


def _tree(root: Path) -> set[str]:
    """What lies beside the case's own folders, and above it."""
    beside = {str(p) for p in root.rglob("*") if p.relative_to(root).parts[0] not in OWN}
    return beside | {str(p) for p in root.parent.iterdir()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _rings(number: int, frame: FrameType | None) -> None:
    raise TooSlow


def makers() -> list[Any]:
    from tests.harness import hostile_archives, hostile_folders, hostile_weights

    return [*hostile_weights.CASES, *hostile_archives.CASES, *hostile_folders.CASES]


def child(seed: int, batch: int, count: int, only: str) -> None:
    """Print one line of JSON for each of `count` files."""
    made = [make for make in makers() if only in make.__name__]
    warnings.simplefilter("ignore")
    here = int(next(w for w in Path("/proc/self/status").read_text().splitlines() if w.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (here * 1024 + LIMIT_BYTES,) * 2)
    signal.signal(signal.SIGALRM, _rings)
    with tempfile.TemporaryDirectory(prefix="regraft-hostile-") as folder:
        for i in range(count):
            number = batch * BATCH + i
            root = Path(folder) / "case"
            root.mkdir()
            one = attempt(made[number % len(made)], np.random.default_rng([seed, number]), root)
            print(json.dumps(asdict(one)), flush=True)
            shutil.rmtree(root)


def run(n: int, seed: int, only: str = "") -> list[Tried]:
    """Try `n` files; a child that dies counts as a failure of the file that it was at, and the next one goes on."""
    tried: list[Tried] = []
    for number, start in enumerate(range(0, n, BATCH)):
        count = min(BATCH, n - start)
        command = [sys.executable, "-m", "tests.harness.hostile_files", "--child", str(number), "--only", only]
        done = subprocess.run(
            [*command, "--n", str(count), "--seed", str(seed)], capture_output=True, text=True, check=False
        )
        lines = [Tried(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or len(lines) < count:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            lines.append(Tried(f"file {len(lines)} of batch {number}", "FAILED", f"the process died: {last}", 0.0, 0.0))
        tried += lines
    return tried


def summary(tried: list[Tried], seed: int) -> dict[str, Any]:
    """The figures."""
    refused = Counter(one.outcome for one in tried if one.outcome not in ("harmless", "FAILED"))
    by_kind = {name: Counter(one.outcome for one in tried if one.made == name) for name in {o.made for o in tried}}
    slowest, hungriest = max(tried, key=lambda one: one.seconds), max(tried, key=lambda one: one.megabytes)
    return {
        "seed": seed,
        "tried": len(tried),
        "harmless": sum(one.outcome == "harmless" for one in tried),
        "refused": dict(refused.most_common()),
        "failed": [asdict(one) for one in tried if one.outcome == "FAILED"],
        "kinds": {name: dict(counts) for name, counts in sorted(by_kind.items())},
        "slowest": {"seconds": slowest.seconds, "made": slowest.made, "said": slowest.said[:100]},
        "most_memory": {"megabytes": hungriest.megabytes, "made": hungriest.made, "said": hungriest.said[:100]},
        "limits": {"seconds": LIMIT_SECONDS, "bytes": LIMIT_BYTES},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the name of a kind of file")
    parser.add_argument("--record", action="store_true", help="write docs/records/harness/hostile-files.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.seed, given.child, given.n, given.only)
        return 0
    figures = summary(run(given.n, given.seed, given.only), given.seed)
    return finish("hostile-files", figures, record=given.record) or int(bool(figures["failed"]))


if __name__ == "__main__":
    raise SystemExit(main())
