"""torchvision comes without torch's compiler, and its compiler switch still asks torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

LAW = """
import sys
from regraft.networks.imports import import_torchvision
torchvision = import_torchvision()
assert "torch._dynamo" not in sys.modules and "torch._dynamo.utils" not in sys.modules
from regraft.networks import build
from regraft.networks.build import build_around, build_skeleton
skeleton = build_skeleton("resnet18")
assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
whole = build_around(build("resnet18", seed=0).state_dict(), "resnet18")
import torch
assert torch.equal(whole.conv1.weight, build("resnet18", seed=0).conv1.weight)
assert "torch._dynamo" not in sys.modules, "building needs no compiler"
from regraft.networks.fold import fold
assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fold(whole).modules())
assert "timm" not in sys.modules and "torch._dynamo" not in sys.modules, "nor does folding need timm"
from torchvision.ops.roi_align import is_compile_supported
assert "torch._dynamo" not in sys.modules
ours = is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported as real
assert ours == real("cpu")
boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [boxes], 2).shape == (1, 1, 2, 2)
"""


def run(program: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_torchvision_is_imported_without_the_compiler_and_works() -> None:
    run(LAW)


@pytest.mark.slow
def test_a_torchvision_that_needs_more_of_the_compiler_gets_it() -> None:
    run(
        "import sys, regraft.networks.imports as imports\n"
        "made = imports.ModuleType\n"
        "class Bare(made):\n"
        "    def __setattr__(self, name, value):\n"
        "        if name != 'is_compile_supported': super().__setattr__(name, value)\n"
        "imports.ModuleType = Bare\n"
        "torchvision = imports.import_torchvision()\n"
        "assert torchvision.models.resnet18\n"
        "import torch._dynamo.utils\n"
        "assert type(sys.modules['torch._dynamo']) is made\n"
    )
