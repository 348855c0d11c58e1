"""Thousands of broken study files: each is planned, or refused with a message; none crashes, hangs or fills the memory.

python -m tests.harness.fuzz_studies --n 10000 [--seed 0] [--record]

Half of the files are mutations of the shipped studies, half come from hypothesis: values of any form at the places of a
study. They are tried by child processes whose memory is limited. The same seed tries the same files.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tests.harness.figures import finish

BATCH = 250  # files of a child
LIMIT_SECONDS = 2.0  # of computing, a file
LIMIT_BYTES = 3 * 2**30  # of a child's address space
LONGEST_MESSAGE = 20_000


@dataclass(frozen=True)
class Tried:
    """What became of one file."""

    made: str  # how it was made
    outcome: str  # "accepted", the name of the refusal's class, or "FAILED"
    said: str  # the refusal, or what failed
    seconds: float  # of computing
    megabytes: float  # by which the peak of the process rose


class TooSlow(BaseException):
    """Raised by the clock: no handler of ordinary errors catches it."""


def attempt(made: str, content: str | bytes, file: Path) -> Tried:
    """Write the file, read it as a study, and plan it."""
    from regraft.errors import RegraftError
    from regraft.spec import Study
    from regraft.study.plan import plan

    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    before, began = _peak(), time.process_time()
    outcome, said = "accepted", ""
    signal.setitimer(signal.ITIMER_PROF, 3 * LIMIT_SECONDS)
    try:
        study = Study.from_yaml(file)
        plan(study)
    except RegraftError as error:
        outcome, said = type(error).__name__, str(error)
    except TooSlow:
        outcome, said = "FAILED", "did not end"
    except BaseException as error:
        outcome, said = "FAILED", f"{type(error).__name__}: {error!s:.300}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - began
    if outcome != "FAILED" and (wrong := _wrong(outcome, said, seconds)):
        outcome, said = "FAILED", f"{wrong}: {said[:300]!r}"
    return Tried(made, outcome, said[:500], round(seconds, 4), round((_peak() - before) / 1e6, 1))


def _wrong(outcome: str, said: str, seconds: float) -> str:
    """What a refusal lacks, or ''."""
    if seconds > LIMIT_SECONDS:
        return f"took {seconds:.1f} s"
    if outcome == "accepted":
        return ""
    if len(said) > LONGEST_MESSAGE or len(said) < 20:
        return f"a message of {len(said):,} characters"
    if any(not (c.isprintable() or c in "\n\t\u200b\u200c\u200d\ufeff") for c in said):
        return "a message that cannot be printed"
    return ""


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _rings(number: int, frame: FrameType | None) -> None:
    raise TooSlow


# --- a child ---------------------------------------------------------------------------------------------------


def child(seed: int, batch: int, count: int) -> None:
    """Print one line of JSON for each of `count` files."""
    import regraft.study.plan  # noqa: F401  (its memory is not the first file's)
    from regraft.study import presets  # noqa: F401
    from tests.harness.study_mutations import mutation

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGPROF, _rings)
    random = np.random.default_rng([seed, batch])
    with tempfile.TemporaryDirectory(prefix="regraft-fuzz-") as folder:
        file = Path(folder) / "study.yaml"

        def tell(made: str, content: str | bytes) -> None:
            print(json.dumps(asdict(attempt(made, content, file))), flush=True)

        for _ in range(count - count // 2):
            tell(*mutation(random))
        by_hypothesis(seed * 100_003 + batch, count // 2, lambda content: tell("hypothesis", content))


def by_hypothesis(seed: int, count: int, tell: Any) -> None:
    """`count` studies with values of any form in them."""
    import hypothesis
    from hypothesis import strategies as st

    from tests.harness.study_mutations import dumped, places, shipped_once

    bases = shipped_once()
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
    values = st.recursive(
        leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=10), v, max_size=4), max_leaves=12
    )
    left = count

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=2 * count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(base=st.sampled_from(bases), changes=st.lists(st.tuples(st.integers(0), values), max_size=3))
    def each(base: dict[str, Any], changes: list[tuple[int, Any]]) -> None:
        nonlocal left
        if left <= 0:
            return
        data = json.loads(json.dumps(base))
        for at, value in changes:
            found = list(places(data))
            if not found:
                break
            *way, key = found[at % len(found)]
            parent = data
            for step in way:
                parent = parent[step]
            parent[key] = value
        left -= 1
        tell(dumped(data))

    each()


# --- the whole -------------------------------------------------------------------------------------------------


def run(n: int, seed: int, batch: int = BATCH) -> list[Tried]:
    """Try `n` files; a child that dies counts as a failure of the file that it was at."""
    tried: list[Tried] = []
    for number, start in enumerate(range(0, n, batch)):
        count = min(batch, n - start)
        command = [sys.executable, "-m", "tests.harness.fuzz_studies", "--child", str(number)]
        done = subprocess.run(
            [*command, "--n", str(count), "--seed", str(seed)], capture_output=True, text=True, check=False
        )
        lines = [Tried(**json.loads(line)) for line in done.stdout.splitlines()]
        if done.returncode or len(lines) < count:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            lines.append(Tried(f"file {len(lines)} of batch {number}", "FAILED", f"the process died: {last}", 0.0, 0.0))
        tried += lines
    return tried


def command_line(seed: int, count: int = 20) -> Counter[int]:
    """Exit codes of `regraft plan FILE` over some files. Raises AssertionError for a traceback."""
    from tests.harness.study_mutations import mutation

    random, codes = np.random.default_rng([seed, 10**6]), Counter[int]()
    with tempfile.TemporaryDirectory(prefix="regraft-fuzz-") as folder:
        for _ in range(count):
            made, content = mutation(random)
            file = Path(folder) / "study.yaml"
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            done = subprocess.run(
                [sys.executable, "-m", "regraft.cli", "plan", str(file), "--store", f"{folder}/store"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert "Traceback" not in done.stderr, (made, done.stderr[-2000:])
            assert done.returncode in (0, 1, 2), (made, done.returncode)
            codes[done.returncode] += 1
    return codes


def summary(tried: list[Tried], seed: int) -> dict[str, Any]:
    """The figures."""
    refused = Counter(one.outcome for one in tried if one.outcome not in ("accepted", "FAILED"))
    slowest = max(tried, key=lambda one: one.seconds)
    hungriest = max(tried, key=lambda one: one.megabytes)
    return {
        "seed": seed,
        "tried": len(tried),
        "accepted": sum(one.outcome == "accepted" for one in tried),
        "refused": dict(refused.most_common()),
        "failed": [asdict(one) for one in tried if one.outcome == "FAILED"],
        "made": dict(Counter(one.made for one in tried).most_common()),
        "slowest": {"seconds": slowest.seconds, "made": slowest.made, "outcome": slowest.outcome},
        "most_memory": {"megabytes": hungriest.megabytes, "made": hungriest.made, "outcome": hungriest.outcome},
        "median_seconds": float(np.median([one.seconds for one in tried])),
        "limits": {"seconds": LIMIT_SECONDS, "bytes": LIMIT_BYTES},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write docs/records/harness/fuzz-studies.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.seed, given.child, given.n)
        return 0
    figures = summary(run(given.n, given.seed), given.seed)
    codes = command_line(given.seed)
    figures["exit codes of regraft plan"] = {str(code): times for code, times in sorted(codes.items())}
    return finish("fuzz-studies", figures, record=given.record) or int(bool(figures["failed"]))


if __name__ == "__main__":
    raise SystemExit(main())
