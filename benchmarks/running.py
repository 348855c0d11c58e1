"""For the benchmarks: the peers' files and environment, whole processes timed, tables, records."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from regraft.data import home, load_dataset, split_budget
from regraft.data.augment import channel_statistics
from regraft.networks import obtain_weights
from regraft.spec import Source

PEERS = Path(__file__).parent / "peers"
SCRIPTS = {"plain": "plain_loop.py", "lightning": "lightning_loop.py", "fastai": "fastai_loop.py"}
WORKERS = (0, 2)  # of a DataLoader; each peer is tried with both and timed with the better
# The ImageNet ResNet-50 that package registries carry, so that the benchmark runs where they are all there is.
NETWORK = "resnet50_v1"
IMAGE_SIZE, TEST_IMAGES = 32, 2000


@dataclass
class Timed:
    """One contender's whole processes."""

    name: str
    seconds: list[float] = field(default_factory=list)  # one for each round
    accuracy: float | None = None  # fraction of the test images
    note: str = ""  # how it was run, or why it was not
    said: dict[str, object] = field(default_factory=dict)  # its last line

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


def write_peer_files(folder: Path, *, per_class: int, test_images: int, seed: int, **task: object) -> None:
    """The images of a budget as regraft draws them, the weights, and task.json. Fetches what is not here."""
    folder.mkdir(parents=True, exist_ok=True)
    data = load_dataset("cifar10")
    train, _ = split_budget(data.train.labels, per_class=per_class, validation=0.0, seed=seed, classes=data.classes)
    np.save(folder / "train_images.npy", np.ascontiguousarray(data.train.images[train]))
    np.save(folder / "train_labels.npy", data.train.labels[train])
    test = data.test.limited(test_images, seed=0)
    np.save(folder / "test_images.npy", np.ascontiguousarray(test.images))
    labels = np.load(home() / "data" / "cifar10" / "test_labels.npy")  # a TestSplit does not hand them out
    np.save(folder / "test_labels.npy", labels[test.indices].astype(np.int64))
    weights = obtain_weights(Source(network=NETWORK, weights="pretrained"))
    if not (folder / "weights.safetensors").exists():
        save_file(weights.state(), folder / "weights.safetensors")
    expected = weights.preprocessing
    words = {"mean": expected.mean, "std": expected.std, **task}
    (folder / "task.json").write_text(json.dumps(words))


def write_training_images(folder: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first `count` training images of CIFAR-10 and their labels, also written for the peers of train_cpu.py.

    Fetches nothing: raises DataUnavailable if the set is not here."""
    train = load_dataset("cifar10", offline=True).train
    images, labels = np.array(train.images[:count]), np.array(train.labels[:count], dtype=np.int64)
    np.save(folder / "train_images.npy", images)
    np.save(folder / "train_labels.npy", labels)
    mean, std = channel_statistics(images)
    (folder / "task.json").write_text(json.dumps({"mean": mean, "std": std}))
    return images, labels


def environment(folder: Path, peers: list[str]) -> tuple[str, dict[str, str]]:
    """A Python that has `peers` beside everything that this one has, and why a peer could not be installed.

    Nothing is installed into the present environment: the new one finds its packages by a .pth file."""
    needed = [peer for peer in peers if peer != "plain"]
    if not needed:
        return sys.executable, {}
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        base = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        (Path(own) / "base.pth").write_text("".join(f"{path}\n" for path in base))
    refused = {}
    for peer in needed:
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", peer], capture_output=True, text=True)
        if done.returncode:
            refused[peer] = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    return str(python), refused


def time_process(command: list[str], *, env: dict[str, str] | None = None) -> tuple[float, dict[str, object]]:
    """Seconds of a whole process, from its start to its end, and the JSON of its last line.

    Raises RuntimeError with the end of what it wrote if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-1500:])
    lines = done.stdout.strip().splitlines()
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return seconds, said


def time_peer(peer: str, python: str, folder: Path, rounds: int) -> Timed:
    """A peer in turn with each number of loader processes for one epoch, then whole with the better one."""
    found = Timed(peer)
    command = [python, str(PEERS / SCRIPTS[peer]), str(folder)]
    try:
        tries = {n: time_process([*command, "--workers", str(n), "--epochs", "1"])[0] for n in WORKERS}
        best = min(tries, key=tries.__getitem__)
        found.note = (
            f"{best} loader processes (one epoch: " + ", ".join(f"{n}: {tries[n]:.1f} s" for n in WORKERS) + ")"
        )
        print(f"{peer}: {found.note}", flush=True)
        for _ in range(rounds):
            seconds, found.said = time_process([*command, "--workers", str(best)])
            found.seconds.append(seconds)
            found.accuracy = float(str(found.said["accuracy"]))
            print(f"{peer}: {seconds:.1f} s, test {100 * found.accuracy:.1f} %", flush=True)
    except (RuntimeError, OSError) as error:
        found.note = f"did not run: {str(error).splitlines()[-1]}"
    return found


def table(title: str, rows: list[Timed], plain: float | None) -> str:
    """Seconds (median and range), how many times as fast as the plain loop, test accuracy."""
    lines = [title, f"{'':<34} {'seconds':>9} {'range':>15} {'n':>2} {'x plain':>8} {'test':>7}  how"]
    for row in rows:
        if row.median is None:
            lines.append(f"{row.name:<34} {'-':>9} {'':>15} {0:>2} {'':>8} {'':>7}  {row.note}")
            continue
        span = f"{min(row.seconds):.1f} to {max(row.seconds):.1f}" if len(row.seconds) > 1 else ""
        ratio = f"{plain / row.median:.2f}" if plain is not None else ""
        accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
        count = len(row.seconds)
        lines.append(f"{row.name:<34} {row.median:>9.1f} {span:>15} {count:>2} {ratio:>8} {accuracy:>7}  {row.note}")
    return "\n".join(lines)


def command_line() -> str:
    """The command as it can be repeated anywhere: without the places of files and environments."""
    words, left_out = [f"python benchmarks/{Path(sys.argv[0]).name}"], False
    for word in sys.argv[1:]:
        if left_out or word in ("--record", "--environment"):
            left_out = not left_out
            continue
        words.append(Path(word).name if os.path.isabs(word) else word)
    return " ".join(word for word in words if word != "--more")


def record(path: Path, rows: list[Timed], python: str, **more: object) -> None:
    """Everything of a benchmark as JSON: numbers of every round, versions, machine, command."""
    content = {
        **circumstances(python),
        **more,
        "contenders": [{**asdict(row), "median": row.median} for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def circumstances(python: str) -> dict[str, object]:
    """What belongs beside every number: command, day, machine, what else it was doing, versions."""
    return {
        "command": command_line(),
        "created": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "load_before": LOAD_BEFORE,
        "versions": _versions(python),
    }


# Of the machine when the benchmark began: above about 0.3, somebody else was at work and the seconds say little.
LOAD_BEFORE = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


def _versions(python: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("regraft", "torch", "torchvision", "timm", "numpy", "pillow", "onnxruntime", "ray"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    for name in ("lightning", "fastai"):
        ask = f"import importlib.metadata as m; print(m.version({name!r}))"
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
        found[name] = done.stdout.strip() or "not installed"
    return found
