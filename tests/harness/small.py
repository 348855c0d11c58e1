"""A study that is small but complete, run in children of this process, and what must be the same after it.

Children are forked: torch is imported once, and a run takes about a second. This process itself computes nothing with
torch, whose threads a fork does not carry over.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = "timm/test_resnet"  # timm's own network for tests: real, with BatchNorm, 0.5 M parameters
CRASHED = 137  # as a shell reports `kill -9`
LIMIT_SECONDS = 300.0  # for a child


def small_study(weights: Path) -> dict[str, Any]:
    """Training with checkpoints, a source that is a run, weights from a file, features of two cuts, views, frozen heads
    of several kinds, choices by validation. weights: a file of the network's state."""
    return {
        "study": "harness",
        "seeds": [0],
        "sources": {
            "random": {"network": TINY, "weights": "random", "image_size": 32},
            "file": {
                "network": TINY, "weights": f"file:{weights}",
                "preprocessing": {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            },
            "trained": {"run": "source"},
        },
        "targets": {
            "first": {"data": "digits", "classes": ["0", "1", "2"], "per_class": 24, "test_images": 40},
            "few": {
                "data": "digits", "classes": ["5", "6", "7"], "per_class": 20, "validation": 0.2, "test_images": 40,
            },
        },
        "recipes": {
            "fast": {"epochs": 3, "batch_size": 6, "lr": 0.03},
            "weak": {"optimizer": "lbfgs", "epochs": 30, "weight_decay": 0.01},
            "strong": {"optimizer": "lbfgs", "epochs": 30, "weight_decay": 1.0},
            "viewed": {"optimizer": "ridge", "weight_decay": 1.0, "augment": "crop-flip", "views": 1},
        },
        "rows": [
            {"name": "source", "source": "random", "target": "first", "recipe": "fast"},
            {"name": "tuned", "source": "trained", "target": "few", "recipe": "fast"},
            {"name": "file", "source": "file", "cut": "layer2", "method": "frozen", "target": "few",
             "recipe": "viewed"},
        ],
        "grid": {
            "source": "trained", "cut": ["layer1", "layer3"], "method": "frozen", "target": ["few"],
            "recipe": ["weak", "strong"],
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Stand:
    """Where everything of one harness lies: a home folder with data and figures in it, and the weights of the study."""

    folder: Path
    whole: Place  # of an uninterrupted run

    def place(self, name: str) -> Place:
        return Place(self.folder / name)


@dataclass(frozen=True)
class Place:
    """The store and the outputs of one life of the study."""

    folder: Path
    shared: Path | None = None  # a store that others use too

    @property
    def store(self) -> Path:
        return self.shared or self.folder / "store"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def said(self) -> Path:
        """What the latest child printed."""
        return self.folder / "said.txt"

    @property
    def log(self) -> Path:
        """Keys of artifacts as children wrote them, and the images that they extracted features of; a line each."""
        return self.folder / "log.txt"


@contextlib.contextmanager
def stand(prefix: str) -> Iterator[Stand]:
    """A new stand in a temporary folder; on it the study has been run once, without interruption."""
    preload()
    before = os.environ.get("REGRAFT_HOME")
    with tempfile.TemporaryDirectory(prefix=f"regraft-{prefix}-") as name:
        folder = Path(name)
        os.environ["REGRAFT_HOME"] = str(folder / "home")
        try:
            made = Stand(folder, Place(folder / "whole"))
            assert ended(fork(lambda: save_weights(folder / "weights.safetensors"), folder / "weights.txt")) == 0
            code = ended(start(made, made.whole))
            assert code == 0, made.whole.said.read_text()
            yield made
        finally:
            os.environ.pop("REGRAFT_HOME")
            if before is not None:
                os.environ["REGRAFT_HOME"] = before


def preload() -> None:
    """Import all that children need; forked, they have it at once."""
    import altair  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import timm  # noqa: F401
    import torch._dynamo  # noqa: F401  (imported by optimisers)
    import torchvision  # noqa: F401

    import regraft.cli
    import regraft.cli_run
    import regraft.show.report
    import regraft.study.audit
    import regraft.study.run  # noqa: F401


def save_weights(file: Path) -> int:
    from safetensors.torch import save_file

    from regraft.networks import build

    save_file(build(TINY, stem="imagenet", seed=7, image_size=32).state_dict(), file)
    return 0


# --- children ---------------------------------------------------------------------------------------------------


def fork(work: Callable[[], int], said: Path) -> int:
    """Start `work` in a child, whose exit code it gives; returns the child's process id."""
    said.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)  # with its own children it can be killed as one
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1), os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        faulthandler.enable(sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ended(child: int, limit: float = LIMIT_SECONDS) -> int:
    """Exit code of a child, as a shell would give it. A child that does not end is killed, and an error raised."""
    end = time.monotonic() + limit
    while (state := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"a child did not end within {limit:g} s")
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(state[1])
    return code if code >= 0 else 128 - code


def start(on: Stand, place: Place, prepare: Callable[[], None] = lambda: None, *, drawn: bool = True) -> int:
    """Run the study as `regraft run` does, in a child; `prepare` is called in it first. Returns its process id.

    drawn: with the report; without, a page with nothing on it is written in its place."""

    def work() -> int:
        import regraft.cli_run
        import regraft.learn.fit
        import regraft.show.report
        import regraft.study.features

        regraft.learn.fit.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every epoch
        regraft.study.features.SHARD = 40  # several shards a pass
        regraft.cli_run.OWN_AUDIT_SECONDS = 0.0  # an artifact like the others, and most of the time
        _keep_log(place.log)
        if not drawn:
            vars(regraft.show.report)["write_report"] = _empty_page
        prepare()
        return command(on, place)

    place.folder.mkdir(parents=True, exist_ok=True)
    return fork(work, place.said)


def command(on: Stand, place: Place) -> int:
    """`regraft run` on the small study, with the errors of the command line; returns the exit code."""
    study = place.folder / "study.json"
    study.write_text(json.dumps(small_study(on.folder / "weights.safetensors")))
    return run_command(study, place)


def run_command(study: Path, place: Place, *more: str) -> int:
    """`regraft run` in this process, into the place's folders; returns the exit code."""
    from regraft import cli

    sys.argv = [
        "regraft", "run", str(study), "--store", str(place.store), "--out", str(place.out), "--quiet",
        "--threads", "1", "--device", "cpu", "--backend", "eager", *more,
    ]  # fmt: skip
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _empty_page(results: Any, path: Path, **named: Any) -> Path:
    from regraft.study.files import write_text

    return write_text(path, "<html></html>")


def _keep_log(log: Path) -> None:
    """Write down which artifacts are written, and of how many images features are computed."""
    import regraft.study.features
    from regraft.study.store import Store

    engine = vars(regraft.study.features)
    write, extract = Store._write, engine["extract"]
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(self: Store, key: str, spec: Any, payload: Any, record: Any) -> Any:
        os.write(handle, f"{spec['stage']} {key}\n".encode())
        return write(self, key, spec, payload, record)

    def counted(trunk: Any, images: Any, **rest: Any) -> Any:
        os.write(handle, f"images {len(images)}\n".encode())
        return extract(trunk, images, **rest)

    Store._write = logged  # type: ignore[method-assign]
    engine["extract"] = counted


# --- what must be the same --------------------------------------------------------------------------------------


def stamps(store: Path) -> dict[str, tuple[int, int]]:
    """Of every stored file: its inode and when it was written."""
    found = {}
    for file in sorted(store.glob("objects/??/*/*")):
        state = file.stat()
        found[str(file.relative_to(store))] = (state.st_ino, state.st_mtime_ns)
    return found


def torn(store: Path) -> list[str]:
    """Artifacts that are not whole."""
    from regraft.errors import RegraftError
    from regraft.study.store import Store

    found = []
    for key in Store(store).keys():
        try:
            Store(store).verify(key)
        except RegraftError as error:
            found.append(f"torn: {error}")
    return found


def differences(place: Place, whole: Place, *, without: Collection[str] = ()) -> list[str]:
    """In what the results of two runs differ: tables, and every artifact but for what it took to make it.

    without: keys that need not be there."""
    from regraft.study.store import FILES, Store

    found = [
        f"{name} differs" for name in ("results.csv",)
        if (place.out / name).read_bytes() != (whole.out / name).read_bytes()
    ]  # fmt: skip
    if _without_costs(place.out / "results.json") != _without_costs(whole.out / "results.json"):
        found.append("results.json differs")
    if not (place.out / "report.html").read_text().rstrip().endswith("</html>"):
        found.append("the report is not whole")
    ours, theirs = Store(place.store), Store(whole.store)
    mine, other = set(ours.keys()), set(theirs.keys())
    found += [f"{key} is in one store only" for key in sorted((mine ^ other) - set(without))]
    for key in sorted(mine & other):
        for name in FILES:
            if (ours.path(key) / name).read_bytes() != (theirs.path(key) / name).read_bytes():
                found.append(f"{ours.read(key).spec['stage']} {key}: {name} differs")
    return found


def _without_costs(file: Path) -> Any:
    content = json.loads(file.read_text("utf-8"))
    for cell in content["cells"]:
        del cell["cost"]
    return content


def left_behind(place: Place) -> list[str]:
    """Temporary files and folders that are still there."""
    found = [*place.store.glob("tmp/*"), *place.store.glob("work/*"), *place.store.glob("damaged/*")]
    return [os.path.relpath(p, place.folder) for p in [*found, *place.out.glob(".*")]]
