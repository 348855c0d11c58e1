"""Images/s of frozen trunks: plain eager PyTorch, ONNX Runtime as a user calls it, and regraft's back ends.

Run: python benchmarks/extract.py [--record FILE] [--rounds N] [--threads N] [--only NAME]
Needs: pip install 'regraft[onnx]'.  Targets: regraft >= 0.95 x ONNX Runtime, >= 1.5 x eager for the cut network.

Every way runs over the same images in the same process, one after the other, round after round, so that what else
the machine does meets all of them alike. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

# First, since it sets how torch's threads wait, which torch reads when it is loaded.
import regraft  # noqa: F401

# isort: split
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn

from regraft.learn.backend_table import PREPARE, absent
from regraft.learn.backends import Backend, choose_backend, deviation
from regraft.learn.hardware import set_threads
from regraft.networks import Trunk, body_for_cuts
from regraft.seeding import torch_stream

Way = Callable[[Tensor], object]
PEER_BATCH = 128  # images: what a user takes for a frozen trunk


@dataclass(frozen=True)
class Job:
    name: str
    cut: str
    image_size: int  # pixels
    images: int  # in each round
    remaining: int  # that regraft is told are still to come


JOBS = (
    Job("ResNet-50 cut at layer2.2, 32 px", "layer2.2", 32, 768, 50_000),
    Job("ResNet-50, 32 px", "penultimate", 32, 256, 50_000),
    Job("ResNet-50, 224 px", "penultimate", 224, 32, 50_000),
)


def parts(images: Tensor, size: int) -> Iterator[Tensor]:
    return (images[start : start + size] for start in range(0, len(images), size))


def plain_network(cut: str) -> nn.Module:
    """torchvision's own modules, as a user cuts them: images -> pooled features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = torchvision.models.resnet50(weights=None).eval().requires_grad_(False)
    generator = torch_stream(0, "benchmark")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):  # a fresh one is the identity, and folding it would prove nothing
            norm.running_mean = torch.randn(norm.num_features, generator=generator) * 0.1
            norm.running_var = torch.rand(norm.num_features, generator=generator) + 0.5
            norm.weight.data = torch.rand(norm.num_features, generator=generator) * 0.6 + 0.2
    if cut == "penultimate":
        network.fc = nn.Identity()
        return network
    stages: list[Any] = [getattr(network, name) for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")]
    return nn.Sequential(*stages[:-1], stages[-1][:3], nn.AdaptiveAvgPool2d(1), nn.Flatten())


def trunk_like(plain: nn.Module, cut: str) -> Trunk:
    """regraft's trunk with the same weights."""
    network = torchvision.models.resnet50(weights=None)
    theirs, ours = list(plain.state_dict().values()), list(network.state_dict().items())
    network.load_state_dict({name: value for (name, _), value in zip(ours, theirs, strict=False)}, strict=False)
    return Trunk(body_for_cuts(network, [cut], pooled=True), frozen=True).to(memory_format=torch.channels_last)


def eager(plain: nn.Module) -> Way:
    def run(images: Tensor) -> None:
        with torch.inference_mode():
            for part in parts(images, PEER_BATCH):
                plain(part)

    return run


def onnx_runtime(plain: nn.Module, image_size: int) -> Way:
    """The unfused network as a user exports it; default options but for the threads, which are the others'."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated; the other needs another package
        torch.onnx.export(
            plain, (torch.zeros(2, 3, image_size, image_size),), file, dynamo=False,  # type: ignore[arg-type]
            input_names=["images"], dynamic_axes={"images": {0: "n"}},
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> None:
        for part in parts(images, PEER_BATCH):
            session.run(None, {"images": part.numpy()})

    return run


def ours(backend: Backend) -> Way:
    def run(images: Tensor) -> None:
        for part in parts(images, backend.batch_size):
            backend(part)

    return run


def ways(job: Job, images: Tensor, *, compiled: bool) -> tuple[dict[str, Way], str]:
    """Everything that is timed, and which of it regraft chose by itself."""
    plain = plain_network(job.cut)
    trunk = trunk_like(plain, job.cut)
    sample = images[:16]
    with torch.inference_mode():
        assert deviation(trunk(sample), {job.cut: plain(sample)}) < 1e-4
    timed: dict[str, Way] = {"eager PyTorch": eager(plain), "ONNX Runtime": onnx_runtime(plain, job.image_size)}
    chosen = choose_backend(trunk, sample, job.remaining)
    for name in PREPARE:
        if (name != "inductor" or compiled) and not absent(name, images.device):
            named = choose_backend(trunk, sample, job.remaining, prefer=name)
            timed[f"regraft {name}"] = ours(chosen if name == chosen.name else named)
    timed.setdefault(f"regraft {chosen.name}", ours(chosen))
    return timed, f"regraft {chosen.name}"


def measure(job: Job, rounds: int, *, compiled: bool) -> dict[str, object]:
    shape = (job.images, 3, job.image_size, job.image_size)
    images = torch.randn(shape, generator=torch_stream(0, "benchmark images"))
    timed, chosen = ways(job, images, compiled=compiled)
    # Each way gets the images in the memory layout that suits it.
    nhwc = images.contiguous(memory_format=torch.channels_last)
    inputs = {name: images if name in ("eager PyTorch", "ONNX Runtime") else nhwc for name in timed}
    speeds: dict[str, list[float]] = {name: [] for name in timed}
    for name, run in timed.items():
        run(inputs[name][:PEER_BATCH])  # memory is taken, kernels are chosen
    for _ in range(rounds):
        for name, run in timed.items():
            start = time.perf_counter()
            run(inputs[name])
            speeds[name].append(job.images / (time.perf_counter() - start))
    rows = {
        name: {"median": round(statistics.median(s), 1), "min": round(min(s), 1), "max": round(max(s), 1)}
        for name, s in speeds.items()
    }
    return {"job": job.name, "chosen": chosen, "images_per_second": rows, "ratios": ratios(speeds)}


def ratios(speeds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians over rounds of a way's speed by a peer's in the same round."""

    def median_ratio(name: str, peer: str) -> float:
        return round(statistics.median(a / b for a, b in zip(speeds[name], speeds[peer], strict=True)), 3)

    return {name: {peer: median_ratio(name, peer) for peer in ("eager PyTorch", "ONNX Runtime")} for name in speeds}


def show(result: dict[str, object]) -> None:
    print(f"\n{result['job']}  (*: what regraft chooses by itself)")
    print(f"{'':22}{'images/s':>10}{'min':>9}{'max':>9}{'x eager':>9}{'x ORT':>7}")
    for name, speed in result["images_per_second"].items():  # type: ignore[attr-defined]
        ratio = result["ratios"][name]  # type: ignore[index]
        label = f"{name} *" if name == result["chosen"] else name
        print(
            f"{label:22}{speed['median']:10.0f}{speed['min']:9.0f}{speed['max']:9.0f}"
            f"{ratio['eager PyTorch']:9.2f}{ratio['ONNX Runtime']:7.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="write the result here as JSON")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--only", default="", help="jobs whose name holds this")
    parser.add_argument("--inductor", action="store_true", help="time torch.compile too: a minute more a job")
    given = parser.parse_args()
    threads = set_threads(given.threads)
    results = [measure(job, given.rounds, compiled=given.inductor) for job in JOBS if given.only in job.name]
    for result in results:
        show(result)
    if given.record:
        packages = ("regraft", "torch", "torchvision", "onnxruntime")
        record = {
            "command": " ".join(["python", "benchmarks/extract.py", *sys.argv[1:]]),
            "date": date.today().isoformat(),
            "device": f"{platform.machine()} CPU, {threads} threads",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "rounds": given.rounds,
            "results": results,
        }
        given.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
