"""Several processes at once on one store and one study: every run is computed, none is stored wrongly.

python -m tests.harness.concurrency [--processes 8] [--rounds 3] [--seed 0] [--record]

With locks that work; with locks left by processes that are dead; while some of the processes are killed; on a file
system without locks (flock fails with ENOSYS, ENOTSUP or ENOLCK), and on one that grants every lock to everybody, where
leases take their place. On several machines, which know nothing of each other's processes, some of them killed. Without
any of it: then work is done again, and nothing else may go wrong.
Counted: artifacts that were computed more than once. Exit code 1 if a result differs from that of one process alone.
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
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.harness.figures import finish
from tests.harness.small import Place, Stand, differences, ended, left_behind, stand, start, torn

Prepare = Callable[[], None]


def plain() -> None:
    """Locks as this file system has them."""


def refusing(number: int) -> Prepare:
    """A file system that has no locks, and says so."""

    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return lambda: _with_flock(flock)


def granting() -> None:
    """A file system that grants every lock: nothing is locked, and nobody is told."""
    _with_flock(lambda handle, operation: None)


def machines() -> None:
    """Each process on a machine of its own, and no locks between them; of the dead one learns after 3 seconds."""
    from regraft.study import leases

    refusing(errno.ENOLCK)()
    setattr(leases, "here", lambda: f"machine-{os.getpid()}")  # noqa: B010
    leases.BEAT_SECONDS, leases.PATIENCE_SECONDS = 0.25, 3.0


def nothing() -> None:
    """Neither locks nor leases."""
    from regraft.study import locks

    setattr(locks.Lock, "acquire", lambda lock: None)  # noqa: B010


def _with_flock(flock: Callable[[int, int], None]) -> None:
    import fcntl

    from regraft.study import locks

    own = SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_SH=fcntl.LOCK_SH, LOCK_NB=fcntl.LOCK_NB)
    setattr(locks, "fcntl", own)  # noqa: B010


CASES: dict[str, Prepare] = {
    "locks": plain,
    "locks of dead processes": plain,
    "some killed": plain,
    "no locks: ENOSYS": refusing(errno.ENOSYS),
    "no locks: ENOTSUP": refusing(errno.ENOTSUP),
    "no locks: ENOLCK": refusing(errno.ENOLCK),
    "every lock granted": granting,
    "machines, some killed": machines,
    "neither locks nor leases": nothing,
}


def together(on: Stand, case: str, processes: int, random: np.random.Generator) -> dict[str, Any]:
    """One store, `processes` at once; what was computed, and what is wrong."""
    folder = on.folder / "together"
    places = [Place(folder / str(i), shared=folder / "store") for i in range(processes)]
    if case == "locks of dead processes":
        _leave_locks(on, places[0])
    children = [start(on, place, CASES[case]) for place in places]
    killed: set[int] = set()
    if "some killed" in case:
        for victim in random.permutation(processes)[: processes // 2].tolist():
            time.sleep(random.uniform(0.1, 0.8))
            os.killpg(children[victim], signal.SIGKILL)
            killed.add(victim)
    codes = [ended(child) for child in children]
    bad = torn(folder / "store")
    for i, place in enumerate(places):
        if i in killed:
            continue
        if codes[i]:
            bad.append(f"process {i} ends with {codes[i]}: {' '.join(place.said.read_text().split())[-300:]}")
        else:
            bad += [f"process {i}: {what}" for what in differences(place, on.whole)]
    lines = [line.split() for place in places for line in place.log.read_text().splitlines() if place.log.exists()]
    written = Counter(key for stage, key in lines if stage != "images")
    if not killed:
        bad += [f"left: {name}" for name in left_behind(places[0]) if name.startswith("../store/")]
    twice = sum(count - 1 for count in written.values())
    found = {
        "artifacts": len(written), "computed_again": twice, "share_computed_again": round(twice / len(written), 3),
        "images_of_features": sum(int(count) for stage, count in lines if stage == "images"),
        "processes_killed": len(killed), "violations": bad,
    }  # fmt: skip
    shutil.rmtree(folder)
    return found


def _leave_locks(on: Stand, place: Place) -> None:
    """A lock file for every artifact, as of processes that were killed."""
    from regraft.study.store import Store

    (place.store / "locks").mkdir(parents=True)
    for key in Store(on.whole.store).keys():
        (place.store / "locks" / key).touch()


def add_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several rounds."""
    total: dict[str, Any] = {"rounds": len(parts)}
    for name, first in parts[0].items():
        total[name] = sum((part[name] for part in parts), [] if isinstance(first, list) else 0)
    total["share_computed_again"] = round(total["computed_again"] / total["artifacts"], 3)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the name of a case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write docs/records/harness/concurrency.json")
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    found: dict[str, Any] = {"seed": given.seed, "processes": given.processes}
    with stand("together") as on:
        for case in CASES:
            if given.only in case:
                rounds = [together(on, case, given.processes, random) for _ in range(given.rounds)]
                found[case] = add_up(rounds)
    return finish("concurrency", found, record=given.record)


if __name__ == "__main__":
    sys.exit(main())
