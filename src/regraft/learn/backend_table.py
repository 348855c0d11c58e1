"""The ways to run a frozen trunk: each takes (trunk, sample) and gives images (b, 3, s, s) -> {cut: (b, d)}."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from regraft.learn.hardware import physical_cores
from regraft.networks import Trunk
from regraft.networks.fold import fold, fuse

Run = Callable[[Tensor], dict[str, Tensor]]

OPSET = 17  # ONNX; has all that classification networks need, and every onnxruntime since 1.12 knows it
COMPILERS = ("g++", "clang++", "c++", "cl")


def eager(trunk: Trunk, sample: Tensor) -> Run:
    """Plain PyTorch, what all others are held against."""
    return lambda images: trunk(images.contiguous(memory_format=torch.channels_last))


def fused(trunk: Trunk, sample: Tensor) -> Run:
    """BatchNorms folded; on CPUs with oneDNN also sums and activations in the convolutions. No compile time."""
    module = fold(trunk.body)
    if sample.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # The operators are not public: where this torch has none or others, the folded trunk runs as it is.
        with contextlib.suppress(AttributeError, RuntimeError, TypeError):
            merged = fuse(module, sample)
            merged(sample[:1])
            module = merged
    return lambda images: module(images.contiguous(memory_format=torch.channels_last))


def inductor(trunk: Trunk, sample: Tensor) -> Run:
    """torch.compile with weights frozen into the code, of the folded trunk; tens of seconds to compile."""
    from torch._inductor import config

    size = len(sample)
    compiled = torch.compile(fold(trunk.body), dynamic=False)

    def run(images: Tensor) -> dict[str, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            # Another batch size would be compiled anew, so the last one is filled up.
            full = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
            with config.patch(freezing=True):
                values = compiled(full.contiguous(memory_format=torch.channels_last))
            parts.append({name: value[: len(part)] for name, value in values.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return run


def onnxruntime(trunk: Trunk, sample: Tensor) -> Run:
    """The folded trunk, exported in memory, in ONNX Runtime on as many threads as torch may use."""
    import onnxruntime as ort

    exported, names = _exported(fold(trunk.body), sample)
    options = ort.SessionOptions()
    options.intra_op_num_threads = min(torch.get_num_threads(), physical_cores())
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = ort.InferenceSession(exported, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        # numpy turns the layout: torch's threads would still be waiting for work while ONNX Runtime's start.
        values = session.run(None, {"images": np.ascontiguousarray(images.numpy())})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


PREPARE: dict[str, Callable[[Trunk, Tensor], Run]] = {
    "eager": eager,
    "fused": fused,
    "inductor": inductor,
    "onnxruntime": onnxruntime,
}


def absent(name: str, device: torch.device) -> str:
    """Why `name` cannot run here, as the end of a sentence; empty if it can."""
    if name == "onnxruntime":
        lacking = [package for package in ("onnx", "onnxruntime") if importlib.util.find_spec(package) is None]
        if lacking:
            names = " and ".join(lacking)
            return f"needs the package{'s' * (len(lacking) > 1)} {names}; install with: pip install 'regraft[onnx]'"
        if device.type != "cpu":
            return f"runs on the CPU only, and the trunk is on {device.type}; choose auto, fused or inductor"
    if name == "inductor" and device.type == "cpu":
        wanted = (os.environ.get("CXX", ""), *COMPILERS)
        if not any(shutil.which(compiler) for compiler in wanted if compiler):
            return "needs a C++ compiler, and none is found; install g++ or clang++, or choose auto or fused"
    return ""


class _InOrder(nn.Module):
    """Features as a tuple; the exporter knows no dictionaries."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(images).values())


def _exported(module: nn.Module, sample: Tensor) -> tuple[bytes, list[str]]:
    """(ONNX file, cuts in the order of its outputs), for batches of any size."""
    names = list(module(sample[:1]))
    # Not the sample's own number of images: had the exporter written it down as a constant, running the sample
    # would show it.
    example = sample[:1].expand(3 if len(sample) == 2 else 2, -1, -1, -1).contiguous()
    file = io.BytesIO()
    with quiet_exporter():
        # The exporter by tracing is deprecated, but takes 0.3 s where that by torch.export takes 7.
        torch.onnx.export(
            _InOrder(module), (example,), file,  # type: ignore[arg-type]
            dynamo=False, opset_version=OPSET, input_names=["images"], dynamic_axes={"images": {0: "n"}},
        )  # fmt: skip
    return file.getvalue(), names


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """No warnings, and no graph on stdout: where an operator cannot be exported, torch 2.14 prints thousands of
    characters whatever `verbose` says, since its setup_onnx_logging takes a function for the function's result."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *words: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_onnx_log = log
