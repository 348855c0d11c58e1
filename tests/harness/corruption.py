"""Flipped bits and files that are cut off, in everything that regraft keeps: noticed on reading, or harmless.

python -m tests.harness.corruption [--flips 1000] [--seed 0] [--record]

Each file is damaged in one place, read as regraft reads it, and put back. What came of it: "noticed" (an error that
names the file, or the content was made anew), or "harmless" (the content read is the one that was written). Content
that is another one and was taken in silence is a violation, as is an error without a message. In the end a study is
run on a store in which an artifact of every kind is damaged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.corruption_kinds import KINDS, Kept
from tests.harness.figures import finish
from tests.harness.small import Place, Stand, differences, ended, fork, stand, start

HEAD_BYTES = 2048


def damage(content: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """How, and what is left: a bit flipped (three of four times), else cut off or emptied. Every second flip is in the
    first bytes, which are headers and records."""
    if random.random() < 0.75:
        end = min(len(content), HEAD_BYTES) if random.random() < 0.5 else len(content)
        at, bit = int(random.integers(end)), int(random.integers(8))
        return f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    left = 0 if random.random() < 0.2 else int(random.integers(len(content)))
    return f"cut off after {left} of {len(content)} bytes", content[:left]


def attempt(kept: Kept, random: np.random.Generator) -> tuple[str, str]:
    """Damage one of the files, read them, put it back: what came of it, and more of it if it is a violation."""
    from regraft.errors import RegraftError

    file = kept.files[int(random.integers(len(kept.files)))]
    content, state = file.read_bytes(), file.stat()
    how, damaged = damage(content, random)
    where = f"{file.name}, {how}"
    file.write_bytes(damaged)
    try:
        got = kept.read()
        outcome = "harmless" if got == kept.content and file.exists() and file.read_bytes() == damaged else "noticed"
        if got is not None and got != kept.content:
            outcome = "SILENT"
    except RegraftError as error:
        outcome = "noticed" if len(str(error)) > 20 else "SILENT"
    except Exception as error:
        return "ERROR", f"{where}: {type(error).__name__}: {error}"
    finally:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(state.st_mode)
        kept.put_back()
    return outcome, "" if outcome in ("noticed", "harmless") else where


def flips(on: Stand, count: int, seed: int, only: str = "") -> dict[str, Any]:
    """Damage `count` files, as many of each kind; computed in a child, since it uses torch."""
    report = on.folder / "flips.json"
    child = fork(lambda: _flips(on, count, seed, only, report), on.folder / "flips.txt")
    code = ended(child, limit=6 * 3600)
    assert code == 0, (on.folder / "flips.txt").read_text()
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _flips(on: Stand, count: int, seed: int, only: str, report: Path) -> int:
    random, bad, kinds = np.random.default_rng(seed), list[str](), dict[str, dict[str, int]]()
    made = {name: make for name, make in KINDS.items() if only in name}
    for i, (name, make) in enumerate(made.items()):
        kept = make(on, on.folder / "kinds" / name.replace(" ", "-"))
        assert kept.read() == kept.content, f"{name}: read back otherwise than it was written"
        kept.put_back()
        outcomes: Counter[str] = Counter()
        for _ in range(count * (i + 1) // len(made) - count * i // len(made)):
            outcome, more = attempt(kept, random)
            outcomes[outcome] += 1
            bad += [f"{name}: {outcome}: {more}"] if more else []
        kinds[name] = dict(outcomes)
    total: Counter[str] = sum((Counter(outcomes) for outcomes in kinds.values()), Counter())
    report.write_text(json.dumps({"damaged": total.total(), **total, "kinds": kinds, "violations": bad}))
    return 0


def recomputed(on: Stand, seed: int) -> dict[str, Any]:
    """A study on a store with one damaged artifact of every stage: set aside, reported, computed again, the same."""
    from regraft.study.store import FILES, Store
    from regraft.study.verify import verify_store

    random, place = np.random.default_rng([seed, 1]), on.place("recomputed")
    assert ended(start(on, place)) == 0
    store = Store(place.store)
    by_stage: dict[str, list[str]] = {}
    for key in store.keys():
        by_stage.setdefault(store.read(key).spec["stage"], []).append(key)
    hurt = []
    for keys in by_stage.values():
        key = keys[int(random.integers(len(keys)))]
        file = store.path(key) / [*FILES, "record.json"][int(random.integers(4))]
        file.write_bytes(damage(file.read_bytes(), random)[1])
        hurt.append(key)
    codes = [ended(start(on, place))]
    by_study = _aside(place)
    verify_store(store, repair=True)
    codes.append(ended(start(on, place)))
    bad = [f"ends with {codes}: {place.said.read_text()[:600]}"] if any(codes) else []
    # A finished training has no more need of the features that it was trained on: they are not computed again.
    bad += differences(place, on.whole, without=set(by_stage["features"]) & set(hurt))
    bad += [] if verify_store(store).sound else ["what was damaged is still there after check and repair"]
    bad += [f"{key} was not set aside" for key in set(hurt) - _aside(place)]
    bad += [f"{key} was set aside undamaged" for key in _aside(place) - set(hurt)]
    return {
        "stages": sorted(by_stage), "damaged": len(hurt), "set_aside_by_the_study": len(by_study),
        "set_aside_by_check": len(_aside(place)) - len(by_study), "violations": bad,
    }  # fmt: skip


def _aside(place: Place) -> set[str]:
    return {path.name.partition(".")[0] for path in (place.store / "damaged").glob("*")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--only", default="", help="a part of the name of a kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write docs/records/harness/corruption.json")
    given = parser.parse_args()
    with stand("corruption") as on:
        found: dict[str, Any] = {"seed": given.seed, "files": flips(on, given.flips, given.seed, given.only)}
        if not given.only:
            found["study"] = recomputed(on, given.seed)
    return finish("corruption", found, record=given.record)


if __name__ == "__main__":
    sys.exit(main())
