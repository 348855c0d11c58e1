"""Ctrl-C at any time ends `regraft run` within two seconds, with a message that says how to go on.

python -m tests.harness.interrupt [--times 5] [--seed 0] [--record]

In each phase (training, extraction of features, a download that is slow, decoding of large pictures, the report), with
one process and with worker processes: as soon as the phase is under way, and up to a second later, the signal goes to
all processes of the command, as a terminal sends it. Afterwards nobody is left, and no temporary data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.figures import finish
from tests.harness.small import Place, Stand, ended, fork, run_command, stand

LIMIT_SECONDS = 2.0
LATEST = {"report": 0.2}  # seconds from the beginning of a phase to the signal; else 1.0
UNDER_WAY = 120.0  # seconds for a phase to begin


def study(on: Stand, phase: str) -> dict[str, Any]:
    """One row that stays in its phase for long."""
    network = {"network": "timm/test_resnet", "weights": "random", "image_size": 32}
    target: dict[str, Any] = {"data": "digits"}
    recipe: dict[str, Any] = {"epochs": 5000, "batch_size": 16, "lr": 0.001}
    row: dict[str, Any] = {"name": "long", "source": "random", "target": "all", "recipe": "long"}
    if phase == "extraction":
        network["image_size"] = 512
        row |= {"method": "frozen", "cut": "layer3"}
        recipe = {"optimizer": "ridge", "weight_decay": 1.0}
    elif phase == "download":
        target = {"data": "mnist", "per_class": 10}
    elif phase == "report":
        target |= {"per_class": 10, "test_images": 40}
        recipe["epochs"] = 2
    elif phase == "decoding":
        target = {"data": f"folder:{on.folder / 'pictures'}"}
    return {
        "study": "interrupted", "seeds": [0], "sources": {"random": network}, "targets": {"all": target},
        "recipes": {"long": recipe}, "rows": [row],
    }  # fmt: skip


def watched(phase: str, mark: Path) -> None:
    """Make a file as soon as the phase is under way."""
    import regraft.cli_run
    import regraft.data.fetch
    import regraft.data.pictures
    import regraft.learn.features
    import regraft.learn.fit

    places: dict[str, tuple[Any, str]] = {
        "training": (regraft.learn.fit._Loop, "_step"),
        "extraction": (regraft.study.features, "extract"),
        "decoding": (regraft.data.pictures, "_decode"),
        "report": (regraft.cli_run, "write_files"),
    }
    if phase not in places:
        return  # the server of the download sees it
    owner, name = places[phase]
    real = getattr(owner, name)

    def marked(*given: Any, **named: Any) -> Any:
        mark.touch()
        return real(*given, **named)

    setattr(owner, name, marked)


@contextlib.contextmanager
def slow_server(mark: Path) -> Iterator[str]:
    """A host that sends a kilobyte in ten seconds."""

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "9000000")
            self.end_headers()
            mark.touch()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x" * 100)
                    time.sleep(1)

        def log_message(self, *words: Any) -> None:
            pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, allow_reuse_address = True, True

    with Server(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def run(on: Stand, place: Place, phase: str, workers: int, url: str) -> int:
    """`regraft run` in this process, told to find MNIST at `url`."""
    from dataclasses import replace

    from regraft.data.catalogue import PUBLISHED

    known = PUBLISHED["mnist"]
    PUBLISHED["mnist"] = replace(known, bundles=tuple(replace(b, urls=(url,), mirror=None) for b in known.bundles))
    file = place.folder / "study.json"
    file.write_text(json.dumps(study(on, phase)))
    return run_command(file, place, *(["--executor", "processes", "--workers", str(workers)] if workers else []))


def once(on: Stand, phase: str, workers: int, later: float) -> tuple[float, list[str]]:
    """Seconds from the signal to the end of the command, and what was wrong with it."""
    place = on.place("interrupted")
    place.folder.mkdir()
    mark = place.folder / "under way"
    with slow_server(mark) as url:
        child = fork(lambda: _watched_run(on, place, phase, workers, url, mark), place.said)
        end = time.monotonic() + UNDER_WAY
        while not (mark.exists() or (workers and any(place.store.glob("work/*")))):
            assert time.monotonic() < end, f"{phase} did not begin: {place.said.read_text()[-500:]}"
            time.sleep(0.01)
        time.sleep(later)
        began = time.monotonic()
        os.killpg(child, signal.SIGINT)
        code = ended(child, limit=60.0)
    seconds = time.monotonic() - began
    said, bad = " ".join(place.said.read_text().split()), []
    if code != 130:
        bad.append(f"exit code {code}: {said[-300:]}")
    if "go on with: regraft run" not in said.lower():
        bad.append(f"does not say how to go on: {said[-300:]}")
    if "Traceback" in said:
        bad.append(f"a traceback: {said[-300:]}")
    if seconds > LIMIT_SECONDS:
        bad.append(f"took {seconds:.1f} s")
    if _outlives(child):
        os.killpg(child, signal.SIGKILL)
        bad.append("a worker process was left")
    left = [p.name for p in (on.folder / "home" / "data").rglob(".unfinished-*")]
    bad += [f"left: {name}" for name in left]
    shutil.rmtree(place.folder)
    return seconds, bad


def _outlives(group: int) -> bool:
    """Whether a process of the group is there a second later; one that has ended and waits to be noticed is not."""
    end = time.monotonic() + 1.0
    while living := [state for state in _states(group) if state != "Z"]:
        if time.monotonic() > end:
            return bool(living)
        time.sleep(0.02)
    return False


def _states(group: int) -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            state, _, own_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(own_group) == group:
                yield state


def _watched_run(on: Stand, place: Place, phase: str, workers: int, url: str, mark: Path) -> int:
    import regraft.learn.fit

    regraft.learn.fit.CHECKPOINT_SECONDS = 0.0
    watched(phase, mark)
    return run(on, place, phase, workers, url)


def _pictures(folder: Path) -> int:
    """A few hundred large pictures (links to one, which are read anew each time)."""
    from PIL import Image

    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (2400, 3200, 3), dtype=np.uint8)).save(folder.parent / "large.png")
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(150):
            os.link(folder.parent / "large.png", folder / name / f"{i}.png")
    return 0


CASES = (
    ("training", 0), ("training", 2), ("extraction", 0), ("download", 0), ("decoding", 0), ("report", 0),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--only", default="", help="a part of the name of a phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write docs/records/harness/interrupt.json")
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    found: dict[str, Any] = {"seed": given.seed, "limit_seconds": LIMIT_SECONDS}
    with stand("interrupt") as on:
        make: Callable[[], int] = lambda: _pictures(on.folder / "pictures")  # noqa: E731
        assert ended(fork(make, on.folder / "pictures.txt")) == 0
        for phase, workers in CASES:
            if given.only not in phase:
                continue
            done = [
                once(on, phase, workers, float(random.uniform(0.0, LATEST.get(phase, 1.0)))) for _ in range(given.times)
            ]
            seconds = [one for one, _ in done]
            found[f"{phase}, {'processes' if workers else 'serial'}"] = {
                "times": len(done), "seconds_median": round(float(np.median(seconds)), 2),
                "seconds_most": round(max(seconds), 2), "violations": [what for _, bad in done for what in bad],
            }  # fmt: skip
    return finish("interrupt", found, record=given.record)


if __name__ == "__main__":
    sys.exit(main())
