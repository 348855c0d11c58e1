"""What regraft writes besides a study: data it converts, packs and unpacks, indexes, predictors, exports. Each is
ended at every operation that changes a file, as a crash and as a power cut, and met by errors of the disk there.

python -m tests.harness.writers [--case NAME ...] [--points 60] [--record]

Done once more, undisturbed, it gives what it gives where nothing went wrong, byte for byte. What replaces a file that
was there leaves that or the new one. An error of the disk ends in a message, never in a traceback.
Exit code 1 if any of this failed.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.figures import finish
from tests.harness.seam import CRASHED, Seam, operations
from tests.harness.small import ended, fork, preload

FAULTS = (errno.ENOSPC, errno.EROFS, errno.EACCES)
SEED = 0


@dataclass(frozen=True)
class Case:
    """prepare: what is there before; act: what is interrupted. Both take the folder of one life, in which all that is
    written lies, and one that all lives read; act gives what must be the same (JSON)."""

    name: str
    act: Callable[[Path, Path], Any]
    prepare: Callable[[Path, Path], object] = lambda life, common: None
    replaces: str = ""  # the file that is there before and after


def converted(life: Path, common: Path) -> Any:
    from regraft.data import load_dataset

    return load_dataset("digits", home=life / "home").digest


def decoded(life: Path, common: Path) -> Any:
    from regraft.data import load_dataset

    return load_dataset(f"folder:{common / 'pictures'}", 16, home=life / "home").digest


def indexed(life: Path, common: Path) -> Any:
    from regraft.data import load_dataset

    return load_dataset(f"webdataset:{common / 'shards'}/*.tar", 16, home=life / "home").digest


def packed(life: Path, common: Path) -> Any:
    from regraft.data.pack import pack

    pack(["digits"], life / "out", part_bytes=20_000, home=common / "home")
    return digests(life / "out")


def unpacked(life: Path, common: Path) -> Any:
    from regraft.data import load_dataset
    from regraft.data.pack import unpack

    unpack(common / "packed", home=life / "home")
    return load_dataset("digits", home=life / "home", offline=True).digest


def saved(life: Path, common: Path) -> Any:
    from tests.unit.predictor_example import tiny_predictor

    tiny_predictor(temperature=0.7).save(life / "out" / "mine.regraft")
    return digests(life / "out")


def saved_before(life: Path, common: Path) -> object:
    from tests.unit.predictor_example import tiny_predictor

    return tiny_predictor(temperature=0.5).save(life / "out" / "mine.regraft")


def exported(life: Path, common: Path) -> Any:
    from regraft.predictor.export import export
    from tests.unit.predictor_example import tiny_predictor

    shown = [str(file) for file in sorted((common / "pictures" / "cat").iterdir())]
    export(tiny_predictor(), "onnx", life / "out" / "mine.onnx", pictures=shown)
    return sorted(digests(life / "out"))  # names; the graph's bytes are the exporter's matter


CASES = (
    Case("a published set converted", converted),
    Case("a folder of pictures decoded", decoded),
    Case("shards indexed and decoded", indexed),
    Case("a set packed", packed),
    Case("a set unpacked", unpacked),
    Case("a predictor replaced", saved, saved_before, "out/mine.regraft"),
    Case("an ONNX export", exported),
)


def digests(folder: Path) -> dict[str, str]:
    """Of every file that a user is meant to see."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name[0] != ".")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write_common(folder: Path) -> int:
    """What all lives read: pictures in folders, the same in shards, digits, digits packed."""
    from PIL import Image

    from regraft.data import load_dataset
    from regraft.data.pack import pack

    random = np.random.default_rng(SEED)
    (folder / "shards").mkdir(parents=True)
    for label, name in enumerate(("cat", "dog")):
        (folder / "pictures" / name).mkdir(parents=True)
        with tarfile.open(folder / "shards" / f"{label}.tar", "w") as tar:
            for i in range(12):
                file = folder / "pictures" / name / f"{i}.png"
                Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(file)
                (said := folder / "label.cls").write_text(name)
                tar.add(file, f"{label}{i:03}.png")
                tar.add(said, f"{label}{i:03}.cls")
    load_dataset("digits", home=folder / "home")
    pack(["digits"], folder / "packed", part_bytes=20_000, home=folder / "home")
    return 0


