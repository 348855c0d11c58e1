"""What is the same to the bit from one run to the next, and how much the rest differs.

python -m tests.harness.determinism [--other PYTHON] [--record]

One study, run anew for each way of running it: again, with two threads, by another back end, and, where another Python
with another torch is given, by that. Keys do not depend on any of these, so the stores are compared artifact by
artifact. A difference is in standard deviations of the tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.harness.figures import finish
from tests.harness.small import TINY

SOLVED = ("ridge", "lbfgs")


@dataclass(frozen=True)
class Way:
    """How the study is run."""

    name: str
    threads: int = 1
    backend: str = "eager"
    mechanism: str = "eager"
    python: str = sys.executable


@dataclass(frozen=True)
class Pair:
    """Two ways, and whether they must give the same bits."""

    told: str
    a: Way
    b: Way
    same: bool = False


ONE, TWO = Way("one"), Way("two", threads=2)
PAIRS = (
    Pair("the same again, 1 thread", ONE, Way("one again"), same=True),
    Pair("the same again, 2 threads", TWO, Way("two again", threads=2), same=True),
    Pair("2 threads for 1", ONE, TWO),
    Pair("back end fused for eager", ONE, Way("fused", backend="fused")),
    Pair("back end fused again", Way("fused", backend="fused"), Way("fused again", backend="fused"), same=True),
    Pair("back end onnxruntime for eager", ONE, Way("onnxruntime", backend="onnxruntime")),
)


def study() -> dict[str, Any]:
    """Training by steps, features of a small and a larger network, heads trained by steps and solved."""
    few = {"data": "digits", "classes": ["5", "6", "7", "8", "9"], "per_class": 40, "validation": 0.2}
    frozen = {"source": "trained", "cut": "layer2", "method": "frozen", "target": "few"}
    return {
        "study": "determinism",
        "seeds": [0, 1, 2],
        "sources": {
            "random": {"network": TINY, "weights": "random", "image_size": 32},
            "larger": {"network": "resnet18", "weights": "random", "image_size": 32},
            "trained": {"run": "trained by steps"},
        },
        "targets": {"first": {"data": "digits", "classes": ["0", "1", "2", "3", "4"], "per_class": 60}, "few": few},
        "recipes": {
            "fast": {"epochs": 5, "batch_size": 32, "lr": 0.05},
            "steps": {"epochs": 10, "batch_size": 32, "lr": 0.05},
            "ridge": {"optimizer": "ridge", "weight_decay": 0.1},
            "logistic": {"optimizer": "lbfgs", "epochs": 200, "weight_decay": 0.01},
        },
        "rows": [
            {"name": "trained by steps", "source": "random", "target": "first", "recipe": "fast"},
            {"name": "fine-tuned from it", "source": "trained", "target": "few", "recipe": "fast"},
            {**frozen, "name": "its features, ridge", "recipe": "ridge"},
            {**frozen, "name": "its features, logistic", "recipe": "logistic"},
            {**frozen, "name": "its features, head by steps", "recipe": "steps"},
            {**frozen, "name": "larger network, ridge", "source": "larger", "cut": None, "recipe": "ridge"},
            {**frozen, "name": "larger network, logistic", "source": "larger", "cut": None, "recipe": "logistic"},
        ],
    }  # fmt: skip


def ways(other: str | None) -> tuple[Pair, ...]:
    if other is None:
        return PAIRS
    return (*PAIRS, Pair("another torch", ONE, Way("another torch", python=other)))


def computed(way: Way, folder: Path) -> Path:
    """The folder of one way, in which the study is finished."""
    place = folder / way.name.replace(" ", "-")
    if place.is_dir():
        return place
    place.mkdir()
    (place / "study.json").write_text(json.dumps(study()))
    command = [
        way.python, "-m", "regraft.cli", "run", "study.json", "--store", "store", "--out", "out", "--quiet",
        "--device", "cpu", "--threads", str(way.threads), "--backend", way.backend, "--mechanism", way.mechanism,
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


# --- comparing two stores -----------------------------------------------------------------------------------------


def artifacts(place: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """key -> (spec, folder)."""
    return {
        path.parent.name: (json.loads(path.read_text("utf-8")), path.parent)
        for path in sorted(place.glob("store/objects/??/*/spec.json"))
    }


def difference(a: Path, b: Path) -> float:
    """Largest of the tensors' differences, in standard deviations of each; 0 if every bit is the same."""
    if a.read_bytes() == b.read_bytes():
        return 0.0
    found = [0.0]
    ours, theirs = load_file(a), load_file(b)
    for name, exact in ours.items():
        if exact.dtype.kind == "f" and exact.size:
            exact, other = exact.astype(np.float64), theirs[name].astype(np.float64)
            scale = max(float(exact.std()), float(np.abs(exact).max()) * 1e-3, 1e-12)
            found.append(float(np.abs(exact - other).max()) / scale)
    return max(found)


