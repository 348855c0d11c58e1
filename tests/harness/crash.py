"""A small but complete study, killed at random moments and at every operation that changes a file, and met by every
error of a disk there: resumed, it ends as if nothing had happened.

python -m tests.harness.crash [--kills 200] [--points all] [--faults all] [--seed 0] [--record]

After each interruption: no artifact is torn. After the resumption: the tables and every artifact are those of an
uninterrupted run, byte for byte; what was stored before has not been written again. A fault of the disk ends in a
message that names it, never in a traceback. Exit code 1 if any of this failed.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.figures import finish
from tests.harness.seam import CRASHED, Operation, Seam, operations
from tests.harness.small import Place, Stand, differences, ended, left_behind, stamps, stand, start, torn

UNCHANGING = ("fsync", "open", "chmod", "touch")  # operations that leave the content of the disk as it was
FAULTS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)
FIFTHS = ("0-20 %", "20-40 %", "40-60 %", "60-80 %", "80-100 %")
LONGEST_LIFE = 40  # kills of one study before it is let through


def kills(on: Stand, count: int, seed: int) -> dict[str, Any]:
    """Kill the study at `count` random moments, resuming it each time; once it is through, begin a new one."""
    random, bad = np.random.default_rng(seed), list[str]()
    whole = len(stamps(on.whole.store))
    began = time.monotonic()
    assert ended(start(on, on.place("timed"))) == 0
    seconds = time.monotonic() - began
    done, lives, reached = 0, 0, list[float]()
    while done < count:
        place, lives = on.place(f"life{lives}"), lives + 1
        before: dict[str, tuple[int, int]] = {}
        for _ in range(LONGEST_LIFE):
            if done == count:
                break
            child = start(on, place)
            time.sleep(random.uniform(0.0, 0.6 * seconds))
            gone = os.waitpid(child, os.WNOHANG) != (0, 0)
            if gone:  # it was through before the moment came
                break
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:  # so soon that it has no group of its own yet, hence no children either
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
            now = stamps(place.store)
            reached.append(len(now) / whole)
            bad += [f"kill {done}: {what}" for what in [*torn(place.store), *_changed(before, now)]]
            before = now
            if len(now) == whole:  # only the report is left: another study
                break
        bad += [f"life {lives}: {what}" for what in _resumed(on, place, before)]
        shutil.rmtree(place.folder)
    spread = np.histogram(reached, bins=5, range=(0.0, 1.0))[0].tolist()
    return {
        "kills": done, "studies": lives, "seconds_of_a_run": round(seconds, 2),
        "kills_by_share_of_files_stored": dict(zip(FIFTHS, spread, strict=True)),
        "violations": bad,
    }  # fmt: skip


def points(on: Stand, chosen: str, seed: int) -> dict[str, Any]:
    """End the process at every operation that changes a file: as a crash, and as a power cut."""
    listed = _list(on)
    bad, tried = list[str](), Counter[str]()
    for at in _some(len(listed), chosen, seed):
        here, changed = (
            listed[at],
            at == 0 or listed[at - 1].name not in UNCHANGING,
        )  # else it is as at the point before
        ways = ["crash"] * changed + ["power"] * here.loses + ["torn"] * (here.name in ("create", "tensors"))
        drawn = _of_outputs(here)
        for how in ways:
            place = on.place(f"{how}{at}")
            code = ended(start(on, place, _seam(place, at, how), drawn=drawn))
            what = [] if code == CRASHED else [f"exit code {code}, not the crash: {_said(place)}"]
            before = stamps(place.store)
            what += torn(place.store) + _resumed(on, place, before, drawn=drawn)
            bad += [f"{how} at {at} ({listed[at].name}): {one}" for one in what]
            tried[how] += 1
            shutil.rmtree(place.folder)
    return {
        "write_points": len(listed), "by_operation": dict(Counter(one.name for one in listed).most_common()),
        "tried": dict(tried), "violations": bad,
    }  # fmt: skip


def faults(on: Stand, chosen: str, seed: int, every: bool) -> dict[str, Any]:
    """Raise errors of a disk at the operations. every: all four errors at each, else one after the other."""
    listed = _list(on)
    bad, tried, ends = list[str](), Counter[str](), Counter[str]()
    for turn, at in enumerate(_some(len(listed), chosen, seed)):
        drawn = _of_outputs(listed[at])
        for number in FAULTS if every else (FAULTS[turn % len(FAULTS)],):
            name = errno.errorcode[number]
            place = on.place(f"{name}{at}")
            code = ended(start(on, place, _seam(place, at, number), drawn=drawn))
            said, before = _said(place), stamps(place.store)
            what = torn(place.store) + _badly_said(code, said, number) + _resumed(on, place, before, drawn=drawn)
            bad += [f"{name} at {at} ({listed[at].name}): {one}" for one in what]
            tried[name] += 1
            ends[{0: "complete", 1: "a message", 3: "rows missing with the reason"}.get(code, f"code {code}")] += 1
            shutil.rmtree(place.folder)
    return {"faults": sum(tried.values()), "by_error": dict(tried), "ended": dict(ends), "violations": bad}


def _list(on: Stand) -> list[Operation]:
    place = on.place("listed")
    if not place.folder.exists():
        assert ended(start(on, place, _seam(place, None, "crash"))) == 0, _said(place)
    return operations(place.folder / "operations.txt")


def _seam(place: Place, at: int | None, how: str | int) -> Callable[[], None]:
    said = place.folder / "operations.txt" if at is None else None
    return Seam((place.store, place.out), at, how, said).install


def _some(count: int, chosen: str, seed: int) -> list[int]:
    """All numbers below `count`, or as many of them as `chosen` says."""
    if chosen == "all":
        return list(range(count))
    drawn = np.random.default_rng([seed, count]).permutation(count)[: int(chosen)]
    return sorted(drawn.tolist())


def _said(place: Place) -> str:
    return " ".join(place.said.read_text("utf-8", "replace").split())[-400:]


def _changed(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> list[str]:
    return [f"stored file {name} was written again" for name, stamp in before.items() if now.get(name) != stamp]


def _of_outputs(operation: Operation) -> bool:
    """On the tables and the report; the store does not know the report, so it can be left out of its crashes."""
    return "/out/" in operation.path or operation.path.endswith("/out")


def _resumed(on: Stand, place: Place, before: dict[str, tuple[int, int]], *, drawn: bool = True) -> list[str]:
    """What is wrong after the study has been run once more, undisturbed."""
    had = {Path(name).parts[2] for name in before}
    logged = len(place.log.read_text().splitlines()) if place.log.exists() else 0
    code = ended(start(on, place, drawn=drawn))
    if code:
        return [f"the resumption ends with {code}: {_said(place)}"]
    lines = [line.split() for line in place.log.read_text().splitlines()[logged:]]
    again = [f"{stage} {key} was computed again" for stage, key in lines if key in had]
    found = differences(place, on.whole) + _changed(before, stamps(place.store)) + again
    return found + [f"left: {name}" for name in left_behind(place) if name.startswith(("store/work", "store/damaged"))]


def _badly_said(code: int, said: str, number: int) -> list[str]:
    found = []
    if "Traceback" in said or "Error:" in said.replace("error:", ""):
        found.append(f"a traceback or a bare error: {said}")
    if code not in (0, 1, 3):
        found.append(f"exit code {code}: {said}")
    if code and os.strerror(number) not in said and "has gone" not in said:
        found.append(f"does not name the error: {said}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--points", default="all", help="'all', or how many of the write points")
    parser.add_argument("--faults", default="all", help="the same, for errors of the disk")
    parser.add_argument("--every-error", action="store_true", help="all four errors at each point, not one in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--record", action="store_true", help="write docs/records/harness/crash.json; what was left out stays in it"
    )
    given = parser.parse_args()
    with stand("crash") as on:
        found: dict[str, Any] = {"seed": given.seed}
        if given.kills:
            found["killed"] = kills(on, given.kills, given.seed)
        if given.points != "0":
            found["crashed"] = points(on, given.points, given.seed)
        if given.faults != "0":
            found["faulty disk"] = faults(on, given.faults, given.seed, given.every_error)
    return finish("crash", found, record=given.record, part=True)


if __name__ == "__main__":
    sys.exit(main())