def life(case: Case, folder: Path, common: Path, seam: Callable[[], None] = lambda: None) -> int:
    """Exit code of the act in a child: 1 with the message of a RegraftError, 70 with a traceback."""

    def work() -> int:
        from regraft.errors import RegraftError

        os.environ["REGRAFT_HOME"] = str(folder / "home")
        for name in ("home", "out"):
            (folder / name).mkdir(exist_ok=True)
        if not (folder / "prepared").exists():
            case.prepare(folder, common)
            (folder / "prepared").touch()
        seam()
        try:
            outcome = case.act(folder, common)
        except RegraftError as error:
            print(error)
            return 1
        except OSError as error:  # as the command line would say it
            from regraft.cli import of_the_disk

            if not error.errno:
                raise
            print(of_the_disk(error))
            return 1
        except BaseException:
            traceback.print_exc()
            return 70
        (folder / "outcome.json").write_text(json.dumps(outcome))
        return 0

    folder.mkdir(parents=True, exist_ok=True)
    return ended(fork(work, folder / "said.txt"))


def tried(case: Case, place: Path, common: Path, most: int) -> dict[str, Any]:
    """One case at (at most) so many of its operations."""
    whole, listed = place / "whole", place / "listed"
    assert life(case, whole, common) == 0, said(whole)
    wanted = json.loads((whole / "outcome.json").read_text())
    whole_files = digests(whole / "out")
    assert life(case, listed, common, seam(listed, None, "crash")) == 0, said(listed)
    points = operations(listed / "operations.txt")
    chosen = sorted(np.random.default_rng(SEED).permutation(len(points))[:most].tolist())
    bad, ways = list[str](), Counter[str]()
    for turn, at in enumerate(chosen):
        faulty: list[str | int] = ["crash", *["power"] * points[at].loses, FAULTS[turn % len(FAULTS)]]
        for how in faulty:
            folder = place / "life"
            code = life(case, folder, common, seam(folder, at, how))
            what = _of_end(code, how, said(folder))
            if case.replaces:
                what += _of_file(case, folder, common, whole_files)
            if life(case, folder, common) != 0:
                what.append(f"again: {said(folder)}")
            elif json.loads((folder / "outcome.json").read_text()) != wanted:
                what.append("again gives something else")
            name = how if isinstance(how, str) else errno.errorcode[how]
            bad += [f"{case.name}: {name} at {at} ({points[at].name} {points[at].path}): {one}" for one in what]
            ways[name] += 1
            shutil.rmtree(folder)
    return {"write_points": len(points), "tried": dict(ways), "violations": bad}


def _of_end(code: int, how: str | int, text: str) -> list[str]:
    if isinstance(how, str):
        return [] if code == CRASHED else [f"exit code {code}, not the crash: {text}"]
    if code not in (0, 1):
        return [f"exit code {code}: {text}"]
    return [] if code == 0 or os.strerror(how) in text else [f"does not name the error: {text}"]


def _of_file(case: Case, folder: Path, common: Path, after: dict[str, str]) -> list[str]:
    """Whether the file that is replaced is the one of before or of after."""
    before = folder.parent / "before"
    if not before.exists():
        waits = Case(case.name, lambda life, common: None, case.prepare)
        assert life(waits, before, common) == 0
    name = Path(case.replaces).name
    now = digests(folder / "out").get(name)
    return [] if now in (digests(before / "out")[name], after[name]) else [f"{name} is neither the old nor the new one"]


def seam(folder: Path, at: int | None, how: str | int) -> Callable[[], None]:
    listed = folder / "operations.txt" if at is None else None
    return Seam((folder / "home", folder / "out"), at, how, listed).install


def said(folder: Path) -> str:
    return " ".join((folder / "said.txt").read_text("utf-8", "replace").split())[-300:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--points", type=int, default=60, help="operations of each case, at most, drawn at random")
    parser.add_argument("--record", action="store_true", help="write docs/records/harness/writers.json")
    given = parser.parse_args()
    preload()
    found = {}
    with tempfile.TemporaryDirectory(prefix="regraft-writers-") as name:
        common = Path(name) / "common"
        assert ended(fork(lambda: write_common(common), Path(name) / "common.txt")) == 0
        for case in CASES:
            if given.case is None or case.name in given.case:
                found[case.name] = tried(case, Path(name) / case.name, common, given.points)
                print(case.name, found[case.name]["tried"], file=sys.stderr, flush=True)
    return finish("writers", found, record=given.record)


if __name__ == "__main__":
    sys.exit(main())