def kind(spec: dict[str, Any]) -> str:
    """What an artifact is, as the tables call it; '' of what is not compared."""
    if spec["stage"] == "features":
        return "features" if "fit" not in spec["trunk"] else "features of a trained trunk"
    if spec["stage"] != "fit":
        return ""
    if spec["method"] != "frozen":
        return "networks trained by steps"
    return "heads solved" if spec["recipe"]["optimizer"] in SOLVED else "heads trained by steps"


def compare(pair: Pair, folder: Path) -> dict[str, Any]:
    """What differs, for each kind of artifact, and in the accuracies."""
    left, right = computed(pair.a, folder), computed(pair.b, folder)
    ours, theirs = artifacts(left), artifacts(right)
    found: dict[str, Any] = {}
    violations = [] if ours.keys() == theirs.keys() else ["the keys differ"]
    for key in sorted(ours.keys() & theirs.keys()):
        name = kind(ours[key][0])
        if not name:
            continue
        size = difference(ours[key][1] / "data.safetensors", theirs[key][1] / "data.safetensors")
        entry = found.setdefault(name, {"artifacts": 0, "same bits": 0, "largest difference": 0.0})
        entry["artifacts"] += 1
        entry["same bits"] += size == 0.0
        entry["largest difference"] = max(entry["largest difference"], float(f"{size:.2g}"))
    points = accuracies(left, right)
    if pair.same and (any(part["same bits"] < part["artifacts"] for part in found.values()) or any(points.values())):
        violations.append("not the same bits")
    return {"same bits asked for": pair.same, "kinds": found, "points of accuracy": points, "violations": violations}


def accuracies(left: Path, right: Path) -> dict[str, float]:
    """Row -> largest difference of a seed's accuracy, in points."""
    tables = [json.loads((place / "out" / "results.json").read_text("utf-8"))["cells"] for place in (left, right)]
    found: dict[str, float] = {}
    for a, b in zip(*tables, strict=True):
        assert (a["row"], a["seed"]) == (b["row"], b["seed"])
        gap = round(100 * abs(a["accuracy"] - b["accuracy"]), 2)
        found[a["row"]] = max(found.get(a["row"], 0.0), gap)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--other", metavar="PYTHON", help="with another torch, and regraft to be imported")
    options.add_argument("--record", action="store_true")
    given = options.parse_args()
    found: dict[str, Any] = {
        "made": {
            "command": "python -m tests.harness.determinism" + (" --other PYTHON" if given.other else ""),
            "created": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "torch": version(sys.executable),
            **({"another torch": version(given.other)} if given.other else {}),
        }
    }
    with tempfile.TemporaryDirectory(prefix="regraft-determinism-") as name:
        for pair in ways(given.other):
            found[pair.told] = compare(pair, Path(name))
            print(f"{pair.told}: {found[pair.told]['kinds']}", file=sys.stderr, flush=True)
    return finish("determinism", found, record=given.record)


def version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
